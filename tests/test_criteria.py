"""Every criterion in the table: its formula written out another way, its declarations, and its laws."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur import _stats, criteria
from secateur.criteria import CRITERIA
from secateur.errors import InputError
from secateur.schema.members import Criterion

ALL: dict[str, Criterion] = {
    **{name: make() for name, make in CRITERIA.items()},
    "magnitude_l1": criteria.magnitude(p=1),
    "magnitude_all": criteria.magnitude(of="all"),
    **{
        f"obd_{curvature}_{first}": criteria.obd(first=first, curvature=curvature, draws=2)
        for curvature in ("projected", "combined", "calibrated", "empirical", "sampled")
        for first in ("expected", "plain")
    },
    "obs_damped": criteria.obs(damping=1e6),
    "weight_taylor_absolute": criteria.weight_taylor("absolute"),
    "weight_taylor_squared": criteria.weight_taylor("squared"),
}


def statistics(n_units: int = 6, seed: int = 0, examples: int = 40) -> tuple[dict[str, Tensor], Tensor]:
    """Made-up statistics of one group that fit together, and the gate gradients they came from [N, U]."""
    stats, g, _, _ = with_parts(n_units, seed, examples)
    return stats, g


def with_parts(n_units: int = 6, seed: int = 0, examples: int = 40) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """Statistics, and what they came from, [N, U] each: gate gradients, expected ones, squares of drawn ones."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    g = 0.3 * randn(examples, n_units) + 0.1 * randn(n_units)
    e = 0.05 * randn(examples, n_units) + 0.3 * g
    s = (0.3 * randn(examples, n_units)).square()
    x = randn(examples, n_units).relu()
    stats = {
        "units": torch.arange(3, 3 + n_units),
        "n": torch.tensor(float(examples), dtype=torch.float64),
        "gate_mean": g.mean(0),
        "gate_moments": torch.stack([(g**k).mean(0) for k in (1, 2, 3, 4)], 1),
        "gate_absolute": g.abs().mean(0),
        "curvature_ratio": torch.tensor(0.6, dtype=torch.float64),
        "gate_expected": torch.stack([v.mean(0) for v in (e, e * e, g * e, g * g * e)], 1),
        "gate_unexpected": torch.tensor(0.3, dtype=torch.float64),
        "gate_sampled": torch.stack([v.mean(0) for v in (s, s * s, g * s, g * g * s, e * s)], 1),
        "gate_projected": torch.stack([v.mean(0) for v in (s, s * s, g * s, g * g * s, e * s)], 1),
        "projected_share": torch.tensor(0.7, dtype=torch.float64),
        "gate_hessian": torch.stack([randn(n_units), randn(n_units).square()], 1),
        "activation": torch.stack([x.mean(0), x.square().mean(0), x.abs().mean(0), (x == 0).double().mean(0)], 1),
        "input_norm": randn(n_units, 4).abs(),
        "gate_shift": randn(n_units),
        "gate_samples": g[:9] / 3,
        "feature_rank": 4 * randn(n_units).abs(),
    }
    for role in _stats.ROLES:
        stats[f"{role}_weights"] = randn(n_units, 4)
        stats[f"{role}_gradients"] = randn(n_units, 4)
        stats[f"{role}_flow"] = randn(n_units, 4).abs()
        stats[f"{role}_hessian_products"] = randn(n_units, 4)
    return stats, g, e, s


@pytest.mark.parametrize("name", ALL)
def test_declarations_are_complete(name: str) -> None:
    made = ALL[name]
    assert re.search(r"\d{4}|baseline", made.source), "no year in the source"
    assert made.unit in ("nats", "a.u.")
    for need in made.needs:
        assert need.partition("/")[0] in (*_stats.FREE, *_stats.PASS)
    assert made.order == 0 or made.unit == "nats"
    doc = inspect.getdoc(CRITERIA.get(name, lambda: None)) or ""
    if name in CRITERIA:
        assert "score[u]" in doc or "a[u]" in doc, "no formula in the docstring"


@pytest.mark.parametrize("name", ALL)
def test_a_criterion_uses_what_it_declares_and_nothing_else(name: str) -> None:
    made = ALL[name]
    stats, _ = statistics()
    for declared in (made.needs, (*made.needs, *made.wants)):
        given_ = {k.partition("/")[0] for k in declared} | {"units", "n"}
        found = made.compute({k: v for k, v in stats.items() if k in given_})
        assert found["value"].shape == (6,)
        assert found["value"].dtype == torch.float64
        for values in found.values():
            assert values.shape == (6,)
            assert bool(torch.isfinite(values).all())
        if "linear" in found:
            torch.testing.assert_close(found["linear"] + found["quadratic"], found["value"])
        if made.unit == "a.u.":
            assert "error" not in found


@settings(max_examples=25)
@given(name=st.sampled_from(sorted(set(ALL) - {"random"})), n_units=st.integers(1, 12), seed=st.integers(0, 99))
def test_permuting_units_permutes_scores(name: str, n_units: int, seed: int) -> None:
    stats, _ = statistics(n_units, seed)
    order = torch.randperm(n_units, generator=torch.Generator().manual_seed(seed))
    moved = {k: v[:, order] if k == "gate_samples" else v[order] if v.ndim else v for k, v in stats.items()}
    for key, values in ALL[name].compute(stats).items():
        torch.testing.assert_close(ALL[name].compute(moved)[key], values[order], msg=key)


def test_standard_errors_are_those_of_the_mean_over_examples() -> None:
    stats, g = statistics()

    def error(each: Tensor) -> Tensor:
        return each.std(0, correction=0) / math.sqrt(len(each))

    expected = {
        "taylor": error(-g),
        "absolute_taylor": error(g),
        "mean_absolute_taylor": error(g.abs()),
        "fisher": error(g.square() / 2),
    }
    for name, values in expected.items():
        torch.testing.assert_close(ALL[name].compute(stats)["error"], values)


@pytest.mark.parametrize("curvature", ["projected", "combined", "calibrated", "empirical", "sampled"])
@pytest.mark.parametrize("first", ["expected", "plain"])
def test_obd_is_a_mean_over_examples_with_the_error_of_that_mean(first: str, curvature: str) -> None:
    stats, g, e, s = with_parts()
    square = {
        "projected": 0.3 * 0.6 * g * g + s,
        "combined": (0.6 * g * g + s) / 2,
        "calibrated": 0.6 * g * g,
        "empirical": g * g,
        "sampled": s,
    }[curvature]
    each = -g + square / 2 if first == "plain" else -(0.7 * e + 0.3 * g) + square / 2
    found = ALL[f"obd_{curvature}_{first}"].compute(stats)
    torch.testing.assert_close(found["value"], each.mean(0))
    torch.testing.assert_close(found["error"], each.std(0, correction=0) / math.sqrt(len(g)))
    torch.testing.assert_close(found["quadratic"], square.mean(0) / 2)


def test_obd_does_with_what_the_task_can_give() -> None:
    for made, second in (("combined", "gate_sampled"), ("projected", "gate_projected")):
        stats, _ = statistics()
        for lacking, same in ((second, "obd_calibrated_expected"), ("gate_expected", "obd_calibrated_plain")):
            del stats[lacking]
            for key, values in ALL[f"obd_{made}_expected"].compute(stats).items():
                assert torch.equal(values, ALL[same].compute(stats)[key])


def w_of(stats: dict[str, Tensor]) -> list[list[float]]:
    rows: list[list[float]] = stats["write_weights"].tolist()
    return rows


def lamp_by_hand(stats: dict[str, Tensor]) -> list[float]:
    norms = [sum(v * v for v in row) for row in w_of(stats)]
    return [a / sum(b for b in norms if b >= a) for a in norms]


def obs_by_hand(stats: dict[str, Tensor], damping: float) -> list[float]:
    """With the whole inverse, U x U."""
    g = stats["gate_samples"]
    fisher = g.T @ g
    damped = damping * fisher.diagonal().mean()
    inverse = torch.linalg.inv(fisher + damped * torch.eye(len(fisher), dtype=fisher.dtype))
    values: list[float] = (1 / (2 * inverse.diagonal()) - damped / 2).tolist()
    return values


def products(stats: dict[str, Tensor], a: str, b: str) -> list[list[float]]:
    return [
        [x * y for x, y in zip(row, other, strict=True)]
        for row, other in zip(stats[a].tolist(), stats[b].tolist(), strict=True)
    ]


BY_HAND: dict[str, Callable[[dict[str, Tensor]], list[float]]] = {
    "magnitude": lambda s: [math.sqrt(sum(v * v for v in row)) for row in w_of(s)],
    "magnitude_l1": lambda s: [sum(abs(v) for v in row) for row in w_of(s)],
    "geometric_median": lambda s: [sum(math.dist(a, b) for b in w_of(s)) for a in w_of(s)],
    "lamp": lamp_by_hand,
    "bn_scale": lambda s: [sum(abs(v) for v in row) / 4 for row in s["scale_weights"].tolist()],
    "snip": lambda s: [
        sum(abs(a * b) for a, b in zip(row, grad, strict=True))
        for row, grad in zip(w_of(s), s["write_gradients"].tolist(), strict=True)
    ],
    "wanda": lambda s: [
        sum(abs(a) * b for a, b in zip(row, norm, strict=True))
        for row, norm in zip(s["read_weights"].tolist(), s["input_norm"].tolist(), strict=True)
    ],
    "mean_activation": lambda s: [row[2] for row in s["activation"].tolist()],
    "apoz": lambda s: [1 - row[3] for row in s["activation"].tolist()],
    "fluctuation": lambda s: [
        (a[1] - a[0] ** 2) * sum(v * v for v in row)
        for a, row in zip(s["activation"].tolist(), s["read_weights"].tolist(), strict=True)
    ],
    "hutchinson": lambda s: [
        -a + h[0] / 2 for a, h in zip(s["gate_mean"].tolist(), s["gate_hessian"].tolist(), strict=True)
    ],
    "obs": lambda s: obs_by_hand(s, 0.1),
    "obs_damped": lambda s: (s["gate_samples"].square().sum(0) / 2).tolist(),  # Fisher, where damping is all
    "hrank": lambda s: s["feature_rank"].tolist(),
    "synflow": lambda s: [sum(row) for row in s["write_flow"].tolist()],
    "grasp": lambda s: [sum(row) for row in products(s, "write_weights", "write_hessian_products")],
    "weight_taylor": lambda s: [-sum(row) for row in products(s, "write_weights", "write_gradients")],
    "weight_taylor_absolute": lambda s: [abs(sum(row)) for row in products(s, "write_weights", "write_gradients")],
    "weight_taylor_squared": lambda s: [
        sum(v * v for v in row) for row in products(s, "write_weights", "write_gradients")
    ],
    "mean_replacement": lambda s: (s["gate_shift"] - s["gate_mean"]).tolist(),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_values_follow_the_formula(name: str) -> None:
    stats, _ = statistics()
    assert ALL[name].compute(stats)["value"].tolist() == pytest.approx(BY_HAND[name](stats), rel=1e-5)


def test_lamp_gives_one_to_the_largest_and_orders_ties_by_index() -> None:
    stats, _ = statistics(4)
    stats["write_weights"] = torch.tensor([[1.0, 0], [0, 1.0], [2.0, 0], [0, 0]], dtype=torch.float64)
    assert criteria.lamp().compute(stats)["value"].tolist() == pytest.approx([1 / 6, 1 / 5, 1.0, 0.0])


def test_random_depends_on_the_seed_and_the_unit() -> None:
    stats, _ = statistics()
    a, b, c = (criteria.random(s).compute(stats)["value"] for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert len(set(a.tolist())) == 6


@pytest.mark.parametrize(
    "make",
    [
        lambda: criteria.magnitude(p=0),
        lambda: criteria.obd(curvature="other"),  # type: ignore[arg-type]
        lambda: criteria.obd(curvature="sampled", draws=0),
        lambda: criteria.obd(first="other"),  # type: ignore[arg-type]
        lambda: criteria.hutchinson(probes=0),
        lambda: criteria.obs(samples=0),
        lambda: criteria.obs(damping=0),
        lambda: criteria.weight_taylor("other"),  # type: ignore[arg-type]
    ],
)
def test_options_without_meaning_are_refused(make: Callable[[], Criterion]) -> None:
    with pytest.raises(InputError):
        make()
