"""On a GPU: the groups, cuts, scores and curves of the CPU, and the whole pipeline where the model lies.

Everything here is skipped where torch sees no GPU: `python -m pytest tests/test_cuda.py` on a machine that has one.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from helpers import nets
from helpers.digits import DATA, accuracy, dense_model
from helpers.nasty import NASTY
from helpers.oracle import flat, gap
from helpers.random_plans import random_plan
from secateur import _cut, criteria, executors, exporters, load, prune, recoveries, save, score, tasks
from secateur._couple import couple
from secateur._cut import cut
from secateur._evaluate import map_leaves
from secateur._export import export
from secateur._latency import measure
from secateur._scan import scan
from secateur._trace import trace
from secateur._units import call
from secateur.cli import demo_models
from secateur.criteria import CRITERIA
from secateur.errors import MissingStatistic, SecateurError
from secateur.schema.budget import Budget
from secateur.schema.groups import Group, Groups
from test_reuse import TASK as ENERGY
from test_reuse import random_scores

GPU = torch.device("cuda", 0)
if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU", allow_module_level=True)

TASK = tasks.classification()

wide = functools.partial(map_leaves, lambda t: t.double() if t.is_floating_point() else t)


def there(item: object, name: str = "") -> object:
    """Inputs on the GPU; lengths of sequences stay on the CPU, as torch wants them."""
    if name == "packed":
        ids, lengths = item
        return ids.to(GPU), lengths
    return map_leaves(lambda t: t.to(GPU), item)


def build(name: str) -> tuple[nn.Module, object]:
    """A network of either catalogue, as it is built on the CPU."""
    if name in nets.NETS:
        return nets.build(name)
    torch.manual_seed(0)
    kind, inputs = NASTY[name]
    return nets.randomise(kind()).eval(), inputs


def on_gpu(model: nn.Module) -> bool:
    return all(t.device == GPU for t in (*model.parameters(), *model.buffers()))


def units(group: Group) -> tuple[object, ...]:
    """What goes together. A fused kernel may read its operands in another order, and names follow that."""
    return (
        group.kind,
        group.exact,
        group.gated,
        group.least,
        frozenset((m.param, m.axis, m.units) for m in group.members),
    )


def outputs(model: nn.Module, inputs: object) -> list[Tensor]:
    """In double precision, on the CPU."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            return [t.cpu() for t in flat(call(copy.deepcopy(model).double(), wide(inputs)))]
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


# Not those that make tensors of their own on the CPU, wherever they are.
BUILT = [name for name in (*nets.NETS, *NASTY) if name not in ("GNN", "Capsule")]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", BUILT)
def test_groups_are_those_of_the_cpu_and_so_is_the_cut_model(name: str) -> None:
    model, inputs = build(name)
    groups = couple(trace(model, inputs))
    moved, given = copy.deepcopy(model).to(GPU), there(inputs, name)
    found = couple(trace(moved, given))
    assert [*map(units, found.groups)] == [*map(units, groups.groups)]
    assert found.equations == groups.equations
    if not groups.groups:
        return
    plan = random_plan(groups)
    small, receipt = cut(moved, found, random_plan(found))
    assert receipt.verification is not None, "verified on the GPU"
    assert on_gpu(small)
    expected, _ = cut(model, groups, plan)
    most = 1e-7 if name == "weight_norm" else 1e-9  # torch's kernel computes that norm in float32
    assert gap(outputs(expected, inputs), outputs(small, given)) < most


@pytest.mark.parametrize("name", ["residual", "grouped", "unet", "lstm", "multihead"])
def test_single_precision_is_verified_as_such(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU rounds to TF32 by default, whose errors are as large as those of a wrong cut."""
    monkeypatch.setattr(_cut, "_DOUBLE_LIMIT", 0)
    model, inputs = build(name)
    groups = couple(trace(model.to(GPU), there(inputs)))
    before = torch.backends.cudnn.allow_tf32
    _, receipt = _cut.cut(model, groups, random_plan(groups))
    assert receipt.verification is not None
    assert receipt.verification.error < 2e-5
    assert torch.backends.cudnn.allow_tf32 == before


def test_export_of_a_model_on_the_gpu(tmp_path) -> None:
    model, inputs = build("residual")
    groups = couple(trace(model.to(GPU), there(inputs)))
    small, _ = _cut.cut(model, groups, random_plan(groups))
    told = export(small, there(inputs), tmp_path / "small.pt2", exporter=exporters.torch_export())
    assert told["error"] < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["residual", "encoder", "lstm_two_both_ways", "grouped_query"])
def test_half_precision_is_cut_and_stays_what_it_was(name: str, dtype: torch.dtype) -> None:
    model, inputs = build(name)
    model, inputs = model.to(GPU, dtype), map_leaves(lambda t: t.to(GPU, dtype), inputs)
    groups = couple(trace(model, inputs))
    small, receipt = cut(model, groups, random_plan(groups))
    assert receipt.verification is not None
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert all(t.isfinite().all() for t in flat(call(small, inputs)))


class Cells(nn.Module):
    """Both kinds of cells, step by step over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.head = nn.LSTMCell(8, 12), nn.GRUCell(12, 10), nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        h, g = x.new_zeros(len(x), self.lstm.hidden_size), x.new_zeros(len(x), self.gru.hidden_size)
        c = torch.zeros_like(h)
        for row in x.squeeze(1).unbind(1):
            h, c = self.lstm(row, (h, c))
            g = self.gru(h, g)
        return self.head(g)


NETWORKS = {"cnn": demo_models.ResidualCNN, "lstm": demo_models.RowLSTM, "cells": Cells}


def network(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Groups, list[tuple[Tensor, Tensor]]]:
    """A network of the demo, and two batches of digits."""
    torch.manual_seed(0)
    model = NETWORKS[name]().to(dtype).eval()
    batches = [(x.to(dtype), y) for x, y in DATA.train[:2]]
    return model, couple(trace(model, batches[0][0])), batches


def same(a: tuple[tuple[float, ...], ...], b: tuple[tuple[float, ...], ...]) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(
            torch.tensor(x), torch.tensor(y), rtol=1e-5, atol=1e-6 * max(map(abs, x), default=0.0), equal_nan=True
        )


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("criterion", [*CRITERIA])
def test_scores_are_those_of_the_cpu(name: str, criterion: str) -> None:
    model, groups, batches = network(name)
    made = CRITERIA[criterion]()
    try:
        expected = score(model, groups, batches, TASK, criterion=made)
    except MissingStatistic:
        with pytest.raises(MissingStatistic):
            score(copy.deepcopy(model).to(GPU), groups, batches, TASK, criterion=made)
        return
    found = score(copy.deepcopy(model).to(GPU), groups, batches, TASK, criterion=made)
    same(expected.values, found.values)
    if expected.errors:
        same(expected.errors, found.errors)


@pytest.mark.parametrize("curvature", ["calibrated", "sampled"])
@pytest.mark.parametrize("name", NETWORKS)
def test_curvatures_of_obd_are_those_of_the_cpu(name: str, curvature: str) -> None:
    model, groups, batches = network(name)
    made = criteria.obd(curvature=curvature)
    expected = score(model, groups, batches, TASK, criterion=made)
    same(expected.values, score(copy.deepcopy(model).to(GPU), groups, batches, TASK, criterion=made).values)


def test_scores_under_autocast_are_near_those_without() -> None:
    model, groups, batches = network("cnn", torch.float32)
    model = model.to(GPU)

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return model(batch[0])

    half = dataclasses.replace(TASK, forward=forward)
    plain = score(model, groups, batches, TASK, criterion=criteria.fisher())
    found = score(model, groups, batches, half, criterion=criteria.fisher())
    for a, b in zip(plain.values, found.values, strict=True):
        ranks = torch.stack([torch.tensor(v).argsort().argsort().double() for v in (a, b)])
        assert torch.corrcoef(ranks)[0, 1] > 0.8


def test_batches_may_lie_there_already() -> None:
    model, groups, batches = network("cnn")
    model, made = model.to(GPU), criteria.taylor()
    a = score(model, groups, batches, TASK, criterion=made)
    b = score(model, groups, [tuple(there(list(batch))) for batch in batches], TASK, criterion=made)
    same(a.values, b.values)


@pytest.mark.parametrize("name", ["residual", "lstm_two_both_ways", "gru", "encoder", "own_attention", "tied_lm"])
def test_a_scan_with_reuse_has_the_bits_of_one_without_and_is_near_that_of_the_cpu(name: str) -> None:
    model, inputs = build(name)
    model, inputs = model.double(), wide(inputs)
    batches = [inputs, map_leaves(lambda t: t.flip(0), inputs)]
    groups = couple(trace(model, inputs))
    scores = random_scores(groups)
    moved = copy.deepcopy(model).to(GPU)
    expected = scan(model, groups, scores, batches, ENERGY, removed=(0.3, 0.6), n_folds=2)
    run = functools.partial(scan, moved, groups, scores, batches, ENERGY, removed=(0.3, 0.6), n_folds=2)
    torch.backends.cudnn.deterministic = True
    try:
        plain = run(memory=0)
        assert run() == plain
    finally:
        torch.backends.cudnn.deterministic = False
    for a, b in zip(expected.points, plain.points, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-4)


def test_forked_processes_refuse_a_gpu_by_name() -> None:
    model, inputs = build("residual")
    groups = couple(trace(model, inputs))
    with pytest.raises(SecateurError, match="CUDA"):
        scan(
            model.to(GPU), groups, random_scores(groups), [inputs, inputs], ENERGY,
            removed=(0.5,), n_folds=2, executor=executors.processes(2),
        )  # fmt: skip


RECOVERIES: dict[str, Callable[[], object]] = {
    "finetune": lambda: recoveries.chain(recoveries.finetune(epochs=2, lr=3e-3), recoveries.recalibrate()),
    "distill": lambda: recoveries.distill(epochs=1, lr=3e-3),
}


@pytest.mark.parametrize("recovery", [*RECOVERIES])
def test_prune_where_the_model_lies(recovery: str, tmp_path) -> None:
    model = dense_model().to(GPU)
    dense = accuracy_there(model)
    result = prune(
        model,
        torch.zeros(2, 1, 8, 8, device=GPU),
        data=DATA,
        task=TASK,
        budget=Budget(macs=0.5),
        max_drop=0.05,
        steps=2,
        recovery=RECOVERIES[recovery](),
        scan="once",
    )
    small = result.model
    assert on_gpu(small)
    assert on_gpu(model)
    assert accuracy_there(small) > dense - 0.05
    save(small, tmp_path / "small", receipt=result.receipt)
    loaded = load(tmp_path / "small", model=dense_model())
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    assert accuracy(loaded, DATA.held_out) == pytest.approx(accuracy_there(small), abs=0.005)
    assert on_gpu(load(tmp_path / "small", model=dense_model(), device=GPU))


def accuracy_there(model: nn.Module) -> float:
    return accuracy(model, [(x.to(GPU), y.to(GPU)) for x, y in DATA.held_out])


def test_latency_is_measured_on_the_gpu() -> None:
    model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(8))).to(GPU)
    small = nn.Sequential(*(nn.Linear(256, 256) for _ in range(8))).to(GPU)
    big = measure({"m": model}, {4096: torch.zeros(4096, 2048)}, repeats=9)[0]
    little = measure({"m": small}, {4096: torch.zeros(4096, 256)}, repeats=9)[0]
    assert big.device.startswith("cuda")
    assert big.median > 2 * little.median, "the time of the kernels, not of their launch"
