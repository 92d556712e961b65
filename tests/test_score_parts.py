"""Scores that go on after a kill, and scores of parts of the data that are added: equal to one pass."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur import criteria, tasks
from secateur._couple import couple
from secateur._score import merge_scores, score
from secateur._trace import trace
from secateur.criteria import CRITERIA
from secateur.errors import FileCorrupt, InputError, MissingStatistic, StaleArtifact
from secateur.schema.groups import Groups
from test_score import close, convnet, labelled, mlp

TASK = tasks.classification()
Batches = list[tuple[Tensor, Tensor]]


def data(n: int = 41, size: int = 6) -> Batches:
    x, y = labelled(torch.randn(n, 2, 5, 5, generator=torch.Generator().manual_seed(8)))
    return list(zip(x.split(size), y.split(size), strict=True))


def asked() -> list[sc.schema.members.Criterion]:
    """Everything that adds: all but `grasp`, which needs two passes."""
    left_out = {"grasp", "bn_scale", "hrank", "geometric_median"}
    made = [make() for name, make in CRITERIA.items() if name not in left_out]
    return [*made, criteria.obd(curvature="sampled"), criteria.obs(samples=12)]


class Breaks:
    """Batches that end with an interruption before batch `at`."""

    def __init__(self, batches: Batches, at: int) -> None:
        self.batches, self.at = batches, at

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for i, batch in enumerate(self.batches):
            if i == self.at:
                raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize("every", [1, 2, 5])
def test_a_pass_that_was_interrupted_goes_on_and_ends_with_the_same_bits(tmp_path: Path, every: int) -> None:
    model, groups = convnet()
    expected = score(model, groups, data(), TASK, criterion=asked())
    store = tmp_path / "score.safetensors"
    for at in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            score(model, groups, Breaks(data(), at), TASK, criterion=asked(), store=store, resume=True, every=every)  # type: ignore[arg-type]
    seen: list[int] = []

    def counted(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(len(batch[0]))
        return TASK.forward(m, batch)

    task = dataclasses.replace(TASK, forward=counted)
    found = score(model, groups, data(), task, criterion=asked(), store=store, resume=True, every=every)
    assert found == expected
    missing = len(data()) - 5 // every * every
    assert len(seen) == 2 * missing, "one pass for the gates and one for Hutchinson, and only over what was not held"
    seen.clear()
    again = score(model, groups, data(), task, criterion=asked(), store=store, resume=True)
    assert again == expected
    assert not seen
    assert [p.name for p in tmp_path.iterdir()] == [store.name]


def test_a_killed_process_leaves_a_store_that_can_be_gone_on_from(tmp_path: Path) -> None:
    store = tmp_path / "score.safetensors"
    text = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_score_parts import *
class Kills(Breaks):
    def __iter__(self):
        try:
            yield from super().__iter__()
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGKILL)
model, groups = convnet()
score(model, groups, Kills(data(), 4), TASK, criterion=asked(), store={str(store)!r}, every=2)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    model, groups = convnet()
    found = score(model, groups, data(), TASK, criterion=asked(), store=store, resume=True)
    for a, b in zip(found, score(model, groups, data(), TASK, criterion=asked()), strict=True):
        close(a.values, b.values, rel=1e-6)  # another process: as many threads, or more
        assert (a.data, a.n_examples) == (b.data, b.n_examples)


def test_the_slow_way_and_uneven_weights_resume_too(tmp_path: Path) -> None:
    model, groups = mlp()
    x, y = labelled(torch.randn(17, 4))
    batches = [(x[:5], y[:5]), (x[5:10], y[5:10]), (x[10:], y[10:])]
    task = dataclasses.replace(TASK, weights=lambda b: 1.0 + b[1].double())
    expected = score(model, groups, batches, task, criterion=criteria.obd(), exact=True)
    store = tmp_path / "s"
    with pytest.raises(KeyboardInterrupt):
        score(model, groups, Breaks(batches, 2), task, criterion=criteria.obd(), exact=True, store=store, every=1)  # type: ignore[arg-type]
    assert (
        score(model, groups, batches, task, criterion=criteria.obd(), exact=True, store=store, resume=True) == expected
    )


def parts_of(folder: Path, model: nn.Module, groups: Groups, batches: Batches) -> list[Path]:
    stores = [folder / f"part{k}" for k in range(3)]
    for k, store in enumerate(stores):
        score(model, groups, batches[k::3], TASK, criterion=asked(), store=store, seed=k)
    return stores


def test_the_scores_of_parts_add_up_to_those_of_one_pass(tmp_path: Path) -> None:
    model, groups = convnet()
    stores = parts_of(tmp_path, model, groups, data())
    left_out = {"hutchinson", "obd_sampled"}  # drawn numbers: other ones
    whole = score(model, groups, data(), TASK, criterion=asked())
    for order in (stores, stores[::-1]):
        merged = sc.merge_scores(model, groups, order, criterion=asked())
        for a, b in zip(merged, whole, strict=True):
            assert a.criterion == b.criterion
            assert (a.data, a.n_examples) == (b.data, b.n_examples)
            if a.criterion not in left_out:
                close(a.values, b.values, rel=1e-6)
                close(a.errors, b.errors, rel=1e-5)
    assert merge_scores(model, groups, stores, criterion=criteria.obd()).criterion == "obd"


def test_what_does_not_belong_together_is_not_added(tmp_path: Path) -> None:
    model, groups = convnet()
    batches = data()
    one, two, three = (tmp_path / name for name in "abc")
    obd = criteria.obd()
    score(model, groups, batches[:2], TASK, criterion=obd, store=one)
    score(model, groups, batches[2:], TASK, criterion=obd, store=two)
    with pytest.raises(InputError, match="given twice"):
        merge_scores(model, groups, [one, two, one], criterion=obd)
    with pytest.raises(MissingStatistic, match="activation"):
        merge_scores(model, groups, [one, two], criterion=criteria.apoz())
    with pytest.raises(InputError, match="nothing to merge"):
        merge_scores(model, groups, [], criterion=obd)
    score(model, groups, batches[2:], TASK, criterion=criteria.taylor(), store=three)
    with pytest.raises(StaleArtifact, match="needs"):
        merge_scores(model, groups, [one, three], criterion=obd)
    with torch.no_grad():
        model[0].weight[0, 0] += 1
    with pytest.raises(StaleArtifact, match="weights"):
        merge_scores(model, groups, [one, two], criterion=obd)


def test_an_unfinished_part_is_named(tmp_path: Path) -> None:
    model, groups = convnet()
    store = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        score(model, groups, Breaks(data(), 3), TASK, criterion=criteria.obd(), store=store, every=1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not finished"):
        merge_scores(model, groups, [store], criterion=criteria.obd())


def test_a_store_of_something_else_is_refused(tmp_path: Path) -> None:
    model, groups = convnet()
    store, batches, obd = tmp_path / "store", data(), criteria.obd()
    score(model, groups, batches[:4], TASK, criterion=obd, store=store)
    with pytest.raises(InputError, match="resume=True"):
        score(model, groups, batches, TASK, criterion=obd, store=store)
    for change, named in (
        ({"seed": 1}, "seed"),
        ({"exact": True}, "exact"),
        ({"criterion": criteria.wanda()}, "needs"),
    ):
        with pytest.raises(StaleArtifact, match=named):
            score(model, groups, batches, TASK, **{"criterion": obd, **change}, store=store, resume=True)  # type: ignore[arg-type]
    for other in (batches[1:], batches[:3], batches[::-1]):
        with pytest.raises(StaleArtifact, match="first batches"):
            score(model, groups, other, TASK, criterion=obd, store=store, resume=True)
    more = score(model, groups, batches, TASK, criterion=obd, store=store, resume=True)
    assert more == score(model, groups, batches, TASK, criterion=obd), "data that grew is gone on with"
    store.write_bytes(store.read_bytes()[:-7])
    with pytest.raises(FileCorrupt):
        score(model, groups, batches, TASK, criterion=obd, store=store, resume=True)
    with pytest.raises(InputError, match="two passes"):
        score(model, groups, batches, TASK, criterion=criteria.grasp(), store=tmp_path / "other")
    with pytest.raises(InputError, match="every"):
        score(model, groups, batches, TASK, criterion=obd, store=tmp_path / "other", every=0)


def test_a_network_with_slow_groups_resumes_as_it_began(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Parameter(torch.randn(3, 5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.b(torch.tanh(self.a(x)))) @ self.c.t()

    model = Plain()
    groups = couple(trace(model, torch.randn(2, 4)))
    x, y = labelled(torch.randn(30, 4))
    batches = list(zip(x.split(7), y.split(7), strict=True))
    expected = score(model, groups, batches, TASK, criterion=criteria.obd())
    store = tmp_path / "s"
    with pytest.raises(KeyboardInterrupt):
        score(model, groups, Breaks(batches, 2), TASK, criterion=criteria.obd(), store=store, every=1)  # type: ignore[arg-type]
    assert score(model, groups, batches, TASK, criterion=criteria.obd(), store=store, resume=True) == expected
