"""The demo, in small: every part of it runs on real digits, and an interrupted run ends with the same bits."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from secateur import _store
from secateur._export import contents, load
from secateur.cli import demo
from secateur.cli.demo_data import digits, splits
from secateur.cli.demo_models import PatchTransformer, ResidualCNN, RowLSTM
from secateur.errors import InputError

TINY = {
    "cnn": demo.Recipe(make=lambda: ResidualCNN(width=6), epochs=3, lr=1e-2, recover_epochs=1, recover_lr=1e-3),
    "lstm": demo.Recipe(make=lambda: RowLSTM(hidden=16), epochs=5, lr=1e-2, recover_epochs=1, recover_lr=1e-3),
    "transformer": demo.Recipe(
        make=lambda: PatchTransformer(dim=16, depth=1, heads=4), epochs=3, lr=5e-3, recover_epochs=1, recover_lr=1e-3
    ),
}


class Stop(Exception):
    """The machine went down."""


def run(arch: str, folder: Path, **options: object) -> demo.Outcome:
    return demo.run(arch, folder, recipe=TINY[arch], data=splits(n_train=256), repeats=6, **options)


def bits(folder: Path) -> dict[str, str]:
    """Every file that must be the same in a resumed run; timings, and what shows them, differ."""
    timed = {"latency.json", "report.json", "report.html"}
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in timed
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> demo.Outcome:
    return run("lstm", tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("arch", ["cnn", "transformer"])
def test_every_part_of_the_demo_works_for(arch: str, tmp_path: Path):
    check(run(arch, tmp_path))


def test_every_part_of_the_demo_works_for_lstm(whole: demo.Outcome):
    check(whole)


def check(outcome: demo.Outcome) -> None:
    folder, result = outcome.folder, outcome.result
    assert outcome.same_after_reload
    assert outcome.n_held_out == 600
    assert {p.name for p in folder.iterdir()} >= {
        *("dense.safetensors", "model.safetensors", "receipt.json", "model.onnx", "report.html", "report.json"),
    }
    assert {(e.batch, e.label) for e in result.latency} == {
        (1, "dense"),
        (1, "pruned"),
        (256, "dense"),
        (256, "pruned"),
    }
    if result.chosen == 3:
        dense, small = result.candidates[0].costs, result.candidates[3].costs
        assert small.macs <= 0.5 * dense.macs
        assert small.params < dense.params
    # the numbers shown, computed another way: by hand, from the file
    images, labels = (torch.cat(parts) for parts in zip(*splits().held_out, strict=True))
    again = load(folder, model=TINY[outcome.arch].make().eval())
    assert int((again(images).argmax(1) == labels).sum()) == outcome.pruned
    assert contents(folder).certificate == result.certificate


@pytest.mark.parametrize("label", ["training the dense model", "step 2/3: finetune"])
def test_a_run_that_died_and_was_resumed_ends_with_the_same_bits(label: str, whole: demo.Outcome, tmp_path: Path):
    def die(told: str, done: int, total: int) -> None:
        if told.startswith(label):
            raise Stop

    with pytest.raises(Stop):
        run("lstm", tmp_path, progress=die)
    resumed = run("lstm", tmp_path, resume=True)
    assert bits(tmp_path) == bits(whole.folder)
    assert resumed.pruned == whole.pruned


def test_an_earlier_demo_is_replaced_and_anything_else_is_left_alone(tmp_path: Path):
    demo.prepare(tmp_path / "d", "cnn", 0, resume=False)
    (tmp_path / "d" / "model.onnx").write_text("old")
    demo.prepare(tmp_path / "d", "cnn", 0, resume=False)
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["demo.json"]

    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="something else than a demo"):
        demo.prepare(tmp_path, "cnn", 0, resume=False)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_the_demo_of_another_seed_is_not_resumed(tmp_path: Path):
    demo.prepare(tmp_path, "cnn", 0, resume=False)
    with pytest.raises(InputError, match="another demo"):
        demo.prepare(tmp_path, "cnn", 1, resume=True)


def test_a_damaged_dense_checkpoint_is_refused_rather_than_trained_over(tmp_path: Path):
    demo.prepare(tmp_path, "lstm", 0, resume=False)
    (tmp_path / "dense.safetensors").write_bytes(b"half a file")
    with pytest.raises(Exception, match="safetensors"):
        demo.trained(TINY["lstm"], splits(n_train=64), tmp_path, seed=0)


def test_the_three_splits_are_disjoint_and_600_digits_are_held_out():
    data = splits()
    parts = [torch.cat([x for x, _ in part]).flatten(1) for part in (data.train, data.search, data.held_out)]
    assert [len(p) for p in parts] == [896, 301, 600]
    images = {tuple(row) for row in digits()[0].flatten(1).tolist()}
    seen = [tuple(row) for part in parts for row in part.tolist()]
    assert len(seen) == 1797
    assert set(seen) == images


def test_the_networks_of_the_demo_know_nothing_of_pruning():
    source = Path(demo.__file__).with_name("demo_models.py").read_text()
    assert "import" in source
    assert "secateur" not in source


def test_latency_is_measured_once_and_then_read(whole: demo.Outcome):
    stored = _store.read_json(whole.folder / "latency.json")["latency"]
    again = demo.timed(whole.folder, {}, torch.zeros(1, 1, 8, 8), 6, None)
    assert [e["median"] for e in stored] == [e.median for e in again]
