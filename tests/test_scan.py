"""scan: compared with models whose units are zeroed by hand, resumed, and refused where it would lie."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import multiprocessing
import multiprocessing.process
import os
import random
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from secateur import _curves, _evaluate, _scan, _store, _surgery
from secateur._couple import couple
from secateur._cut import cut
from secateur._reuse import Prefix
from secateur._scan import scan
from secateur._trace import trace
from secateur.errors import CutError, FileCorrupt, InputError, NonFinite, NothingToCut, StaleArtifact, UnknownName
from secateur.executors import processes, serial
from secateur.recoveries import recalibrate
from secateur.schema.graph import Attribute
from secateur.schema.groups import Equation, Extent, Group, Groups, Member, Setting
from secateur.schema.members import Executor
from secateur.schema.plan import Plan
from secateur.schema.precision import Precision
from secateur.schema.scores import Scores
from secateur.schema.task import Task
from secateur.tasks import classification, from_mean

SIZES = (8, 6)


def make_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()


def member(param: str, axis: int, n: int, role: str) -> Member:
    return Member(param=param, axis=axis, units=tuple(range(n)), role=role)  # type: ignore[arg-type]


def setting(module: str, name: str, group: int) -> Setting:
    return Setting(attribute=Attribute(module, name), extent=Extent(0, ((group, 1),)))


def make_groups(model: nn.Module, equations: tuple[Equation, ...] = ()) -> Groups:
    """Written by hand: the rows of one linear layer, its bias, and the columns of the next."""
    groups = tuple(
        Group(
            index=i,
            name=f"layer{i}",
            kind="neuron",
            n_units=n,
            members=(
                member(f"{2 * i}.weight", 0, n, "write"),
                member(f"{2 * i}.bias", 0, n, "write"),
                member(f"{2 * i + 2}.weight", 1, n, "read"),
            ),
        )
        for i, n in enumerate(SIZES)
    )
    return Groups(
        groups=groups,
        frozen=(),
        equations=equations,
        costs=(),
        settings=(
            setting("0", "out_features", 0),
            setting("2", "in_features", 0),
            setting("2", "out_features", 1),
            setting("4", "in_features", 1),
        ),
        sites=(),
        swaps=(),
        notes=(),
        structure=_surgery.fingerprint_structure(model),
    )


def make_scores(groups: Groups, seed: int = 0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    values = tuple(tuple(torch.rand(g.n_units, generator=generator).tolist()) for g in groups.groups)
    return Scores(criterion="random", unit="a.u.", order=0, source="", values=values, structure=groups.structure)


def make_batches(n: int = 53, size: int = 16, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (n,), generator=generator)
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.fixture
def parts():
    model = make_model()
    groups = make_groups(model)
    return model, groups, make_scores(groups), make_batches(), classification()


def zeroed(model: nn.Sequential, scores: Scores, group: int, n_removed: int) -> nn.Sequential:
    """The same units silenced by hand, another way than the cut."""
    copy = make_model()
    copy.load_state_dict(model.state_dict())
    order = sorted(range(SIZES[group]), key=lambda u: (scores.values[group][u], u))
    with torch.no_grad():
        for u in order[:n_removed]:
            copy[2 * group].weight[u] = 0.0
            copy[2 * group].bias[u] = 0.0
    return copy


def test_every_point_is_the_paired_difference_to_the_dense_model(parts) -> None:
    model, _, scores, batches, task = parts
    curves = scan(*parts, removed=(0.25, 0.5, 0.9), n_folds=5)
    dense = _evaluate.evaluate(model, batches, task)
    assert len(curves.points) == 2 * 3 * 5
    assert list(curves.points) == sorted(curves.points, key=_curves.order)
    for point in curves.points:
        pruned = _evaluate.evaluate(zeroed(model, scores, point.group, point.n_removed), batches, task)
        at = slice(point.fold, None, 5)
        loss, drop = (pruned.losses - dense.losses)[at], (dense.correct - pruned.correct)[at]
        assert point.n == len(loss) == point.weight == point.weight_sq
        assert point.loss == pytest.approx(float(loss.sum()), abs=1e-10)
        assert point.loss_sq == pytest.approx(float((loss**2).sum()), abs=1e-10)
        assert point.drop == pytest.approx(float(drop.sum()))
        assert point.drop_sq == pytest.approx(float((drop**2).sum()))
        assert point.base_loss == pytest.approx(float(dense.losses[at].sum()))
        assert point.base_correct == pytest.approx(float(dense.correct[at].sum()))
        assert point.also == ()
    assert {(p.group, p.removed, p.n_removed) for p in curves.points} == {
        (0, 0.25, 2), (0, 0.5, 4), (0, 0.9, 7), (1, 0.25, 2), (1, 0.5, 3), (1, 0.9, 5),
    }  # fmt: skip
    assert (curves.names, curves.n_units, curves.n_folds) == (("layer0", "layer1"), SIZES, 5)


def test_the_model_is_not_touched(parts) -> None:
    model = parts[0].train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    scan(*parts, removed=(0.5,), recovery=recalibrate())
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_weighted_examples_give_weighted_sums(parts) -> None:
    model, groups, scores, batches, task = parts
    weighted = dataclasses.replace(task, weights=lambda batch: (batch[1] + 1).double())
    y = torch.cat([b[1] for b in batches]).double()
    plain, heavy = (scan(model, groups, scores, batches, t, removed=(0.5,), n_folds=1) for t in (task, weighted))
    assert heavy.points[0].weight == float((y + 1).sum())
    assert heavy.points[0].weight_sq == float(((y + 1) ** 2).sum())
    assert heavy.points[0].loss != plain.points[0].loss


def test_a_mean_loss_has_one_observation_per_batch(parts) -> None:
    model, groups, scores, batches, _ = parts
    mean = from_mean(lambda out, batch: nn.functional.cross_entropy(out, batch[1]))
    whole = scan(model, groups, scores, batches, mean, removed=(0.5,), n_folds=2)
    each = scan(model, groups, scores, batches, classification(), removed=(0.5,), n_folds=2)
    assert [p.n for p in whole.points] == [2, 2, 2, 2]
    assert whole.points[0].drop is None
    means = [[r.loss for (r,) in _curves.read(curves)] for curves in (whole, each)]
    assert means[0] == pytest.approx(means[1])


def test_tied_groups_lose_units_together_and_the_point_says_so() -> None:
    model = make_model()
    equation = Equation(terms=((0, 3), (1, -4)), reason="4 of one for 3 of the other")
    groups = make_groups(model, (equation,))
    scores = make_scores(groups)
    curves = scan(model, groups, scores, make_batches(), classification(), removed=(0.1, 0.5, 0.9), n_folds=1)
    assert [(p.group, p.removed, p.n_removed, p.also) for p in curves.points] == [
        (0, 0.5, 4, ((1, 3),)),
        (0, 0.9, 4, ((1, 3),)),
        (1, 0.5, 3, ((0, 4),)),
        (1, 0.9, 3, ((0, 4),)),
    ]
    assert curves.points[0].loss == curves.points[2].loss


def test_points_after_a_recovery_stand_beside_those_before() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    names = ("1.weight", "1.bias", "1.running_mean", "1.running_var")
    group = Group(
        index=0,
        name="layer0",
        kind="neuron",
        n_units=8,
        members=(
            member("0.weight", 0, 8, "write"),
            member("0.bias", 0, 8, "write"),
            *(member(name, 0, 8, "scale") for name in names),
            member("3.weight", 1, 8, "read"),
        ),
    )
    groups = dataclasses.replace(
        make_groups(model),
        groups=(group,),
        settings=(setting("0", "out_features", 0), setting("1", "num_features", 0), setting("3", "in_features", 0)),
        structure=_surgery.fingerprint_structure(model),
    )
    scores, batches, task = make_scores(groups), make_batches(), classification()
    plain = scan(model, groups, scores, batches, task, removed=(0.5,))
    both = scan(model, groups, scores, batches, task, removed=(0.5,), recovery=recalibrate())
    assert [p for p in both.points if not p.recovered] == list(plain.points)
    after = [p for p in both.points if p.recovered]
    assert len(after) == len(plain.points)
    assert after[0].loss != plain.points[0].loss


# Chunks


@pytest.fixture
def in_chunks(parts, monkeypatch: pytest.MonkeyPatch) -> tuple:
    """Seven batches of 8 examples, the last one smaller, in chunks of two, one, two and two."""
    monkeypatch.setattr(_scan, "FIRST", 9)
    return (*parts[:3], make_batches(53, 8), parts[4])


def test_chunks_are_whole_batches_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _scan.chunks_of([100] * 50 + [40], [1000] * 51)
    assert [chunk.n for chunk in made] == [200, 200, 200, 300, 500, 700, 1100, 1600, 240]
    assert [(c.start, c.first) for c in made[1:]] == [
        (stop, sum(c.n for c in made[: i + 1])) for i, stop in enumerate(c.stop for c in made[:-1])
    ]
    assert [c.n for c in _scan.chunks_of([5000, 1, 5000], [1, 1, 1])] == [5000, 5001]
    monkeypatch.setattr(_scan, "MOST_BYTES", 5000)
    assert [c.n for c in _scan.chunks_of([100] * 12, [1000] * 12)] == [200, 200, 200, 300, 300]
    assert [c.n for c in _scan.chunks_of([100] * 13, [1000] * 13)] == [200, 200, 200, 300, 400]
    assert [c.n for c in _scan.chunks_of([100] * 3, [9000] * 3)] == [100, 100, 100]


def test_sums_over_chunks_are_the_sums_over_the_data(in_chunks, tmp_path: Path) -> None:
    path = tmp_path / "scan.jsonl"
    curves = scan(*in_chunks, removed=(0.5, 0.9), store=path)
    assert len(_store.read_lines(path)) == 1 + 4 * 4
    whole = scan(
        *in_chunks[:3], [tuple(map(torch.cat, zip(*in_chunks[3], strict=True)))], in_chunks[4], removed=(0.5, 0.9)
    )
    for point, same in zip(curves.points, whole.points, strict=True):
        for field in dataclasses.fields(point):
            assert getattr(point, field.name) == pytest.approx(getattr(same, field.name), rel=1e-12, abs=1e-12)


def test_a_scan_in_chunks_resumes_from_any_number_of_lines_in_other_processes(in_chunks, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = scan(*in_chunks, removed=(0.5,), store=tmp_path / "whole.jsonl", recovery=recalibrate())
        lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
        assert len(lines) == 1 + 2 * 2 * 4
        for n in range(len(lines)):
            path = tmp_path / f"part{n}.jsonl"
            path.write_bytes(b"".join(lines[:n]))
            resume = functools.partial(scan, removed=(0.5,), store=path, resume=True, recovery=recalibrate())
            assert resume(*in_chunks, executor=processes(2) if n % 5 == 0 else None) == whole
            assert sorted(path.read_bytes().splitlines()) == sorted(line.rstrip() for line in lines)
    finally:
        torch.set_num_threads(threads)


class Stream:
    """Batches that can only be iterated, and count how often that was begun."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        yield from self.batches


def test_the_data_are_read_once_for_all_points(in_chunks) -> None:
    model, groups, scores, batches, task = in_chunks
    stream = Stream(batches)
    assert scan(model, groups, scores, stream, task) == scan(*in_chunks)
    # Two for the hashes, one dense, one for the check of the cuts, one for the points.
    assert stream.passes == 5


def test_groups_scanned_apart_merge_into_the_scan_of_all(parts) -> None:
    first, second = (scan(*parts, removed=(0.25, 0.5), only=[name]) for name in ("layer0", "layer1"))
    assert {p.group for p in first.points} == {0}
    assert _curves.merge([second, first]) == scan(*parts, removed=(0.25, 0.5))
    with pytest.raises(UnknownName, match="layer7"):
        scan(*parts, only=["layer0", "layer7"])


# Precision


@pytest.fixture
def racing(parts, monkeypatch: pytest.MonkeyPatch) -> tuple:
    """A model that is sure and right, so that cuts hurt; 600 examples in batches of 8, the first look after 32."""
    monkeypatch.setattr(_scan, "FIRST", 32)
    model, groups, scores, _, task = parts
    with torch.no_grad():
        model[4].weight *= 8
        batches = [(x, model(x).argmax(1)) for x, _ in make_batches(600, 8)]
    return model, groups, scores, batches, task


def test_a_point_stops_at_the_first_chunk_that_makes_it_precise(racing) -> None:
    model, _, scores, batches, task = racing
    dense = _evaluate.evaluate(model, batches, task)
    ends = [chunk.first + chunk.n for chunk in _scan._dense(model, batches, task)[1]]
    assert len(ends) > 5
    asked = Precision(absolute=0.01, relative=0.1)
    curves = scan(*racing, removed=(0.15, 0.3, 0.5, 0.7, 0.9), precision=asked)
    used = set()
    for (group, n_removed), points in itertools.groupby(curves.points, lambda p: (p.group, p.n_removed)):
        each = _evaluate.evaluate(zeroed(model, scores, group, n_removed), batches, task).losses - dense.losses
        n = next(
            (n for n in ends if each[:n].std() / n**0.5 <= max(asked.absolute, asked.relative * abs(each[:n].mean()))),
            600,
        )
        points = list(points)
        assert sum(p.n for p in points) == n
        for p in points:
            assert p.loss == pytest.approx(float(each[:n][p.fold :: 5].sum()), abs=1e-10)
            assert p.base_loss == pytest.approx(float(dense.losses[:n][p.fold :: 5].sum()))
        used.add(n)
    assert len(used) > 3
    for reading in itertools.chain(*_curves.read(curves)):
        assert reading.n == 600 or reading.error <= max(asked.absolute, asked.relative * abs(reading.loss))


def test_by_default_a_point_is_as_precise_as_the_dense_loss_allows(racing) -> None:
    dense = _evaluate.evaluate(racing[0], racing[3], racing[4]).losses
    allowed = 3 * float(dense.std()) / 600**0.5
    by_default = scan(*racing, removed=(0.3, 0.5), precision=Precision(relative=0))
    assert by_default == scan(*racing, removed=(0.3, 0.5), precision=Precision(absolute=allowed, relative=0))
    readings = [r for line in _curves.read(by_default) for r in line]
    assert any(r.n < 600 for r in readings)
    assert all(r.error <= allowed or r.n == 600 for r in readings)


def test_an_impossible_precision_is_the_whole_scan(racing) -> None:
    assert scan(*racing, removed=(0.5,), precision=Precision(absolute=0, relative=0)) == scan(*racing, removed=(0.5,))


def test_a_point_that_is_surely_above_the_ceiling_stops(racing) -> None:
    exact = Precision(absolute=0, relative=0)
    curves = scan(*racing, precision=dataclasses.replace(exact, ceiling=0.2, level=0.05))
    whole = scan(*racing, precision=exact)
    stopped = {(r.group, r.n_removed) for r in itertools.chain(*_curves.read(curves)) if r.n < 600}
    above = {(r.group, r.n_removed) for r in itertools.chain(*_curves.read(whole)) if r.loss > 0.2}
    assert stopped
    assert stopped < above  # never one below it; one that is hardly above is measured to the end
    for reading in itertools.chain(*_curves.read(curves)):
        if reading.n < 600:  # an interval for one look would have stopped earlier
            assert reading.loss - 1.96 * reading.error > 0.2


def test_a_precise_scan_is_the_same_however_it_is_run(racing, tmp_path: Path) -> None:
    precise = functools.partial(
        scan, *racing, removed=(0.3, 0.6, 0.9), precision=Precision(absolute=0.02), recovery=recalibrate()
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        told = Mock()
        whole = precise(store=tmp_path / "whole.jsonl", progress=told)
        lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
        done, in_all = told.call_args.args[1:]
        assert done == in_all  # what is not needed counts as done
        assert [call.args[1] for call in told.call_args_list] == sorted(call.args[1] for call in told.call_args_list)
        assert len(lines) - 1 < in_all
        assert precise(executor=processes(2)) == whole
        for n in range(1, len(lines), 5):
            path = tmp_path / f"part{n}.jsonl"
            path.write_bytes(b"".join(lines[:n]))
            assert precise(store=path, resume=True) == whole
            assert len(path.read_bytes().splitlines()) == len(lines)
    finally:
        torch.set_num_threads(threads)


def test_one_store_serves_scans_of_any_precision(racing, tmp_path: Path) -> None:
    path = tmp_path / "scan.jsonl"
    rough, fine = Precision(relative=0.3), Precision(relative=0.1)
    scan(*racing, removed=(0.5,), store=path, precision=rough)
    n_rough = len(_store.read_lines(path))
    assert scan(*racing, removed=(0.5,), store=path, resume=True, precision=fine) == scan(
        *racing, removed=(0.5,), precision=fine
    )
    assert n_rough < (n_fine := len(_store.read_lines(path)))
    # More is there than is asked for: nothing is measured, and nothing beyond the first precise chunk is used.
    assert scan(*racing, removed=(0.5,), store=path, resume=True, precision=rough) == scan(
        *racing, removed=(0.5,), precision=rough
    )
    assert len(_store.read_lines(path)) == n_fine


def test_sorted_examples_are_refused_where_the_first_ones_decide(racing) -> None:
    model, groups, scores, batches, task = racing
    x, y = (torch.cat(column) for column in zip(*batches, strict=True))
    by_loss = _evaluate.evaluate(model, batches, task).losses.argsort()
    ordered = list(zip(x[by_loss].split(8), y[by_loss].split(8), strict=True))
    with pytest.raises(InputError, match="random order") as caught:
        scan(model, groups, scores, ordered, task, removed=(0.5,), precision=Precision())
    assert "shuffle the search data once" in str(caught.value)
    scan(model, groups, scores, ordered, task, removed=(0.5,))


@pytest.mark.parametrize(
    "wrong", [{"absolute": -1}, {"relative": math.nan}, {"ceiling": 0.0}, {"level": 0.0}, {"absolute": math.inf}]
)
def test_a_precision_that_means_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Precision(**wrong)


# Stores


def test_a_scan_resumes_from_any_number_of_lines(parts, tmp_path: Path) -> None:
    whole = scan(*parts, removed=(0.25, 0.5), store=tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 4
    for n in range(len(lines) + 1):
        path = tmp_path / f"part{n}.jsonl"
        path.write_bytes(b"".join(lines[:n]) + (lines[n][:20] if n < len(lines) else b""))
        told = Mock()
        resumed = scan(*parts, removed=(0.25, 0.5), store=path, resume=True, progress=told)
        assert resumed == whole
        assert [call.args for call in told.call_args_list] == [("scan", i + 1, 4) for i in range(max(n - 1, 0), 4)]


def test_more_fractions_go_on_in_the_same_store(parts, tmp_path: Path) -> None:
    path = tmp_path / "scan.jsonl"
    scan(*parts, removed=(0.5,), store=path)
    more = scan(*parts, removed=(0.25, 0.5), store=path, resume=True)
    assert more == scan(*parts, removed=(0.25, 0.5))
    assert len(_store.read_lines(path)) == 1 + 4


def test_a_used_store_is_not_overwritten_by_accident(parts, tmp_path: Path) -> None:
    path = tmp_path / "scan.jsonl"
    scan(*parts, removed=(0.5,), store=path)
    with pytest.raises(InputError, match="resume=True"):
        scan(*parts, removed=(0.5,), store=path)


def test_a_store_of_something_else_is_refused_by_name(parts, tmp_path: Path) -> None:
    model, groups, scores, batches, task = parts
    path = tmp_path / "scan.jsonl"
    scan(*parts, removed=(0.5,), store=path)
    again = functools.partial(scan, removed=(0.5,), store=path, resume=True)
    with torch.no_grad():
        other = make_model(seed=1)
    with pytest.raises(StaleArtifact, match="weights"):
        again(other, groups, scores, batches, task)
    with pytest.raises(StaleArtifact, match="order"):
        again(model, groups, make_scores(groups, seed=5), batches, task)
    with pytest.raises(StaleArtifact, match="data"):
        again(model, groups, scores, make_batches(seed=2), task)
    with pytest.raises(StaleArtifact, match="data"):
        again(model, groups, scores, batches[::-1], task)
    with pytest.raises(StaleArtifact, match="n_folds"):
        again(*parts, n_folds=3)
    with pytest.raises(StaleArtifact, match="recovery"):
        again(*parts, recovery=recalibrate())
    with pytest.raises(StaleArtifact, match="base_loss"):
        again(model, groups, scores, batches, dataclasses.replace(task, losses=lambda o, b: 2 * task.losses(o, b)))
    assert again(*parts) == scan(*parts, removed=(0.5,))


def test_a_changed_store_is_refused(parts, tmp_path: Path) -> None:
    path = tmp_path / "scan.jsonl"
    scan(*parts, removed=(0.5,), store=path)
    text = path.read_text()
    path.write_text(text.replace('"n":11', '"n":12', 1))
    with pytest.raises(FileCorrupt, match=r"scan.jsonl:2"):
        scan(*parts, removed=(0.5,), store=path, resume=True)
    path.write_text(text.splitlines(keepends=True)[0])
    _store.append_line(path, {"something": "else"})
    with pytest.raises(FileCorrupt, match="not a line of a scan"):
        scan(*parts, removed=(0.5,), store=path, resume=True)


# Refusals


def test_data_that_change_from_pass_to_pass_are_refused(parts) -> None:
    model, groups, scores, batches, task = parts
    loader = torch.utils.data.DataLoader(
        [(x, y) for xs, ys in batches for x, y in zip(xs, ys, strict=True)], batch_size=8, shuffle=True
    )
    with pytest.raises(InputError, match="shuffling"):
        scan(model, groups, scores, loader, task)


def test_fractions_outside_zero_and_one_are_refused(parts) -> None:
    for bad in (0.0, 1.0, -0.5, 50):
        with pytest.raises(InputError, match="between 0 and 1"):
            scan(*parts, removed=(0.5, bad))


def test_more_folds_than_examples_are_refused(parts) -> None:
    with pytest.raises(InputError, match="n_folds"):
        scan(*parts, n_folds=54)


def test_no_groups_is_nothing_to_cut(parts) -> None:
    model, groups, scores, batches, task = parts
    nothing = dataclasses.replace(groups, groups=())
    with pytest.raises(NothingToCut):
        scan(model, nothing, dataclasses.replace(scores, values=()), batches, task)


def test_a_wrong_rule_is_found_before_anything_is_measured(parts, tmp_path: Path) -> None:
    model, groups, scores, batches, task = parts
    first, second = groups.groups
    wrong = dataclasses.replace(second, members=second.members[:-1])  # the reader of the second layer is forgotten
    broken = dataclasses.replace(groups, groups=(first, wrong))
    path = tmp_path / "scan.jsonl"
    with pytest.raises(CutError, match="layer1"):
        scan(model, broken, scores, batches, task, store=path)
    assert len(_store.read_lines(path)) == 1


def test_a_cut_model_without_a_finite_loss_is_named(parts) -> None:
    model, groups, scores, batches, task = parts
    last = batches[-1][0]

    def losses(out: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        found = task.losses(out, batch)
        whole = torch.equal(out, model(batch[0])) or len(batch[0]) != len(last)
        return found if whole else found * torch.nan

    with pytest.raises(NonFinite, match="layer0: 4 of 8 units kept"):
        scan(model, groups, scores, batches, dataclasses.replace(task, losses=losses), removed=(0.5,))


# Executors


def test_executors_give_the_same_curves(parts) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = scan(*parts, removed=(0.25, 0.5, 0.75))
        assert scan(*parts, removed=(0.25, 0.5, 0.75), executor=serial()) == here
        assert scan(*parts, removed=(0.25, 0.5, 0.75), executor=processes(2)) == here
    finally:
        torch.set_num_threads(threads)


class Elsewhere:
    """Pickles the work, as for a process that sees nothing of this one; runs it here, and looks at what it holds."""

    name, n, remote = "elsewhere", 2, True

    def __init__(self) -> None:
        self.prefixes: list[Prefix] = []

    def __call__(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        cloudpickle = pytest.importorskip("ray").cloudpickle
        assert work.args[1].made is None  # nothing is computed here for others
        carried = cloudpickle.loads(cloudpickle.dumps(work))
        yield from ((index, carried(item)) for index, item in enumerate(items))
        self.prefixes += carried.args[1].made


def test_another_process_goes_on_from_what_the_dense_model_computes_there(parts) -> None:
    elsewhere = Elsewhere()
    assert scan(*parts, executor=elsewhere) == scan(*parts)
    assert any(prefix.kept for prefix in elsewhere.prefixes)


def killed_once(folder: Path, item: int) -> int:
    """Dies by SIGKILL the first time that it meets item 3."""
    flag = folder / "died"
    if item == 3 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    return item * item


def test_the_work_of_a_killed_process_is_done_again(tmp_path: Path) -> None:
    results = dict(processes(2)(functools.partial(killed_once, tmp_path), range(8)))
    assert (tmp_path / "died").exists()
    assert results == {i: i * i for i in range(8)}


def always_killed(item: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_workers_that_die_again_and_again_end_the_scan() -> None:
    with pytest.raises(Exception, match="killed again and again"):
        list(processes(2, retries=1)(always_killed, range(3)))


def fails(item: int) -> int:
    raise ValueError(f"item {item} is bad")


def test_errors_of_the_work_arrive_as_they_are() -> None:
    with pytest.raises(ValueError, match="item 0 is bad"):
        list(processes(1)(fails, range(1)))
    with pytest.raises(ValueError, match="item 0 is bad"):
        list(serial()(fails, range(1)))
    with pytest.raises(InputError, match="at least one process"):
        processes(0)


# Crash


def scan_in_a_child(parts: tuple, path: Path, executor: Executor) -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not exist in a forked child
    scan(*parts, store=path, resume=True, executor=executor)


def started(parts: tuple, path: Path, executor: Executor) -> multiprocessing.process.BaseProcess:
    child = multiprocessing.get_context("fork").Process(target=scan_in_a_child, args=(parts, path, executor))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        child.start()
    return child


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def children_of(pid: int | None) -> set[str]:
    found: set[str] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            found |= set(path.read_text().split())
    return found


def are_gone(pids: set[str]) -> bool:
    """Ended, or ended and not yet collected by whoever inherited them."""
    states = (Path(f"/proc/{pid}/stat") for pid in pids)
    return all(not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z" for state in states)


@pytest.mark.parametrize("executor", [serial(), processes(2)], ids=lambda executor: executor.name)
def test_a_scan_killed_at_twenty_random_moments_ends_with_the_same_bits(tmp_path: Path, executor: Executor) -> None:
    model = make_model()
    groups = make_groups(model)
    parts = (model, groups, make_scores(groups), make_batches(400, 8), classification())
    path, rng = tmp_path / "scan.jsonl", random.Random(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = scan(*parts, store=tmp_path / "whole.jsonl")
        every = lines_in(tmp_path / "whole.jsonl")
        killed = 0
        at, workers = set(), set()
        while killed < 20:
            # Moments are counted in lines of the store, which every machine writes at its own pace, and a little more.
            until, later = lines_in(path) + rng.randrange(every // 4), rng.uniform(0.0, 0.004)
            child = started(parts, path, executor)
            while child.is_alive() and lines_in(path) < until:
                time.sleep(0.0005)
            time.sleep(later)
            workers |= children_of(child.pid)
            child.kill()
            child.join()
            if child.exitcode != -signal.SIGKILL:  # it was faster: once more from the beginning
                assert scan(*parts, store=path, resume=True) == whole
                path.unlink()
                continue
            killed += 1
            at.add(lines_in(path))
            if rng.random() < 0.3 and path.exists():  # what a power failure leaves of the last line
                data = path.read_bytes()
                path.write_bytes(data[: max(0, len(data) - rng.randrange(0, 400))])
        assert len(at) > 5, "killed at different moments"
        assert scan(*parts, store=path, resume=True, executor=executor) == whole
        deadline = time.monotonic() + 60
        while not are_gone(workers) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert are_gone(workers), "no worker outlives the process that was killed"
    finally:
        torch.set_num_threads(threads)


def test_targets_leave_at_least_one_unit_and_take_at_least_one() -> None:
    groups = make_groups(make_model())
    found = _scan.targets(groups, (0.01, 0.99))
    assert found == {0: {0.01: (7, 6), 0.99: (1, 6)}, 1: {0.01: (8, 5), 0.99: (8, 1)}}
    assert math.isclose(sum(found[0][0.99]), 7)


def test_a_task_without_a_score_has_no_drop(parts) -> None:
    model, groups, scores, batches, task = parts
    silent = Task(forward=task.forward, losses=task.losses)
    curves = scan(model, groups, scores, batches, silent, removed=(0.5,))
    assert all(p.drop is None and p.drop_sq is None and p.base_correct is None for p in curves.points)


class Recurrent(nn.Module):
    """Two layers, two directions, and a norm over all that comes out: one size for four groups, two of them inexact."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(16)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.lstm(x)[0][:, -1]))


def test_what_is_measured_is_what_cut_would_produce() -> None:
    torch.manual_seed(0)
    model = Recurrent().eval()
    groups = couple(trace(model, torch.randn(2, 4, 6)))
    assert len(groups.groups) == 4
    assert not all(group.exact for group in groups.groups)
    scores, task = make_scores(groups), classification()
    batches = [(torch.randn(10, 4, 6), torch.randint(0, 3, (10,))) for _ in range(3)]
    curves = scan(model, groups, scores, batches, task, removed=(0.25, 0.5), n_folds=1)
    dense = _evaluate.evaluate(model, batches, task)
    for point in curves.points:
        assert [g for g, _ in point.also] == [g for g in range(4) if g != point.group]
        assert {n for _, n in point.also} == {point.n_removed}
        kept = tuple(
            tuple(sorted(sorted(range(8), key=values.__getitem__)[point.n_removed :])) for values in scores.values
        )
        plan = Plan(kept=kept, names=curves.names, n_units=curves.n_units, structure=groups.structure)
        small, _ = cut(model, groups, plan, example_inputs=torch.randn(2, 4, 6))
        pruned = _evaluate.evaluate(small, batches, task)
        assert point.loss == pytest.approx(float((pruned.losses - dense.losses).sum()), abs=1e-5)
