"""The gate statistics against definitions written out; the two ways of collecting them against each other; laws."""

from __future__ import annotations

import copy
import dataclasses
import gc
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur import _stats, criteria, tasks
from secateur._couple import couple
from secateur._evaluate import examples
from secateur._score import score, scores_of
from secateur._trace import trace
from secateur.errors import (
    EmptyData,
    InputError,
    MissingStatistic,
    NonFinite,
    OneShotIterable,
    StaleArtifact,
    TaskShapeError,
)
from secateur.schema.groups import Group, Groups, Member
from secateur.schema.scores import Scores
from secateur.schema.task import Task

Tuples = tuple[tuple[float, ...], ...]


def close(a: Tuples, b: Tuples, *, rel: float = 1e-4) -> None:
    x = torch.tensor([v for row in a for v in row], dtype=torch.float64)
    y = torch.tensor([v for row in b for v in row], dtype=torch.float64)
    largest = max([abs(v) for row in b for v in row], default=0.0)
    torch.testing.assert_close(x, y, rtol=rel, atol=rel * largest + 1e-12)


# Two networks with their groups written by hand


def mlp(hidden: int = 5, *, activation: nn.Module | None = None, seed: int = 0) -> tuple[nn.Module, Groups]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, hidden), activation or nn.Tanh(), nn.Linear(hidden, 3))
    units = tuple(range(hidden))
    members = (
        Member(param="0.weight", axis=0, units=units, role="write"),
        Member(param="0.bias", axis=0, units=units, role="write"),
        Member(param="2.weight", axis=1, units=units, role="read", readers=("2.weight",)),
    )
    return model, grouped(Group(index=0, name="0", kind="neuron", n_units=hidden, members=members))


def convnet() -> tuple[nn.Module, Groups]:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3), nn.Flatten(),
        nn.Linear(4 * 9, 3),
    )  # fmt: skip
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    six, four, flat = tuple(range(6)), tuple(range(4)), tuple(i // 9 for i in range(36))
    first = (
        Member(param="0.weight", axis=0, units=six, role="write"),
        Member(param="0.bias", axis=0, units=six, role="write"),
        Member(param="1.weight", axis=0, units=six, role="scale"),
        Member(param="1.bias", axis=0, units=six, role="scale"),
        Member(param="1.running_mean", axis=0, units=six, role="scale"),
        Member(param="1.running_var", axis=0, units=six, role="scale"),
        Member(param="3.weight", axis=1, units=six, role="read", readers=("3.weight",)),
    )
    second = (
        Member(param="3.weight", axis=0, units=four, role="write"),
        Member(param="3.bias", axis=0, units=four, role="write"),
        Member(param="5.weight", axis=1, units=flat, role="read", readers=("5.weight",)),
    )
    return model, grouped(
        Group(index=0, name="0", kind="channel", n_units=6, members=first),
        Group(index=1, name="3", kind="channel", n_units=4, members=second),
    )


def grouped(*groups: Group) -> Groups:
    return Groups(
        groups=groups, frozen=(), equations=(), costs=(), settings=(), sites=(), swaps=(), notes=(), structure=""
    )


def labelled(x: Tensor, classes: int = 3) -> tuple[Tensor, Tensor]:
    return x, torch.arange(len(x)) % classes


MLP_DATA = [labelled(torch.randn(7, 4, generator=torch.Generator().manual_seed(5)))]
CONV_DATA = [labelled(torch.randn(7, 2, 5, 5, generator=torch.Generator().manual_seed(6)))]


def gate_gradients(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], reads: list[tuple[str, list[int]]]
) -> Tensor:
    """The definition, in the slowest way: one example and one gate at a time, by central differences. [N, U]."""
    model = copy.deepcopy(model).double().eval()
    rows = []
    eps = 1e-5
    for x, y in batches:
        for i in range(len(x)):
            row = []
            for name, columns in reads:
                weight = model.get_parameter(name)
                original = weight.detach().clone()
                values = []
                for t in (1 + eps, 1 - eps):
                    with torch.no_grad():
                        weight[:, columns] = original[:, columns] * t
                        values.append(float(F.cross_entropy(model(x[i : i + 1].double()), y[i : i + 1])))
                        weight.copy_(original)
                row.append((values[0] - values[1]) / (2 * eps))
            rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def all_reads(which: str) -> list[tuple[str, list[int]]]:
    if which == "mlp":
        return [("2.weight", [u]) for u in range(5)]
    return [("3.weight", [u]) for u in range(6)] + [("5.weight", list(range(9 * u, 9 * u + 9))) for u in range(4)]


NETWORKS = {"mlp": (mlp, MLP_DATA), "conv": (convnet, CONV_DATA)}


def output_ratio(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Trace of the Hessian of cross-entropy over its squared gradient, in closed form: (1 - |p|^2) / |p - y|^2."""
    model = copy.deepcopy(model).eval()
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    p = model(x).softmax(-1).detach()
    return float((1 - p.square().sum(1)).sum() / (p - F.one_hot(y, 3)).square().sum())


@pytest.mark.parametrize("exact", [False, True], ids=["tapped", "one by one"])
@pytest.mark.parametrize("which", NETWORKS)
def test_scores_follow_their_formulas_on_gradients_by_finite_differences(which: str, exact: bool) -> None:
    make, batches = NETWORKS[which]
    model, groups = make()
    g = gate_gradients(model, batches, all_reads(which))
    n = len(g)
    value = -g + g**2 / 2
    calibrated = -g + output_ratio(model, batches) * g**2 / 2
    expected = {
        "taylor": (-g.mean(0), g.std(0, correction=0) / math.sqrt(n)),
        "absolute_taylor": (g.mean(0).abs(), g.std(0, correction=0) / math.sqrt(n)),
        "squared_taylor": (g.mean(0) ** 2, None),
        "mean_absolute_taylor": (g.abs().mean(0), g.abs().std(0, correction=0) / math.sqrt(n)),
        "fisher": ((g**2).mean(0) / 2, (g**2 / 2).std(0, correction=0) / math.sqrt(n)),
        "obd_calibrated_plain": (calibrated.mean(0), calibrated.std(0, correction=0) / math.sqrt(n)),
        "obd_empirical_plain": (value.mean(0), value.std(0, correction=0) / math.sqrt(n)),
    }
    asked = [criteria.CRITERIA[name]() for name in expected if name in criteria.CRITERIA]
    asked += [criteria.obd(first="plain", curvature=curvature) for curvature in ("calibrated", "empirical")]
    for found in score(model, groups, batches, tasks.classification(), criterion=asked, exact=exact):
        values, errors = expected[found.criterion]
        flat = torch.tensor([v for row in found.values for v in row], dtype=torch.float64)
        torch.testing.assert_close(flat, values, rtol=2e-3, atol=2e-5)
        assert found.n_examples == n
        if errors is not None:
            flat = torch.tensor([v for row in found.errors for v in row], dtype=torch.float64)
            torch.testing.assert_close(flat, errors, rtol=2e-3, atol=2e-5)


# Many architectures: tapped equals one by one


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.rnn = kind(6, 5, 2, batch_first=True, **options)
        self.out = nn.Linear(options.get("proj_size", 5) * (2 if self.rnn.bidirectional else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(x))[0][:, -1])


class TimeFirst(nn.Module):
    """Examples stand on axis 1 inside; as many steps as examples, so that sizes do not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x.transpose(0, 1))))[-1]


class Flattened(nn.Module):
    """All positions of all examples in one axis."""

    def __init__(self, *, minor: bool) -> None:
        super().__init__()
        self.a, self.b, self.minor = nn.Linear(4, 6), nn.Linear(6, 3), minor

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        rows = (x.transpose(0, 1) if self.minor else x).reshape(n * t, c)
        y = self.b(torch.tanh(self.a(rows)))
        return (y.view(t, n, 3).transpose(0, 1) if self.minor else y.view(n, t, 3)).sum(1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.embed(x)).mean(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(7, 6), nn.Linear(6, 6)
        self.out = nn.Linear(6, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.out(h + torch.tanh(self.mix(h))).mean(1)


class Shared(nn.Module):
    """One layer used twice, on different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.b(torch.tanh(self.a(torch.tanh(self.a(x))))))
        return self.c(h).mean(1) + self.c(h[:, 0])


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 6, 2, stride=2)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.out = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.up(torch.tanh(self.down(x))))).mean((2, 3))


class Plain(nn.Module):
    """No modules: matmul, addmm, and a weight that is used transposed (which no tap can follow)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 5) / 2)
        self.bias, self.c = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x @ self.a)
        return torch.tanh(torch.addmm(self.bias, h, self.b)) @ self.c.t()


class SeveralReaders(nn.Module):
    """Two tensors, each read by several weights, in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6)
        self.q, self.k, self.v, self.last, self.more = (nn.Linear(6, 5) for _ in range(5))
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        y = self.q(h).sigmoid() * self.k(h) + self.v(h)
        half = 0.5 * h
        return self.out(y + self.last(half) * self.more(half)).sum(1)


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "lstm": (Recurrent, lambda n: torch.randint(0, 11, (n, 4))),
    "gru": (lambda: Recurrent(nn.GRU), lambda n: torch.randint(0, 11, (n, 4))),
    "rnn": (lambda: Recurrent(nn.RNN, bidirectional=True), lambda n: torch.randint(0, 11, (n, 4))),
    "lstm with projection": (lambda: Recurrent(proj_size=4), lambda n: torch.randint(0, 11, (n, 4))),
    "time first": (TimeFirst, lambda n: torch.randn(n, 7, 4)),
    "rows of examples": (lambda: Flattened(minor=False), lambda n: torch.randn(n, 3, 4)),
    "rows of positions": (lambda: Flattened(minor=True), lambda n: torch.randn(n, 3, 4)),
    "attention": (Attention, lambda n: torch.randn(n, 3, 4)),
    "several readers": (SeveralReaders, lambda n: torch.randn(n, 3, 4)),
    "tied": (Tied, lambda n: torch.randint(0, 7, (n, 4))),
    "shared layer": (Shared, lambda n: torch.randn(n, 3, 4)),
    "transposed convolution": (Transposed, lambda n: torch.randn(n, 2, 4, 4)),
    "no modules": (Plain, lambda n: torch.randn(n, 4)),
}


def test_what_several_weights_read_is_tapped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the numbers of a tap for each of them."""
    torch.manual_seed(3)
    model, taps = SeveralReaders(), []
    groups = couple(trace(model, torch.randn(2, 3, 4)))
    batches = [labelled(torch.randn(5, 3, 4)) for _ in range(2)]
    asked = [criteria.obd(), criteria.mean_replacement(), criteria.wanda(), criteria.snip()]

    def scored() -> list[Scores]:
        taps.clear()
        return score(model, groups, batches, tasks.classification(), criterion=asked)

    watched = _stats._Taps._watched
    monkeypatch.setattr(_stats._Taps, "_watched", lambda *args: taps.append(args) or watched(*args))
    once, n = scored(), len(taps)
    plan = _stats._plan

    def apart(*args: Any, **kwargs: Any) -> Any:
        made = plan(*args, **kwargs)
        return dataclasses.replace(made, alike={name: i for i, name in enumerate(made.alike)})

    monkeypatch.setattr(_stats, "_plan", apart)
    each = scored()
    assert (n, len(taps)) == (2 * 3, 2 * 6)  # batches times taps
    for a, b in zip(once, each, strict=True):
        close(a.values, b.values)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_fast_way_gives_the_numbers_of_the_slow_one(name: str) -> None:
    make, inputs = ARCHITECTURES[name]
    torch.manual_seed(3)
    model = make()
    x = inputs(17)
    classes = 7 if name == "tied" else 3
    batches = [labelled(x[i:j], classes) for i, j in ((0, 7), (7, 14), (14, 15), (15, 17))]
    groups = couple(trace(model, inputs(2)))
    assert groups.groups, "nothing to test"
    asked = [criteria.obd(), criteria.mean_absolute_taylor()]
    fast = score(model, groups, batches, tasks.classification(), criterion=asked)
    slow = score(model, groups, batches, tasks.classification(), criterion=asked, exact=True)
    for a, b in zip(fast, slow, strict=True):
        close(a.values, b.values)
        close(a.errors, b.errors)
    assert max(map(abs, fast[0].values[0])) > 0


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "lstm with projection"])
def test_recurrent_networks_need_no_example_by_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stats, "_one_by_one", lambda *args: pytest.fail("a group was not tapped"))
    make, inputs = ARCHITECTURES[name]
    model = make()
    groups = couple(trace(model, inputs(2)))
    score(model, groups, [labelled(inputs(5))], tasks.classification(), criterion=criteria.obd())


def opened(model: nn.Module, *inputs: Tensor) -> tuple[Any, Any]:
    """(output, output with attention opened up so that taps can be set)."""

    class Opening(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is F.multi_head_attention_forward:
                return _stats._opened(F.linear, args, kwargs)
            return func(*args, **(kwargs or {}))

    plain = model(*inputs)
    with Opening():
        return plain, model(*inputs)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 6, "vdim": 10}, {"add_bias_kv": True}])
def test_opened_attention_computes_what_the_fused_one_does(options: dict[str, Any]) -> None:
    model = nn.MultiheadAttention(8, 2, batch_first=True, **options)
    q, k, v = torch.randn(3, 4, 8), torch.randn(3, 5, options.get("kdim", 8)), torch.randn(3, 5, options.get("vdim", 8))
    for inputs in ((q, k, v), *([(q, q, q)] if "kdim" not in options else [])):
        torch.testing.assert_close(*opened(model, *inputs))


def test_packed_sequences_are_taken_one_by_one() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            lengths = torch.tensor([x.shape[1]] * len(x))
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            return self.out(self.rnn(packed)[1][0])

    model = Packed()
    members = (
        Member(param="rnn.weight_hh_l0", axis=1, units=tuple(range(5)), role="read", readers=("rnn.weight_hh_l0",)),
        Member(param="out.weight", axis=1, units=tuple(range(5)), role="read", readers=("out.weight",)),
    )
    groups = grouped(Group(index=0, name="rnn", kind="hidden", n_units=5, members=members))
    batches = [labelled(torch.randn(7, 3, 4))]
    fast = score(model, groups, batches, tasks.classification(), criterion=criteria.obd())
    slow = score(model, groups, batches, tasks.classification(), criterion=criteria.obd(), exact=True)
    close(fast.values, slow.values)


def test_a_loop_over_examples_gives_the_numbers_of_vmap(monkeypatch: pytest.MonkeyPatch) -> None:
    model, groups = convnet()
    by_vmap = score(model, groups, CONV_DATA, tasks.classification(), criterion=criteria.obd(), exact=True)

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no batching rule")

    monkeypatch.setattr(torch.func, "vmap", refuse)
    by_loop = score(model, groups, CONV_DATA, tasks.classification(), criterion=criteria.obd(), exact=True)
    close(by_vmap.values, by_loop.values)
    close(by_vmap.errors, by_loop.errors)


def test_examples_that_mix_are_taken_one_by_one() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(torch.tanh(self.a(x)))
            return y - 0.5 * y.mean(0)

    model = Mixing()
    members = (
        Member(param="a.weight", axis=0, units=tuple(range(5)), role="write"),
        Member(param="b.weight", axis=1, units=tuple(range(5)), role="read", readers=("b.weight",)),
    )
    groups = grouped(Group(index=0, name="a", kind="neuron", n_units=5, members=members))
    fast = score(model, groups, MLP_DATA, tasks.classification(), criterion=criteria.obd())
    slow = score(model, groups, MLP_DATA, tasks.classification(), criterion=criteria.obd(), exact=True)
    close(fast.values, slow.values)


# Expansions: the declared order, measured


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.GELU()], ids=["tanh", "gelu"])
@pytest.mark.parametrize("name", ["taylor", "obd", "hutchinson"])
def test_the_error_of_an_expansion_shrinks_at_the_declared_order(name: str, activation: nn.Module) -> None:
    model, groups = mlp(activation=activation)
    model = model.double()
    batches = [(x.double(), y) for x, y in MLP_DATA]
    made = {
        "taylor": criteria.taylor(),
        "obd": criteria.obd(first="plain"),
        "hutchinson": criteria.hutchinson(probes=400),
    }[name]
    if name == "hutchinson":  # one unit alone has no off-diagonal: its estimate is exact
        units = tuple(0 if u == 0 else -1 for u in range(5))
        group = groups.groups[0]
        members = tuple(dataclasses.replace(m, units=units) for m in group.members)
        groups = grouped(dataclasses.replace(group, n_units=1, members=members))
    found = score(model, groups, batches, tasks.classification(), criterion=made)
    (x, y), weight = batches[0], model[2].weight
    original = weight.detach().clone()

    def loss(t: float, unit: int) -> float:
        with torch.no_grad():
            weight.copy_(original)
            weight[:, unit] *= 1 - t
            value = float(F.cross_entropy(model(x), y))
            weight.copy_(original)
        return value

    for unit in range(groups.groups[0].n_units):
        a, b = found.linear[0][unit], found.quadratic[0][unit]
        assert found.values[0][unit] == pytest.approx(a + b)
        ts = [0.04, 0.02, 0.01]
        off = [abs(loss(t, unit) - loss(0, unit) - t * a - t * t * b) for t in ts]
        slope = (math.log(off[0]) - math.log(off[2])) / (math.log(ts[0]) - math.log(ts[2]))
        assert slope == pytest.approx(found.order + 1, abs=0.2), (unit, off)


def test_the_hessian_diagonal_is_found_by_random_probes() -> None:
    model, groups = mlp()
    model = model.double()
    batches = [(x.double(), y) for x, y in MLP_DATA]
    (x, y) = batches[0]

    def loss(gates: Tensor) -> Tensor:
        h = torch.tanh(model[0](x))
        return F.cross_entropy(h @ (model[2].weight * gates).T + model[2].bias, y)

    exact = torch.autograd.functional.hessian(loss, torch.ones(5, dtype=torch.float64)).diagonal()
    found = score(model, groups, batches, tasks.classification(), criterion=criteria.hutchinson(probes=3000))
    got = torch.tensor(found.quadratic[0], dtype=torch.float64) * 2
    torch.testing.assert_close(got, exact, atol=0.1 * float(exact.abs().max()), rtol=0)


def by_gates(model: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of the logits by the gates of the five hidden units, [N, C, U], and the logits, in float64."""

    def output(gates: Tensor) -> Tensor:
        return torch.tanh(model[0](x)) @ (model[2].weight * gates).T + model[2].bias

    ones = torch.ones(5)
    return torch.autograd.functional.jacobian(output, ones).double(), output(ones).detach().double()


def test_sampled_curvature_is_the_gauss_newton_diagonal() -> None:
    model, groups = mlp()
    x = MLP_DATA[0][0]
    jacobian, z = by_gates(model, x)
    p = z.softmax(-1)
    hessian = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    expected = torch.einsum("ncu,nck,nku->u", jacobian, hessian, jacobian) / len(x)
    made = criteria.obd(curvature="sampled", draws=500)
    for exact in (False, True):
        found = score(model, groups, MLP_DATA, tasks.classification(), criterion=made, exact=exact)
        torch.testing.assert_close(torch.tensor(found.quadratic[0]).double() * 2, expected, rtol=0.15, atol=2e-3)


def expectation(
    model: nn.Module, groups: Groups, batches: list[tuple[Tensor, Tensor]], *, exact: bool = False
) -> Tensor:
    """The statistic gate_expected of the first group, [U, 4]."""
    needs = ["gate_moments", "gate_expected"]
    stats = _stats.collect(model, groups, batches, tasks.classification(), needs, exact=exact)
    return _stats.of_group(stats, model, groups, 0, needs)["gate_expected"]


@pytest.mark.parametrize("exact", [False, True], ids=["tapped", "one by one"])
def test_what_is_expected_of_a_gate_follows_from_the_prediction_at_half_its_logits(exact: bool) -> None:
    model, groups = mlp()
    x, y = MLP_DATA[0]
    jacobian, z = by_gates(model, x)
    off, softer = z.softmax(-1) - F.one_hot(y, 3), z.softmax(-1) - (z / 2).softmax(-1)
    factor = (off * z).sum() / (softer * z).sum()
    g = torch.einsum("ncu,nc->nu", jacobian, off)
    e = factor * torch.einsum("ncu,nc->nu", jacobian, softer)
    expected = torch.stack([v.mean(0) for v in (e, e * e, g * e, g * g * e)], 1)
    for batches in (MLP_DATA, [(x[:3], y[:3]), (x[3:], y[3:])]):
        torch.testing.assert_close(expectation(model, groups, batches, exact=exact), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("exact", [False, True], ids=["tapped", "one by one"])
def test_the_curvature_along_the_temperature_is_that_of_the_hessian_by_hand(exact: bool) -> None:
    model, groups = mlp()
    x, y = MLP_DATA[0]
    jacobian, z = by_gates(model, x)
    p = z.softmax(-1)
    t = p - (z / 2).softmax(-1)
    hessian = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    curved = torch.einsum("nc,nck,nk->n", t, hessian, t)
    along = torch.einsum("nc,ncu->nu", t, jacobian).square() * (curved / t.square().sum(1).square()).unsqueeze(1)
    share = (curved / t.square().sum(1)).sum() / torch.einsum("ncc->", hessian)
    needs = ["gate_moments", "curvature_ratio", "gate_projected", "projected_share"]
    for batches in (MLP_DATA, [(x[:3], y[:3]), (x[3:], y[3:])]):
        stats = _stats.collect(model, groups, batches, tasks.classification(), needs, exact=exact)
        found = _stats.of_group(stats, model, groups, 0, needs)
        torch.testing.assert_close(found["gate_projected"][:, 0], along.mean(0), rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(found["gate_projected"][:, 1], along.square().mean(0), rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(found["projected_share"], share, rtol=1e-4, atol=1e-8)
        assert 0.3 < float(share) < 1


AT_THE_OUTPUT = ("gate_expected", "gate_projected", "projected_share", "curvature_ratio")


@pytest.mark.parametrize("exact", [False, True], ids=["tapped", "one by one"])
def test_what_is_asked_at_the_output_weighs_an_example_as_that_many_copies_of_it(exact: bool) -> None:
    model, groups = mlp()
    x, y = MLP_DATA[0]
    copies = torch.arange(len(x)) % 4
    task = dataclasses.replace(tasks.classification(), weights=lambda batch: copies.double())
    needs = ["gate_moments", *AT_THE_OUTPUT]
    repeated = [(x.repeat_interleave(copies, 0), y.repeat_interleave(copies))]
    found, expected = (
        _stats.of_group(_stats.collect(model, groups, data, t, needs, exact=exact), model, groups, 0, needs)
        for data, t in ((MLP_DATA, task), (repeated, tasks.classification()))
    )
    for name in AT_THE_OUTPUT:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-9)


def test_the_curvature_of_losses_that_multiply_two_outputs_is_that_by_hand() -> None:
    class Two(nn.Sequential):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a, b, _ = super().forward(x).unbind(1)
            return a, b

    model = Two(*mlp()[0])
    told = couple(trace(model, MLP_DATA[0][0]))
    x, y = MLP_DATA[0]
    task = Task(
        forward=lambda m, batch: m(batch[0]), losses=lambda out, batch: (out[0] * out[1] - batch[1]).square(), name="t"
    )
    needs = ["gate_moments", "curvature_ratio"]
    stats = _stats.collect(model, told, MLP_DATA, task, needs)
    a, b = (v.double() for v in model(x))
    off = 2 * (a * b - y)
    expected = (2 * (a * a + b * b)).sum() / (off.square() * (a * a + b * b)).sum()
    found = _stats.of_group(stats, model, told, 0, needs)["curvature_ratio"]
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=0)


def test_what_the_model_makes_of_a_part_of_its_output_is_not_the_losses_doing() -> None:
    """A model that also returns its hidden layer, of which it makes the logits, is told what one without is."""

    class Telling(nn.Sequential):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first, activation, last = self
            hidden = activation(first(x))
            return last(hidden), hidden

    plain, groups = mlp()
    needs = ["gate_moments", *AT_THE_OUTPUT]
    found, expected = (
        _stats.of_group(_stats.collect(m, groups, MLP_DATA, tasks.classification(), needs), m, groups, 0, needs)
        for m in (Telling(*plain), plain)
    )
    for name in AT_THE_OUTPUT:
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("shape", [(3,), (16, 5), (2, 3, 7)])
def test_signs_are_fair_and_independent(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([_stats._signs(torch.Size(shape), generator).flatten() for _ in range(4000)])
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    second = drawn.T @ drawn / len(drawn)
    torch.testing.assert_close(second, torch.eye(len(second)), rtol=0, atol=5 / math.sqrt(len(drawn)))
    assert float(drawn.mean(0).abs().max()) < 5 / math.sqrt(len(drawn))


def test_with_two_classes_the_default_has_the_whole_gauss_newton_diagonal() -> None:
    """Then all curvature lies along the temperature: no label is left in it."""
    model, _ = mlp()
    model = nn.Sequential(*model[:2], nn.Linear(5, 2))
    groups = couple(trace(model, torch.zeros(2, 4)))
    x, y = MLP_DATA[0][0], MLP_DATA[0][1] % 2
    jacobian, z = by_gates(model, x)
    p = z.softmax(-1)
    hessian = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    expected = torch.einsum("ncu,nck,nku->u", jacobian, hessian, jacobian) / len(x) / 2
    for labels in (y, 1 - y):
        found = score(model, groups, [(x, labels)], tasks.classification(), criterion=criteria.obd())
        torch.testing.assert_close(torch.tensor(found.quadratic[0]).double(), expected, rtol=1e-4, atol=1e-8)


def test_what_was_not_expected_counts_as_far_as_it_is_no_noise() -> None:
    """Averaged over many draws: nothing of pure noise, of a signal its share; weighted by what the units are worth."""
    generator = torch.Generator().manual_seed(0)
    worth = torch.tensor([1.0] * 20 + [0.01] * 200, dtype=torch.float64)
    centre = torch.randn(220, generator=generator, dtype=torch.float64) / 10
    kept = float((worth * centre).square().sum() / (worth.square() * (centre.square() + 0.01)).sum())
    for signal, share in ((0 * centre, 0.0), (centre, kept)):
        found = []
        for _ in range(60):
            e, noise = torch.randn(2, 100, 220, generator=generator, dtype=torch.float64)
            g = e + worth * (signal + noise)
            moments = torch.stack([(g**k).mean(0) for k in (1, 2, 3, 4)], 1)
            expected = torch.stack([v.mean(0) for v in (e, e * e, g * e, g * g * e)], 1)
            found.append(float(_stats.unexpected(moments, expected, torch.tensor(100.0))))
        assert sum(found) / 60 == pytest.approx(share, abs=0.15)
        assert min(found) >= 100 / 2100, "never less than usual"


def test_a_task_without_a_prediction_gives_the_plain_first_order_and_refuses_the_statistic() -> None:
    model, groups = mlp()
    task, data = tasks.regression(), [(MLP_DATA[0][0], torch.randn(7, 3))]
    found = score(model, groups, data, task, criterion=[criteria.obd(), criteria.obd(first="plain")])
    assert found[0].values == found[1].values
    with pytest.raises(MissingStatistic, match="tempered"):
        _stats.collect(model, groups, data, task, ["gate_expected"])


def test_a_model_that_is_surer_than_right_is_seen_through() -> None:
    """Labels drawn at another temperature: then what is expected is what is there, without the noise of labels."""
    model, groups = mlp()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 4, generator=generator)
    with torch.no_grad():
        model[2].weight *= 4
        z = model(x)
    for half, sign in ((z / 2, 1), (z * 1.5, -1)):
        y = torch.multinomial(half.softmax(-1), 1, generator=generator)[:, 0]
        stats = _stats.collect(model, groups, [(x, y)], tasks.classification(), ["gate_moments", "gate_expected"])
        given = _stats.of_group(stats, model, groups, 0, ["gate_moments", "gate_expected"])
        g, gg = given["gate_moments"].unbind(1)[:2]
        e, ee = given["gate_expected"].unbind(1)[:2]
        noise = ((gg - g * g) / len(x)).sqrt()
        assert bool(((g - e).abs() < 4 * noise).all())
        assert float(((ee - e * e) / (gg - g * g)).max()) < 0.2, "far less noisy"
        assert float((e.abs() / noise).max()) > 5, "nothing is tested"
        assert float(_stats._factor(stats)) * sign > 0


def test_matching_outputs_has_curvature_but_no_gradient() -> None:
    model, groups = mlp()
    task = tasks.match_output(model)
    batches = [x for x, _ in MLP_DATA]
    first = score(model, groups, batches, task, criterion=criteria.taylor())
    assert max(map(abs, first.values[0])) < 1e-6
    found = score(model, groups, batches, task, criterion=criteria.obd(curvature="sampled", draws=20))
    assert min(found.values[0]) > 1e-4
    with pytest.raises(MissingStatistic, match="sampled"):
        score(model, groups, batches, task, criterion=criteria.obd())


@pytest.mark.parametrize("batch", [1, 7], ids=["one by one", "at once"])
def test_the_curvature_ratio_is_one_where_probabilities_are_right(batch: int) -> None:
    """Labels drawn from the model: then the squared gradient is the Hessian, on average."""
    model, groups = mlp()
    x = torch.randn(4000 if batch == 7 else 400, 4)
    y = torch.multinomial(model(x).softmax(-1).detach(), 1)[:, 0]
    batches = [(x[i : i + batch * 100], y[i : i + batch * 100]) for i in range(0, len(x), batch * 100)]
    stats = _stats.collect(model, groups, batches, tasks.classification(), ["curvature_ratio"])
    found = float(_stats.of_group(stats, model, groups, 0, ["curvature_ratio"])["curvature_ratio"])
    assert found == pytest.approx(1, abs=0.1 if batch == 7 else 0.3)
    assert found == pytest.approx(output_ratio(model, [(x, y)]), rel=1e-4)


def test_the_curvature_ratio_of_large_outputs_is_estimated() -> None:
    model, groups = mlp()
    model = nn.Sequential(*model[:2], nn.Linear(5, 50))
    stats = _stats.collect(model, groups, MLP_DATA * 40, tasks.classification(), ["curvature_ratio"])
    x, y = MLP_DATA[0]
    p = model(x).softmax(-1).detach()
    exact = float((1 - p.square().sum(1)).sum() / (p - F.one_hot(y, 50)).square().sum())
    found = float(_stats.of_group(stats, model, groups, 0, ["curvature_ratio"])["curvature_ratio"])
    assert found == pytest.approx(exact, rel=0.02)


def test_losses_without_curvature_at_the_output_are_refused_by_name() -> None:
    model, groups = mlp()
    linear = custom(lambda out, b: (out[:, 0] - b[1]).abs())
    with pytest.raises(MissingStatistic, match="empirical"):
        score(model, groups, MLP_DATA, linear, criterion=criteria.obd())
    assert score(model, groups, MLP_DATA, linear, criterion=criteria.obd(curvature="empirical")).values


# Laws


ASKED = {
    "taylor": criteria.taylor,
    "absolute_taylor": criteria.absolute_taylor,
    "squared_taylor": criteria.squared_taylor,
    "mean_absolute_taylor": criteria.mean_absolute_taylor,
    "fisher": criteria.fisher,
    "obd": criteria.obd,
    "magnitude": criteria.magnitude,
}


@settings(max_examples=15)
@given(hidden=st.integers(1, 9), seed=st.integers(0, 1000), exact=st.booleans())
def test_permuting_units_permutes_scores(hidden: int, seed: int, exact: bool) -> None:
    model, groups = mlp(hidden, seed=seed)
    order = torch.randperm(hidden, generator=torch.Generator().manual_seed(seed))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.copy_(model[0].weight[order])
        other[0].bias.copy_(model[0].bias[order])
        other[2].weight.copy_(model[2].weight[:, order])
    asked = [make() for make in ASKED.values()]
    for a, b in zip(
        score(model, groups, MLP_DATA, tasks.classification(), criterion=asked, exact=exact),
        score(other, groups, MLP_DATA, tasks.classification(), criterion=asked, exact=exact),
        strict=True,
    ):
        close((tuple(a.values[0][i] for i in order),), b.values)


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(1, 22), unique=True, max_size=4).map(sorted))
def test_batches_add(cuts: list[int]) -> None:
    model, groups = mlp()
    x, y = labelled(torch.randn(23, 4, generator=torch.Generator().manual_seed(2)))
    edges = [0, *cuts, 23]
    parts = [(x[i:j], y[i:j]) for i, j in itertools.pairwise(edges)]
    asked = [make() for make in ASKED.values()]
    whole = score(model, groups, [(x, y)], tasks.classification(), criterion=asked)
    for a, b in zip(score(model, groups, parts, tasks.classification(), criterion=asked), whole, strict=True):
        close(a.values, b.values)
        close(a.errors, b.errors)
        assert (a.data, a.n_examples) == (b.data, b.n_examples)


def test_statistics_of_two_processes_merge() -> None:
    model, groups = convnet()
    x, y = CONV_DATA[0]
    needs = ["gate_moments", "gate_absolute", "all_gradients", "activation", "input_norm"]
    parts = [
        _stats.collect(model, groups, [batch], tasks.classification(), needs)
        for batch in ((x[:3], y[:3]), (x[3:], y[3:]))
    ]
    whole = _stats.collect(model, groups, [(x, y)], tasks.classification(), needs)
    merged = _stats.merge(*parts)
    empirical = criteria.obd(curvature="empirical")
    a = scores_of(empirical, merged, model, groups)
    close(a.values, scores_of(empirical, whole, model, groups).values)
    for g in range(2):
        left, right = (_stats.of_group(s, model, groups, g, needs) for s in (merged, whole))
        for need in needs:
            torch.testing.assert_close(left[need], right[need], rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="cannot be added"):
        _stats.merge(merged, _stats.collect(model, groups, CONV_DATA, tasks.classification(), ["gate_mean"]))


def test_weights_of_examples_weigh_gradients() -> None:
    model, groups = mlp()
    x, y = MLP_DATA[0]
    task = dataclasses.replace(tasks.classification(), weights=lambda batch: (batch[1] == 1).double() * 3)
    found = score(model, groups, MLP_DATA, task, criterion=criteria.obd())
    chosen = [(x[y == 1], y[y == 1])]
    expected = score(model, groups, chosen, tasks.classification(), criterion=criteria.obd())
    close(found.values, expected.values)
    close(found.errors, expected.errors)


def test_weight_gradients_are_those_of_the_weighted_mean_loss() -> None:
    model, groups = convnet()
    x, y = CONV_DATA[0]
    weight = torch.arange(7).double()
    task = dataclasses.replace(tasks.classification(), weights=lambda b: weight[: len(b[0])])
    for needs in (["write_gradients"], ["write_gradients", "gate_mean"]):
        stats = _stats.collect(model, groups, CONV_DATA, task, needs)
        model.eval()
        loss = (F.cross_entropy(model(x), y, reduction="none") * weight).sum() / weight.sum()
        (grad, bias) = torch.autograd.grad(loss, [model[0].weight, model[0].bias])
        found = _stats.of_group(stats, model, groups, 0, needs)["write_gradients"]
        torch.testing.assert_close(found, torch.cat([grad.flatten(1), bias[:, None]], 1).double(), rtol=1e-4, atol=1e-6)


def test_activation_statistics_are_those_of_what_the_readers_see() -> None:
    model, groups = convnet()
    needs = ["activation", "input_norm", "read_weights"]
    stats = _stats.collect(model, groups, CONV_DATA, tasks.classification(), needs)
    x = CONV_DATA[0][0]
    model.eval()
    seen = model[:3](x).detach()
    found = _stats.of_group(stats, model, groups, 0, needs)
    rows = seen.movedim(1, 0).flatten(1)
    expected = torch.stack([rows.mean(1), rows.square().mean(1), rows.abs().mean(1), (rows == 0).float().mean(1)], 1)
    torch.testing.assert_close(found["activation"], expected.double(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        found["input_norm"], rows.square().mean(1).sqrt().double()[:, None].expand(6, 36), rtol=1e-4, atol=1e-6
    )
    assert found["read_weights"].shape == found["input_norm"].shape


def test_a_dead_unit_scores_zero_where_the_law_is_declared() -> None:
    model, groups = mlp()
    with torch.no_grad():
        model[0].weight[2].zero_()
        model[0].bias[2].zero_()
        model[2].weight[:, 4].zero_()
    for name, make in ASKED.items():
        found = score(model, groups, MLP_DATA, tasks.classification(), criterion=make())
        if name != "magnitude":
            assert found.values[0][2] == pytest.approx(0, abs=1e-12), name
        assert name == "magnitude" or found.values[0][4] == pytest.approx(0, abs=1e-12), name
    assert score(model, groups, MLP_DATA, tasks.classification(), criterion=criteria.magnitude()).values[0][4] > 0


def test_a_group_that_nothing_reads_is_gated_where_it_is_written() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(4, 5), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return (self.q(x) * self.k(x)).sum(-1, keepdim=True) * torch.tensor([1.0, -1.0, 0.5])

    model = Product()
    members = tuple(
        Member(param=f"{m}.{p}", axis=0, units=tuple(range(5)), role="write") for m in "qk" for p in ("weight", "bias")
    )
    groups = grouped(Group(index=0, name="q", kind="head_dim", n_units=5, members=members, gated=False))
    x, y = MLP_DATA[0]
    found = score(model, groups, MLP_DATA, tasks.classification(), criterion=criteria.taylor())
    gates = torch.ones(5, requires_grad=True)
    out = (model.q(x) * model.k(x) * gates).sum(-1, keepdim=True) * torch.tensor([1.0, -1.0, 0.5])
    (grad,) = torch.autograd.grad(F.cross_entropy(out, y), gates)
    close(found.values, ((-grad).tolist(),))


# What is left as it was, and what is refused


def snapshot(model: nn.Module) -> list[object]:
    return [
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else p.grad.clone().tolist() for p in model.parameters()],
        [v.tolist() for v in model.state_dict().values()],
    ]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("fails", [False, True], ids=["ends well", "raises"])
def test_the_model_is_left_as_it_was(fails: bool, exact: bool) -> None:
    model, groups = convnet()
    model[1].train(False)
    model[0].weight.requires_grad_(False)
    model[3].bias.grad = torch.ones(4)
    before = snapshot(model)
    task = tasks.classification()
    asked = [criteria.obd(), criteria.hutchinson(2), criteria.obd(curvature="sampled")]
    with torch.no_grad():
        if fails:
            calls: list[int] = []

            def losses(out: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
                calls.append(1)
                value = F.cross_entropy(out, batch[1], reduction="none")
                return value * float("nan") if len(calls) > 2 else value

            with pytest.raises(NonFinite):
                score(
                    model, groups, CONV_DATA * 3, dataclasses.replace(task, losses=losses), criterion=asked, exact=exact
                )
        else:
            score(model, groups, CONV_DATA, task, criterion=asked, exact=exact)
    assert snapshot(model) == before


def test_frozen_parameters_are_scored_all_the_same() -> None:
    model, groups = convnet()
    expected = score(model, groups, CONV_DATA, tasks.classification(), criterion=criteria.obd())
    model.requires_grad_(False)
    for exact in (False, True):
        found = score(model, groups, CONV_DATA, tasks.classification(), criterion=criteria.obd(), exact=exact)
        close(found.values, expected.values)


def test_train_mode_dropout_and_batch_norm_do_not_matter() -> None:
    model, groups = convnet()
    model = nn.Sequential(*model, nn.Dropout(0.9))
    model.train()
    a = score(model, groups, CONV_DATA, tasks.classification(), criterion=criteria.obd())
    model.eval()
    b = score(model, groups, CONV_DATA, tasks.classification(), criterion=criteria.obd())
    assert a.values == b.values


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_close(dtype: torch.dtype) -> None:
    model, groups = mlp()
    wide = score(model, groups, MLP_DATA, tasks.classification(), criterion=criteria.obd())
    data = [(x.to(dtype), y) for x, y in MLP_DATA]
    for exact in (False, True):
        found = score(model.to(dtype), groups, data, tasks.classification(), criterion=criteria.obd(), exact=exact)
        close(found.values, wide.values, rel=0.03)


def test_autocast_is_safe() -> None:
    model, groups = mlp()
    wide = score(model, groups, MLP_DATA, tasks.classification(), criterion=criteria.obd())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = score(model, groups, MLP_DATA, tasks.classification(), criterion=criteria.obd())
    close(found.values, wide.values, rel=0.05)


def test_batches_of_one_and_dict_batches() -> None:
    model, groups = mlp()
    expected = score(model, groups, MLP_DATA, tasks.classification(), criterion=criteria.obd())
    x, y = MLP_DATA[0]
    single = [examples((x, y), i, i + 1) for i in range(7)]
    close(score(model, groups, single, tasks.classification(), criterion=criteria.obd()).values, expected.values)
    dicts = [{"input": x, "labels": y}]
    for exact in (False, True):
        found = score(model, groups, dicts, tasks.classification(), criterion=criteria.obd(), exact=exact)
        close(found.values, expected.values)


MEAN = tasks.from_mean(lambda out, batch: F.cross_entropy(out, batch[1]))


@pytest.mark.parametrize("exact", [False, True])
def test_a_mean_loss_gives_first_order_without_errors(exact: bool) -> None:
    model, groups = mlp()
    x, y = labelled(torch.randn(9, 4))
    full = score(model, groups, [(x, y)], tasks.classification(), criterion=criteria.taylor())
    parts = [(x[:5], y[:5]), (x[5:], y[5:])]
    found = score(model, groups, parts, MEAN, criterion=criteria.taylor(), exact=exact)
    close(found.values, full.values)
    assert found.errors == ()
    assert full.errors != ()
    assert found.n_examples == 9


def test_a_mean_loss_is_refused_by_what_needs_examples() -> None:
    model, groups = mlp()
    for made in (criteria.obd(), criteria.fisher(), criteria.mean_absolute_taylor()):
        with pytest.raises(MissingStatistic, match="reduction='none'"):
            score(model, groups, MLP_DATA, MEAN, criterion=made)


@pytest.mark.parametrize("need", ["gate_mean", "gate_hessian"])
def test_a_sum_in_place_of_a_mean_is_refused(need: str) -> None:
    model, groups = mlp()
    task = tasks.from_mean(lambda out, batch: F.cross_entropy(out, batch[1], reduction="sum"))
    made = criteria.taylor() if need == "gate_mean" else criteria.hutchinson()
    with pytest.raises(TaskShapeError, match="sum over the batch"):
        score(model, groups, MLP_DATA, task, criterion=made)


def custom(losses: Callable[[Tensor, tuple[Tensor, Tensor]], Tensor]) -> Task:
    return Task(forward=lambda m, b: m(b[0]), losses=losses)


@pytest.mark.parametrize("exact", [False, True])
def test_bad_input_is_refused_by_name(exact: bool) -> None:
    model, groups = mlp()
    obd = criteria.obd()

    def run(batches: object = MLP_DATA, task: Task | None = None, network: nn.Module = model) -> Scores:
        return score(network, groups, batches, task or tasks.classification(), criterion=obd, exact=exact)  # type: ignore[arg-type]

    with pytest.raises(OneShotIterable):
        run(b for b in MLP_DATA)
    with pytest.raises(EmptyData):
        run([])
    with pytest.raises(TaskShapeError, match="reduction='none'"):
        run(task=custom(lambda out, b: F.cross_entropy(out, b[1])))
    with pytest.raises(NonFinite, match=r"group '0', unit 0"):
        run(task=custom(lambda out, b: (out[:, 0] - out[:, 0].detach()).abs().sqrt()))  # loss 0, gradient not
    broken = copy.deepcopy(model)
    broken[0].weight.data[1, 1] = float("inf")
    with pytest.raises(NonFinite, match=r"0\.weight"):
        score(broken, groups, MLP_DATA, tasks.classification(), criterion=criteria.magnitude())
    with pytest.raises(NonFinite):
        run(network=broken)
    with pytest.raises(StaleArtifact):
        score(model, dataclasses.replace(groups, structure="other"), MLP_DATA, tasks.classification(), criterion=obd)
    with pytest.raises(InputError, match="no criterion"):
        score(model, groups, MLP_DATA, tasks.classification(), criterion=[])


def test_criteria_of_weights_read_no_data() -> None:
    model, groups = mlp()

    class Poison:
        def __iter__(self) -> object:
            raise AssertionError("the data was read")

    found = score(model, groups, Poison(), tasks.classification(), criterion=criteria.magnitude())  # type: ignore[arg-type]
    close(found.values, (torch.cat([model[0].weight, model[0].bias[:, None]], 1).norm(dim=1).tolist(),))
    assert (found.n_examples, found.data) == (0, "")


def test_several_criteria_share_one_pass() -> None:
    model, groups = mlp()
    seen: list[int] = []

    class Counted:
        def __iter__(self) -> object:
            seen.append(1)
            return iter(MLP_DATA)

    asked = [make() for make in ASKED.values()]
    together = score(model, groups, Counted(), tasks.classification(), criterion=asked)  # type: ignore[arg-type]
    assert seen == [1]
    for made, found in zip(asked, together, strict=True):
        assert found == score(model, groups, MLP_DATA, tasks.classification(), criterion=made)


def test_the_same_seed_gives_the_same_scores() -> None:
    model, groups = mlp()
    asked = [criteria.hutchinson(2), criteria.obd(curvature="sampled"), criteria.random(3)]
    runs = [score(model, groups, MLP_DATA, tasks.classification(), criterion=asked, seed=s) for s in (4, 4, 5)]
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[2][0]


def test_graphs_are_freed_after_every_batch() -> None:
    model, groups = mlp()
    gc.collect()
    gc.disable()
    try:
        score(model, groups, MLP_DATA * 3, tasks.classification(), criterion=criteria.obd())
        kept = [t for t in gc.get_objects() if type(t) is Tensor and t.grad_fn is not None]
        assert not kept
    finally:
        gc.enable()


def test_progress_is_reported() -> None:
    model, groups = mlp()
    seen: list[tuple[str, int, int]] = []
    score(
        model,
        groups,
        MLP_DATA * 2,
        tasks.classification(),
        criterion=criteria.obd(),
        progress=lambda *a: seen.append(a),
    )
    assert seen == [("score", 1, 2), ("score", 2, 2)]


@pytest.mark.parametrize("name", ["time first", "rows of positions", "rows of examples", "lstm", "attention"])
def test_a_first_look_at_a_few_examples_decides_as_the_whole_batch_would(name: str) -> None:
    make, inputs = ARCHITECTURES[name]
    torch.manual_seed(4)
    model, x = make(), inputs(50)
    groups = couple(trace(model, inputs(2)))
    large = [labelled(x), labelled(x[:7])]
    small = [labelled(x[i : i + 10]) for i in range(0, 50, 10)] + [labelled(x[:7])]
    small = [(x, torch.cat([large[0][1], large[1][1]])[i * 10 : i * 10 + len(x)]) for i, (x, _) in enumerate(small)]
    found = [score(model, groups, data, tasks.classification(), criterion=criteria.obd()) for data in (large, small)]
    slow = score(model, groups, large, tasks.classification(), criterion=criteria.obd(), exact=True)
    close(found[0].values, slow.values)
    close(found[1].values, slow.values)


def test_a_layer_that_is_dead_at_first_does_not_tell_where_its_examples_stand() -> None:
    """As many steps as examples, examples on the second axis, and no gradient in the first batch."""

    class Late(TimeFirst):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.b(torch.tanh(self.a(x.transpose(0, 1)))) - 0.5).sum(0)

    torch.manual_seed(2)
    model, data = Late(), [torch.zeros(7, 7, 4), 5 * torch.randn(7, 7, 4), 5 * torch.randn(5, 7, 4)]
    with torch.no_grad():
        model.a.bias.zero_()
        model.b.bias.zero_()
    groups = couple(trace(model, data[1][:2]))
    batches = [labelled(x) for x in data]
    asked = [criteria.fisher(), criteria.taylor()]
    fast = score(model, groups, batches, tasks.classification(), criterion=asked)
    slow = score(model, groups, batches, tasks.classification(), criterion=asked, exact=True)
    for a, b in zip(fast, slow, strict=True):
        close(a.values, b.values)
    assert max(map(abs, fast[0].values[0])) > 0


def test_a_batch_that_cannot_be_sliced_is_checked_as_a_whole() -> None:
    class TimeFirstInput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x))).mean(0)

    model, x = TimeFirstInput(), torch.randn(40, 36, 4)
    groups = couple(trace(model, x[:, :2]))
    batches = [(x, torch.arange(36) % 3)]
    found = score(model, groups, batches, tasks.classification(), criterion=criteria.obd())
    turned = [(x.transpose(0, 1), torch.arange(36) % 3)]
    task = dataclasses.replace(tasks.classification(), forward=lambda m, b: m(b[0].transpose(0, 1)))
    close(found.values, score(model, groups, turned, task, criterion=criteria.obd(), exact=True).values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("exact", [False, True], ids=["tapped", "one by one"])
def test_autocast_inside_the_forward_of_a_task_is_safe(dtype: torch.dtype, exact: bool) -> None:
    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return model(batch[0])

    model, groups = convnet()
    asked = [criteria.obd(first="plain"), criteria.snip(), criteria.wanda()][: 2 if exact else 3]
    task = dataclasses.replace(tasks.classification(), forward=forward)
    wide = score(model, groups, CONV_DATA, tasks.classification(), criterion=asked, exact=exact)
    for a, b in zip(score(model, groups, CONV_DATA, task, criterion=asked, exact=exact), wide, strict=True):
        assert all(math.isfinite(v) for row in a.values for v in row)
        close(a.values, b.values, rel=0.05)


def test_a_gradient_that_is_not_finite_is_named_with_its_batch() -> None:
    model, groups = mlp()
    x, y = MLP_DATA[0]
    far = x.clone()
    far[2] = 1e30

    def losses(out: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        big = batch[0].abs().amax(1) > 1e20
        # The slope of a root is infinite at 0, and finite elsewhere.
        return ((out[:, 0] - out[:, 0].detach()).abs() + (~big).to(out)).sqrt() + out[:, 1].square()

    with pytest.raises(NonFinite, match="batch 1"):
        score(model, groups, [(x, y), (far, y)], custom(losses), criterion=criteria.obd(curvature="empirical"))
    with pytest.raises(NonFinite, match="the gradient of"):
        score(model, groups, [(far, y)], custom(losses), criterion=criteria.snip())


def test_a_loss_that_is_not_finite_is_named_with_its_example() -> None:
    model, groups = mlp()
    x, y = MLP_DATA[0]
    broken = x.clone()
    broken[4, 0] = float("nan")
    for exact in (False, True):
        with pytest.raises(NonFinite, match="batch 1, example 4"):
            score(
                model,
                groups,
                [(x, y), (broken, y)],
                tasks.classification(),
                criterion=criteria.taylor(),
                exact=exact,
            )


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_an_uneven_last_batch_counts_by_its_examples(size: int) -> None:
    model, groups = convnet()
    x, y = CONV_DATA[0]
    parts = list(zip(x.split(size), y.split(size), strict=True))
    assert len(parts[-1][0]) != size or size == 1
    asked = [criteria.obd(), criteria.snip(), criteria.wanda()]
    for a, b in zip(
        score(model, groups, parts, tasks.classification(), criterion=asked),
        score(model, groups, CONV_DATA, tasks.classification(), criterion=asked),
        strict=True,
    ):
        close(a.values, b.values)
