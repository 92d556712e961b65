"""What a model costs, as an exact integer function of the kept counts.

The cost is a sum of terms, each a coefficient times a product of extents that are linear in the counts: MACs are
bilinear in coupled widths (halving every width of a chain saves 75 %, not 50 %). Nothing here approximates.

Index conventions: g group, e extent, t term, c kind of cost (macs, params, memory).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.errors import InputError
from secateur.schema.budget import Budget
from secateur.schema.costs import Costs
from secateur.schema.groups import CostTerm, Extent, Groups

KINDS = ("macs", "params", "memory")


def cost(terms: Sequence[CostTerm], counts: Sequence[int]) -> Costs:
    """The cost of the model with `counts[g]` units kept in group g: exact integers.

    Raises:
        InputError: an extent that is no whole number at these counts (they break a count equation).
    """
    macs = params = memory = 0
    for term in terms:
        size = term.coefficient
        for extent in term.extents:
            size *= _length(extent, counts, term)
        if term.what == "macs":
            macs += size
        else:
            memory += size * term.bytes_per
            params += size if term.what == "params" else 0
    return Costs(macs=macs, params=params, memory=memory)


def _length(extent: Extent, counts: Sequence[int], term: CostTerm) -> int:
    total = extent.fixed + sum(multiplicity * counts[group] for group, multiplicity in extent.terms)
    length, rest = divmod(total, extent.divisor)
    if rest:
        raise InputError(
            "these counts give an axis a length that is no whole number",
            where=f"{term.where} ({term.op})",
            expected=f"a multiple of {extent.divisor}",
            got=total,
            todo="make the plan with sc.plan, or take counts that satisfy groups.equations",
        )
    return length


def full_counts(groups: Groups) -> tuple[int, ...]:
    """The counts of the dense model."""
    return tuple(group.n_units for group in groups.groups)


def carried(groups: Groups) -> tuple[Costs, ...]:
    """[group]: the part of the dense cost that runs through its units: what would go if all of them went, alone.

    What two groups bound, one its rows and the other its columns, counts for both: the parts add up to more than the
    whole.
    """
    full = full_counts(groups)
    parts = [{"macs": Fraction(), "params": Fraction(), "memory": Fraction()} for _ in groups.groups]
    for term in groups.costs:
        dense = _product(term, full)
        for group in {g for extent in term.extents for g, _ in extent.terms}:
            gone = dense - _product(term, [0 if i == group else n for i, n in enumerate(full)])
            if term.what != "buffers":
                parts[group][term.what] += gone
            parts[group]["memory"] += gone * term.bytes_per
    return tuple(Costs(**{kind: int(value) for kind, value in part.items()}) for part in parts)


def _product(term: CostTerm, counts: Sequence[int]) -> Fraction:
    size = Fraction(term.coefficient)
    for extent in term.extents:
        size *= Fraction(extent.fixed + sum(m * counts[g] for g, m in extent.terms), extent.divisor)
    return size


def fractions(groups: Groups, counts: Sequence[int]) -> dict[str, float]:
    """What is kept of each cost, {"macs", "params", "memory"}; 1.0 where the dense cost is 0."""
    before, after = cost(groups.costs, full_counts(groups)), cost(groups.costs, counts)
    return ratio(after, before)


def ratio(after: Costs, before: Costs) -> dict[str, float]:
    """Each cost of `after` as a fraction of `before`; 1.0 where that is 0."""
    pairs = zip(KINDS, _tuple(after), _tuple(before), strict=True)
    return {kind: a / b if b else 1.0 for kind, a, b in pairs}


def limits(budget: Budget, full: Costs) -> dict[str, int]:
    """The largest cost that meets the budget, for each kind that it names.

    The fraction is read as the decimal number that the user wrote: 0.7 of 10 is 7, though the float is below 0.7. And
    a fraction that is itself a quotient of costs (`BudgetUnreachable.least`) allows the cost it was made from.
    """
    named = zip(KINDS, (budget.macs, budget.params, budget.memory), _tuple(full), strict=True)
    return {kind: _limit(float(kept), dense) for kind, kept, dense in named if kept is not None}


def _limit(kept: float, dense: int) -> int:
    most = int(Fraction(repr(kept)) * dense)
    return most + 1 if dense and (most + 1) / dense <= kept else most


def within(costs: Costs, limit: Mapping[str, int]) -> bool:
    """Whether every limited kind of cost meets its limit."""
    return all(value <= limit[kind] for kind, value in zip(KINDS, _tuple(costs), strict=True) if kind in limit)


def _tuple(costs: Costs) -> tuple[int, int, int]:
    return costs.macs, costs.params, costs.memory


# The same function as arrays, for searches that evaluate it thousands of times


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compiled:
    """Cost terms as arrays; terms with the same extents are one.

    Attributes:
        fixed, divisor: [E].  matrix: [E, G]; an extent is (fixed + matrix @ k) / divisor.
        factors: [T, D] indices of extents, padded with the extent that is always 1.
        coefficients: [T, C].
        real_fixed, real_matrix, real_coefficients: the same in floating point, extents divided.
    """

    fixed: NDArray[Any]
    matrix: NDArray[Any]
    divisor: NDArray[Any]
    factors: NDArray[np.intp]
    coefficients: NDArray[Any]
    real_fixed: NDArray[np.float64]
    real_matrix: NDArray[np.float64]
    real_coefficients: NDArray[np.float64]


def compile_terms(terms: Sequence[CostTerm], full: Sequence[int]) -> Compiled:
    """Arrays for `totals` and `gradient`. Python integers where 64 bits would not do for the `full` counts."""
    one = Extent(1)
    extents: dict[Extent, int] = {one: 0}
    merged: dict[tuple[int, ...], list[int]] = {}
    for term in terms:
        key = tuple(sorted(extents.setdefault(extent, len(extents)) for extent in term.extents if extent != one))
        row = merged.setdefault(key, [0, 0, 0])
        row[0] += term.coefficient if term.what == "macs" else 0
        row[1] += term.coefficient if term.what == "params" else 0
        row[2] += term.coefficient * term.bytes_per if term.what != "macs" else 0
    depth = max((len(key) for key in merged), default=0) or 1
    total = cost(terms, full)
    # Extents are not negative and grow with the counts, so no partial sum exceeds the dense cost by much.
    dtype: Any = np.int64 if max(_tuple(total)) < 2**60 else object
    matrix = np.zeros((len(extents), len(full)), dtype)
    for extent, row_index in extents.items():
        for group, multiplicity in extent.terms:
            matrix[row_index, group] += multiplicity
    fixed = np.array([extent.fixed for extent in extents], dtype)
    divisor = np.array([extent.divisor for extent in extents], dtype)
    coefficients = np.array(list(merged.values()), dtype).reshape(len(merged), 3)
    return Compiled(
        fixed=fixed,
        matrix=matrix,
        divisor=divisor,
        factors=np.array([key + (0,) * (depth - len(key)) for key in merged], np.intp).reshape(len(merged), depth),
        coefficients=coefficients,
        real_fixed=fixed.astype(np.float64) / divisor.astype(np.float64),
        real_matrix=matrix.astype(np.float64) / divisor.astype(np.float64)[:, None],
        real_coefficients=coefficients.astype(np.float64),
    )


def totals(compiled: Compiled, counts: NDArray[Any] | Sequence[int]) -> NDArray[Any]:
    """Costs [..., C] at counts [..., G] that satisfy the equations; exact."""
    k = np.asarray(counts).astype(compiled.matrix.dtype)
    extents = (k @ compiled.matrix.T + compiled.fixed) // compiled.divisor
    products: NDArray[Any] = np.multiply.reduce(extents[..., compiled.factors], axis=-1)
    result: NDArray[Any] = products @ compiled.coefficients
    return result


def changes(
    compiled: Compiled, counts: Sequence[int], groups: Sequence[int], points: NDArray[np.int64]
) -> NDArray[Any]:
    """How the costs change, [P, C], if only `groups` change, to each of `points` [P, len(groups)]; exact."""
    k = np.asarray(counts).astype(compiled.matrix.dtype)
    columns = compiled.matrix[:, list(groups)]
    moving = np.flatnonzero(columns.any(axis=1))
    terms = np.isin(compiled.factors, moving).any(axis=1)  # the others cost what they did
    raw = k @ compiled.matrix.T + compiled.fixed
    extents = np.tile(raw, (len(points) + 1, 1))
    extents[1:, moving] += (points.astype(k.dtype) - k[list(groups)]) @ columns[moving].T
    extents //= compiled.divisor
    products = np.multiply.reduce(extents[:, compiled.factors[terms]], axis=-1)
    sums: NDArray[Any] = products @ compiled.coefficients[terms]
    difference: NDArray[Any] = sums[1:] - sums[0]
    return difference


def gradient(
    compiled: Compiled, counts: NDArray[Any] | Sequence[int], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Partial derivatives [G] of the weighted cost, weights [C], with respect to the counts, at any real counts."""
    lengths = compiled.real_matrix @ np.asarray(counts, np.float64) + compiled.real_fixed
    factors, depth = lengths[compiled.factors], compiled.factors.shape[1]
    ahead = compiled.real_coefficients @ weights  # coefficient times the factors to the left of the present one
    behind = np.ones_like(factors)
    for d in range(depth - 2, -1, -1):
        behind[:, d] = behind[:, d + 1] * factors[:, d + 1]
    by_extent = np.zeros(len(lengths))
    for d in range(depth):
        by_extent += np.bincount(compiled.factors[:, d], ahead * behind[:, d], len(lengths))
        ahead = ahead * factors[:, d]
    result: NDArray[np.float64] = by_extent @ compiled.real_matrix
    return result
