"""The demo: a network is trained on real digits, pruned to half its MACs, certified, saved, exported and timed."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import _latency, _store, _surgery
from secateur._evaluate import evaluate
from secateur._export import export, load, save
from secateur._recover import derive, seeded
from secateur._report import report, summary
from secateur.cli import demo_data
from secateur.cli.demo_models import PatchTransformer, ResidualCNN, RowLSTM
from secateur.errors import InputError
from secateur.exporters import onnx
from secateur.pipeline import prune
from secateur.recoveries import chain, finetune, recalibrate
from secateur.schema import from_json, to_json
from secateur.schema.budget import Budget
from secateur.schema.costs import Latency
from secateur.schema.result import Result
from secateur.schema.table import table
from secateur.schema.task import Data
from secateur.tasks import classification

Progress = Callable[[str, int, int], None]
MAX_DROP, KEPT, STEPS, CONFIDENCE = 0.03, 0.5, 3, 0.95
MARK = "demo.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One architecture of the demo.

    Attributes:
        make: a fresh, untrained model.  epochs, lr: of the dense training.
        recover_epochs, recover_lr: of the training after every cut.
    """

    make: Callable[[], nn.Module]
    epochs: int
    lr: float
    recover_epochs: int
    recover_lr: float


RECIPES = table(
    ("cnn", Recipe(make=ResidualCNN, epochs=20, lr=3e-3, recover_epochs=6, recover_lr=1e-3)),
    ("lstm", Recipe(make=RowLSTM, epochs=60, lr=5e-3, recover_epochs=12, recover_lr=2e-3)),
    ("transformer", Recipe(make=PatchTransformer, epochs=60, lr=2e-3, recover_epochs=8, recover_lr=1e-3)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the demo found out.

    Attributes:
        folder: of all files.  report: the HTML page.
        result: of `prune`, with measured latency.
        dense, pruned: correct answers on the held-out images.  n_held_out: of so many.
        same_after_reload: outputs and weights of the reloaded model are the same bits.
        exported: what the ONNX exporter said.
        seconds: of the whole run.
    """

    arch: str
    folder: Path
    report: Path
    result: Result
    dense: int
    pruned: int
    n_held_out: int
    same_after_reload: bool
    exported: Mapping[str, Any]
    seconds: float

    @property
    def drop(self) -> float:
        """On the held-out images: dense minus pruned."""
        return (self.dense - self.pruned) / self.n_held_out

    @property
    def kept_the_drop(self) -> bool:
        """Whether a pruned model of the size asked for is within the allowed drop, on search and held-out data."""
        last = self.result.state
        return self.result.chosen == last.steps and self.drop <= MAX_DROP


def run(
    arch: str,
    folder: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    recipe: Recipe | None = None,
    data: Data | None = None,
    repeats: int = 60,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Outcome:
    """The whole demo, as any user could write it.

    Args:
        arch: `cnn`, `lstm` or `transformer`.
        folder: for all files.  resume: go on from what it holds.
        recipe, data: others than the demo's own, for tests.
        repeats: timed passes of each model.
        say: told in words what happens.
    """
    start, tell = time.monotonic(), say or (lambda text: None)
    recipe, data = recipe or RECIPES[arch], data or demo_data.splits()
    assert data.held_out is not None
    prepare(folder, arch, seed, resume)
    task = classification()
    images = torch.cat([x for x, _ in data.search])

    tell(f"training a dense {arch} on {len(data.train.dataset)} digits")  # type: ignore[attr-defined]
    dense = trained(recipe, data, folder, seed=seed, progress=progress)

    tell(f"pruning to {KEPT:.0%} of the MACs in {STEPS} steps, allowed drop {MAX_DROP:.0%}")
    result = prune(
        dense,
        images[:2],
        data=data,
        task=task,
        budget=Budget(macs=KEPT),
        max_drop=MAX_DROP,
        steps=STEPS,
        recovery=chain(finetune(epochs=recipe.recover_epochs, lr=recipe.recover_lr), recalibrate()),
        scan="once",
        confidence=CONFIDENCE,
        seed=seed,
        out=folder / "run",
        resume=True,
        progress=progress,
    )

    tell("saving, and loading into a fresh model")
    save(result.model, folder, receipt=result.receipt, certificate=result.certificate, plan=result.plan)
    again = load(folder, model=recipe.make().eval())
    same = _surgery.fingerprint_weights(again) == _surgery.fingerprint_weights(result.model)
    with torch.no_grad():
        same = same and torch.equal(again(images), result.model(images))

    tell("exporting to ONNX, and checking it with onnxruntime")
    exported = export(again, images[:2], folder / "model.onnx", exporter=onnx())

    tell("timing dense and pruned, side by side")
    latency = timed(folder, {"dense": dense, "pruned": again}, images, repeats, progress)
    result = dataclasses.replace(result, latency=latency)

    before, after = (evaluate(m, data.held_out, task).correct for m in (dense, again))
    assert before is not None and after is not None
    _store.write_json(folder / "report.json", to_json(summary(result)))
    return Outcome(
        arch=arch,
        folder=folder,
        report=report(result, folder / "report.html"),
        result=result,
        dense=int(before.sum()),
        pruned=int(after.sum()),
        n_held_out=len(before),
        same_after_reload=same,
        exported=exported,
        seconds=time.monotonic() - start,
    )


def prepare(folder: Path, arch: str, seed: int, resume: bool) -> None:
    """Make the folder ready; one of an earlier demo is cleared unless it is to be resumed, any other is left alone.

    Raises:
        InputError: the folder holds something else, or a demo of another architecture or seed that was to be resumed.
    """
    mark = {"arch": arch, "seed": seed}
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise InputError(
                "this folder holds something else than a demo",
                where=str(folder),
                todo="name an empty or new folder with --out",
            )
        if not resume:
            shutil.rmtree(folder)
        elif (found := _store.read_json(folder / MARK)) != mark:
            raise InputError(
                "this folder holds another demo",
                where=str(folder),
                expected=f"--arch {arch} --seed {seed}",
                got=f"--arch {found.get('arch')} --seed {found.get('seed')}",
                todo="resume it with its own options, or name another folder",
            )
    folder.mkdir(parents=True, exist_ok=True)
    _store.write_json(folder / MARK, mark)


def trained(recipe: Recipe, data: Data, folder: Path, *, seed: int, progress: Progress | None = None) -> nn.Module:
    """The dense model: trained here, or read from the folder where an earlier run has trained it."""
    path = folder / "dense.safetensors"
    with seeded(derive(seed, "dense training"), data.train):
        model = recipe.make()
        if not path.exists():
            train(model, data, epochs=recipe.epochs, lr=recipe.lr, progress=progress)
            _store.save_tensors(path, model.state_dict())
    # A run that has just trained goes on from the file as well: what follows cannot depend on where it was stopped.
    model.load_state_dict(_store.load_tensors(path))
    return model.eval()


def train(model: nn.Module, data: Data, *, epochs: int, lr: float, progress: Progress | None = None) -> None:
    """An ordinary training loop: AdamW, one cycle of the learning rate, cross-entropy."""
    batches: Any = data.train
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * len(batches))
    model.train()
    for epoch in range(epochs):
        for images, labels in batches:
            loss: Tensor = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if progress is not None:
            progress("training the dense model, epochs", epoch + 1, epochs)


def timed(
    folder: Path, models: Mapping[str, nn.Module], images: Tensor, repeats: int, progress: Progress | None
) -> tuple[Latency, ...]:
    """Latency at batch 1 and 256, measured once: a resumed run reads it, as timings never repeat to the bit."""
    path = folder / "latency.json"
    if path.exists():
        return tuple(from_json(Latency, entry) for entry in _store.read_json(path)["latency"])
    times = math.ceil(256 / len(images))
    inputs = {1: images[:1], 256: images.repeat(times, 1, 1, 1)[:256]}
    latency = _latency.measure(models, inputs, repeats=repeats, progress=progress)
    _store.write_json(path, {"latency": [to_json(entry) for entry in latency]})
    return latency
