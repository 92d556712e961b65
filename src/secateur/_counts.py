"""Integer constraints on kept counts: who is feasible, what is nearest, and which units must go together.

A system is n_units, least counts and `Equation`s (equalities and moduli: `chunk(3)`, `C // heads`, one `hidden_size`,
alignment of kernels). It falls into components of groups that share equations. The integer solutions of a component
are a lattice, k = origin + z @ basis. Where its points inside the bounds can be listed, which is nearly always (equal
counts and multiples of eight leave one direction), the best is found by looking at all of them. Otherwise a
mixed-integer program is solved to optimality (HiGHS through scipy) and its answer checked in integers.

Index conventions: g group, i group inside a component, z coordinate of the lattice.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.errors import InputError, NonFinite, StaleArtifact, Unsatisfiable
from secateur.schema.groups import Equation, Groups
from secateur.schema.problem import Problem
from secateur.schema.scores import Scores

Matrix = list[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What kept counts must satisfy: least[g] <= k[g] <= n_units[g], and every equation."""

    n_units: tuple[int, ...]
    least: tuple[int, ...]
    equations: tuple[Equation, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """Groups that share equations, and the lattice of integers that solve these (bounds apart).

    Attributes:
        origin: one solution; None where the equations have none in integers.
        basis: independent directions in echelon form, [z, i]; empty = `origin` is the only solution.
    """

    groups: tuple[int, ...]
    equations: tuple[Equation, ...]
    origin: tuple[int, ...] | None
    basis: tuple[tuple[int, ...], ...]


def system(problem: Problem) -> System:
    """The constraints of a problem."""
    return System(n_units=problem.n_units, least=problem.least, equations=problem.equations, names=problem.names)


def system_of(groups: Groups, least: int = 1) -> System:
    """The constraints that a model has by itself."""
    n_units = tuple(group.n_units for group in groups.groups)
    return System(
        n_units=n_units,
        least=tuple(min(max(least, group.least), group.n_units) for group in groups.groups),
        equations=groups.equations,
        names=tuple(group.name for group in groups.groups),
    )


def residue(equation: Equation, counts: Sequence[int] | Mapping[int, int]) -> int:
    """0 where the counts satisfy the equation: its left side, modulo `modulus` if there is one."""
    value = equation.constant + sum(coefficient * counts[group] for group, coefficient in equation.terms)
    return value % equation.modulus if equation.modulus else value


def satisfied(constraints: System, counts: Sequence[int]) -> bool:
    """Whether the counts lie in their bounds and satisfy every equation."""
    bounded = all(a <= k <= n for a, k, n in zip(constraints.least, counts, constraints.n_units, strict=True))
    return bounded and not any(residue(equation, counts) for equation in constraints.equations)


def check(constraints: System) -> None:
    """Nothing, if some counts are feasible.

    Raises:
        Unsatisfiable: naming a smallest set of equations that contradict each other (or the bounds).
    """
    for component in components(constraints):
        if _solve(component, constraints.least, constraints.n_units, _no_preference) is None:
            raise _unsatisfiable(constraints, component)


def project(
    constraints: System | Problem,
    target: Sequence[float] | NDArray[Any],
    *,
    lower: Sequence[int] | None = None,
    upper: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """The feasible counts nearest to `target`: the least  sum_g |k[g] - target[g]| / n_units[g].  Ties keep more.

    Args:
        lower, upper: further bounds, [group].

    Raises:
        Unsatisfiable: no counts are feasible; the equations are named.
    """
    constraints = constraints if isinstance(constraints, System) else system(constraints)
    goal = np.asarray(target, np.float64)
    if goal.shape != (len(constraints.n_units),):
        raise InputError("one count per group is needed", expected=len(constraints.n_units), got=goal.shape)
    return _assemble(constraints, _Nearest(goal, _weights(constraints)), lower, upper)


def minimise(constraints: System, prices: Sequence[float] | NDArray[np.float64]) -> tuple[int, ...]:
    """Feasible counts with the least  sum_g prices[g] k[g].

    Raises:
        Unsatisfiable: no counts are feasible; the equations are named.
    """
    return _assemble(constraints, _Cheapest(np.asarray(prices, np.float64)), None, None)


def with_count(constraints: System, group: int, count: int) -> tuple[int, ...]:
    """Feasible counts with k[group] as near to `count` as can be, and all others as full as they then can be.

    Raises:
        Unsatisfiable: no counts are feasible; the equations are named.
    """
    weights = np.zeros(len(constraints.n_units))
    weights[group] = 1.0
    goal = np.array(constraints.n_units, np.float64)
    goal[group] = count
    reached = _assemble(constraints, _Nearest(goal, weights), None, None)[group]
    bounds = [list(constraints.least), list(constraints.n_units)]
    bounds[0][group] = bounds[1][group] = reached
    return _assemble(constraints, _Nearest(goal, _weights(constraints)), *bounds)


def move(constraints: System, counts: Sequence[int], group: int, direction: int) -> tuple[int, ...] | None:
    """The smallest change that takes units of `group` away (direction -1) or gives some back (+1).

    No other group moves the other way; the sum of the relative changes is least.

    Returns:
        The change of every group's count; None where the equations or bounds allow none.
    """
    component = next(c for c in components(constraints) if group in c.groups)
    least, most = list(constraints.least), list(constraints.n_units)
    for g in component.groups:
        if direction < 0:
            most[g] = counts[g] - (g == group)
        else:
            least[g] = counts[g] + (g == group)
    objective = _Nearest(np.array(counts, np.float64), _weights(constraints))
    found = _solve(component, least, most, objective)
    if found is None:
        return None
    change = [0] * len(counts)
    for g, k in zip(component.groups, found, strict=True):
        change[g] = k - counts[g]
    return tuple(change)


def removal_order(groups: Groups, scores: Scores) -> tuple[tuple[int, ...], ...]:
    """[group][j]: the unit that goes j-th: ascending score, ties by unit index.

    Raises:
        StaleArtifact: scores of another model.  NonFinite: a score that is no finite number.
    """
    sizes = tuple(len(values) for values in scores.values)
    n_units = tuple(group.n_units for group in groups.groups)
    if sizes != n_units or (scores.structure and scores.structure != groups.structure):
        raise StaleArtifact(
            "the scores belong to another model",
            expected=f"{len(n_units)} groups of {list(n_units)[:8]} units, structure {groups.structure[:12]}",
            got=f"{len(sizes)} groups of {list(sizes)[:8]} units, structure {scores.structure[:12]}",
            todo="score the model that these groups were found in",
        )
    for group, values in zip(groups.groups, scores.values, strict=True):
        for unit, value in enumerate(values):
            if not math.isfinite(value):
                raise NonFinite(
                    "a score is not a finite number",
                    where=f"{group.name}, unit {unit} ({scores.criterion})",
                    got=value,
                    todo="look at the gradients and weights of this unit; it cannot be ranked",
                )
    return tuple(tuple(sorted(range(len(values)), key=values.__getitem__)) for values in scores.values)


def kept_units(order: Sequence[Sequence[int]], counts: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """[group]: the units that stay, ascending, if the first ones of the removal order go and `counts` remain."""
    return tuple(tuple(sorted(units[len(units) - k :])) for units, k in zip(order, counts, strict=True))


def alignments(groups: Groups, round_to: int, least: int = 1) -> tuple[Equation, ...]:
    """Equations that make the length of every parameter axis that a matrix product runs over a multiple of `round_to`.

    Lengths are aligned, not unit counts: a head of 64 channels is aligned by itself, and a table with one column per
    head asks for nothing. A group whose own axis no count
    can align (6 channels and `round_to=8`) is left whole by an equation that says so; an axis that is shared
    by several groups and can never be aligned, whatever their counts, binds nothing.
    """
    if round_to < 1:
        raise InputError("round_to must be at least 1", got=round_to)
    axes: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)
    lengths: dict[tuple[str, int], int] = {}
    for group in groups.groups:
        products = [member for member in group.members if member.role != "scale"]
        for member in products or group.members:
            key = (member.param, member.axis)
            covered = len(member.units) - member.units.count(-1)
            axes[key][group.index] = axes[key].get(group.index, 0) + covered // group.n_units
            lengths[key] = len(member.units)
    bounds = system_of(groups, least)
    made: dict[tuple[tuple[tuple[int, int], ...], int], Equation] = {}
    for key, multiplicities in sorted(axes.items()):
        covered = sum(m * bounds.n_units[g] for g, m in multiplicities.items())
        # Only the residues matter, and equal axes must give equal equations.
        terms = tuple((g, m % round_to) for g, m in sorted(multiplicities.items()) if m % round_to)
        constant = (lengths[key] - covered) % round_to
        equation = Equation(
            terms=terms,
            constant=constant,
            modulus=round_to,
            reason=f"round_to {round_to}",
            source=f"{key[0]} axis {key[1]}",
        )
        if not terms or (terms, constant) in made:
            continue
        component = _component(tuple(g for g, _ in terms), (equation,))
        # Where every count can have every remainder, only the lattice can stand in the way.
        free = all(bounds.n_units[g] - bounds.least[g] + 1 >= round_to for g, _ in terms)
        if component.origin is None or (
            not free and _solve(component, bounds.least, bounds.n_units, _no_preference) is None
        ):
            if len(terms) > 1:
                continue
            g = terms[0][0]
            whole = Equation(
                terms=((g, 1),),
                constant=-bounds.n_units[g],
                reason=f"left whole: no count gives a multiple of round_to {round_to}",
                source=equation.source,
            )
            made.setdefault((whole.terms, whole.constant), whole)
        else:
            made.setdefault((terms, constant), equation)
    return tuple(made.values())


def describe(equation: Equation, names: Sequence[str] = ()) -> str:
    """The equation as a person writes it, with what asks for it."""
    because = ", ".join(text for text in (equation.reason, equation.source) if text)
    return relation(equation, names) + (f" ({because})" if because else "")


def relation(equation: Equation, names: Sequence[str] = ()) -> str:
    """The equation alone: `k[a] - 2 k[b] is a multiple of 8`."""
    parts: list[str] = []
    for group, coefficient in equation.terms:
        sign = "- " if coefficient < 0 else ("+ " if parts else "")
        factor = "" if abs(coefficient) == 1 else f"{abs(coefficient)} "
        parts.append(f"{sign}{factor}k[{names[group] if names else group}]")
    if equation.constant or not parts:
        parts.append(f"{'- ' if equation.constant < 0 else '+ '}{abs(equation.constant)}")
    right = f"a multiple of {equation.modulus}" if equation.modulus else "0"
    return f"{' '.join(parts)} is {right}"


# Components and their lattices


@functools.lru_cache(maxsize=64)
def components(constraints: System) -> tuple[Component, ...]:
    """The groups that must be solved together, in order of their first group."""
    equations = _needed(constraints.equations)
    parent = list(range(len(constraints.n_units)))

    def root(g: int) -> int:
        while parent[g] != g:
            parent[g] = parent[parent[g]]
            g = parent[g]
        return g

    for equation in equations:
        first, *others = [root(g) for g, _ in equation.terms] or [-1]
        for other in others:
            a, b = sorted((root(first), root(other)))
            parent[b] = a
    members: dict[int, list[int]] = defaultdict(list)
    for g in range(len(parent)):
        members[root(g)].append(g)
    made = []
    for gs in members.values():
        mine = tuple(e for e in equations if e.terms and e.terms[0][0] in gs)
        made.append(_component(tuple(gs), mine))
    # An equation without groups is a statement about constants; a false one makes an empty component unsolvable.
    made += [Component(groups=(), equations=(e,), origin=None, basis=()) for e in equations if not e.terms]
    return tuple(made)


def _needed(equations: Sequence[Equation]) -> list[Equation]:
    """Equations without those that hold anyway: of no terms and true, doubled, or implied by single-group moduli.

    The lengths of concatenated axes are multiples of 8 as soon as their parts are: keeping such sums would tie
    groups together that are free.
    """
    kept: dict[tuple[Any, ...], Equation] = {}
    for equation in equations:
        merged: dict[int, int] = defaultdict(int)
        for g, c in equation.terms:
            merged[g] += c % equation.modulus if equation.modulus else c
        terms = tuple(
            (g, c % equation.modulus if equation.modulus else c)
            for g, c in sorted(merged.items())
            if (c % equation.modulus if equation.modulus else c)
        )
        constant = equation.constant % equation.modulus if equation.modulus else equation.constant
        if terms or constant:
            plain = Equation(
                terms=terms,
                constant=constant,
                modulus=equation.modulus,
                reason=equation.reason,
                source=equation.source,
            )
            kept.setdefault((terms, constant, equation.modulus), plain)
    # k[g] is a multiple of steps[g]
    steps: dict[int, int] = {}
    for equation in kept.values():
        if len(equation.terms) == 1 and equation.modulus and not equation.constant:
            g, c = equation.terms[0]
            step = equation.modulus // math.gcd(c, equation.modulus)
            steps[g] = math.lcm(steps.get(g, 1), step)
    return [
        equation
        for equation in kept.values()
        if len(equation.terms) < 2
        or not equation.modulus
        or equation.constant
        or any(c * steps.get(g, 1) % equation.modulus for g, c in equation.terms)
    ]


def _component(groups: tuple[int, ...], equations: tuple[Equation, ...]) -> Component:
    place = {g: i for i, g in enumerate(groups)}
    moduli = [e.modulus for e in equations if e.modulus]
    rows: Matrix = []
    slack = 0
    for equation in equations:
        row = [0] * (len(groups) + len(moduli))
        for g, c in equation.terms:
            row[place[g]] += c
        if equation.modulus:
            row[len(groups) + slack] = equation.modulus
            slack += 1
        rows.append(row)
    origin, basis = _integer_solutions(rows, [-e.constant for e in equations], len(groups) + len(moduli))
    # The slack of a modulus follows from the counts, so cutting it off loses no direction.
    return Component(
        groups=groups,
        equations=equations,
        origin=None if origin is None else tuple(origin[: len(groups)]),
        basis=_echelon([direction[: len(groups)] for direction in basis]),
    )


def _integer_solutions(rows: Matrix, right: list[int], width: int) -> tuple[list[int] | None, Matrix]:
    """All integer x with rows @ x = right: one of them (None if there is none) and a basis of the differences.

    Column operations of determinant ±1 bring the rows to lower triangular form, rows @ U = [H 0]; then H y = right is
    solved from the top, x = U [y, anything].
    """
    table = [list(row) for row in rows]
    unimodular = [[int(i == j) for j in range(width)] for i in range(width)]

    def combine(a: int, b: int, factor: int) -> None:
        for row in (*table, *unimodular):
            row[a] -= factor * row[b]

    def swap(a: int, b: int) -> None:
        for row in (*table, *unimodular):
            row[a], row[b] = row[b], row[a]

    pivots: list[int] = []  # rows with a pivot; the j-th has it in column j
    for r in range(len(table)):
        lead = len(pivots)
        while True:
            filled = [c for c in range(lead, width) if table[r][c]]
            if not filled:
                break
            smallest = min(filled, key=lambda c: abs(table[r][c]))
            if len(filled) == 1:
                swap(lead, smallest)
                pivots.append(r)
                break
            for c in filled:
                if c != smallest:
                    combine(c, smallest, table[r][c] // table[r][smallest])
    solution = [0] * width
    for r in range(len(table)):
        known = sum(table[r][j] * solution[j] for j in range(width))
        rest = right[r] - known
        if r in pivots:
            j = pivots.index(r)
            if rest % table[r][j]:
                return None, []
            solution[j] = rest // table[r][j]
        elif rest:
            return None, []
    origin = [sum(row[j] * solution[j] for j in range(width)) for row in unimodular]
    return origin, [[row[j] for row in unimodular] for j in range(len(pivots), width)]


def _echelon(rows: Matrix) -> tuple[tuple[int, ...], ...]:
    """The same lattice, spanned by rows of which each has its first entry further right than the one before."""
    rows = [list(row) for row in rows]
    done: Matrix = []
    for column in range(len(rows[0]) if rows else 0):
        while len(filled := [row for row in rows if row[column]]) > 1:
            smallest = min(filled, key=lambda row: abs(row[column]))
            for row in filled:
                if row is not smallest:
                    factor = row[column] // smallest[column]
                    row[:] = [a - factor * b for a, b in zip(row, smallest, strict=True)]
        if filled:
            (pivot,) = filled
            rows = [row for row in rows if row is not pivot]
            done.append(pivot if pivot[column] > 0 else [-a for a in pivot])
    return tuple(tuple(row) for row in done)


# Solving one component

MOST_POINTS = 200_000  # that are listed; beyond, the mixed-integer program is faster


@dataclass(frozen=True, slots=True, eq=False)
class _Nearest:
    """sum_g weights[g] |k[g] - target[g]|."""

    target: NDArray[np.float64]
    weights: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class _Cheapest:
    """sum_g prices[g] k[g]."""

    prices: NDArray[np.float64]


_Objective = _Nearest | _Cheapest | None
_no_preference: _Objective = None


def _weights(constraints: System) -> NDArray[np.float64]:
    return 1.0 / np.maximum(np.array(constraints.n_units, np.float64), 1.0)


def _assemble(
    constraints: System, objective: _Objective, lower: Sequence[int] | None, upper: Sequence[int] | None
) -> tuple[int, ...]:
    least = constraints.least if lower is None else [max(a, b) for a, b in zip(constraints.least, lower, strict=True)]
    most = (
        constraints.n_units if upper is None else [min(a, b) for a, b in zip(constraints.n_units, upper, strict=True)]
    )
    counts = [0] * len(constraints.n_units)
    for component in components(constraints):
        found = _solve(component, least, most, objective)
        if found is None:
            raise _unsatisfiable(constraints, component, least, most)
        for g, k in zip(component.groups, found, strict=True):
            counts[g] = k
    return tuple(counts)


def _solve(
    component: Component, least: Sequence[int], most: Sequence[int], objective: _Objective
) -> tuple[int, ...] | None:
    """The best counts of a component inside bounds, or None where there are none."""
    low, high = [least[g] for g in component.groups], [most[g] for g in component.groups]
    if component.origin is None or any(a > b for a, b in zip(low, high, strict=True)):
        return None
    if n_points(component, low, high) > MOST_POINTS:
        return _solve_program(component, low, high, objective)
    listed = points(component, low, high)
    if not len(listed):
        return None
    return tuple(int(k) for k in listed[int(np.argmin(_values(component, listed, objective)))])


def n_points(component: Component, low: Sequence[int], high: Sequence[int]) -> int:
    """How many points `points` looks at, at most."""
    total = 1
    for direction in component.basis:
        pivot, step = next((i, d) for i, d in enumerate(direction) if d)
        total *= (high[pivot] - low[pivot]) // step + 1
    return total


def points(component: Component, low: Sequence[int], high: Sequence[int]) -> NDArray[np.int64]:
    """All points of the lattice inside the bounds, [point, i], those that keep the most units first.

    One direction after the other: the first entry of a direction is not touched by those that follow, so it tells
    which steps stay inside the bounds.
    """
    assert component.origin is not None
    a, b = np.array(low, np.int64), np.array(high, np.int64)
    found = np.array([component.origin], np.int64)
    for number, row in enumerate(component.basis):
        direction = np.array(row, np.int64)
        pivot = int(np.flatnonzero(direction)[0])
        step = direction[pivot]
        first = -((found[:, pivot] - a[pivot]) // step)  # least z with a <= point + z step
        n_steps = np.maximum((b[pivot] - found[:, pivot]) // step - first + 1, 0)
        starts = np.repeat(np.cumsum(n_steps) - n_steps, n_steps)
        z = np.repeat(first, n_steps) + np.arange(n_steps.sum()) - starts
        found = np.repeat(found, n_steps, axis=0) + z[:, None] * direction
        later = np.array(component.basis[number + 1 :], np.int64).reshape(-1, len(a))
        settled = ~later.any(axis=0)
        found = found[((found >= a) & (found <= b))[:, settled].all(axis=1)]
    found = found[((found >= a) & (found <= b)).all(axis=1)]
    order = np.argsort(-found.sum(axis=1), kind="stable")
    result: NDArray[np.int64] = found[order]
    return result


def _values(component: Component, listed: NDArray[np.int64], objective: _Objective) -> NDArray[np.float64]:
    index = list(component.groups)
    match objective:
        case _Nearest(target, weights):
            # Rounded, so that ties are ties and not a matter of the last bit.
            return np.round(np.abs(listed - target[index]) @ weights[index], 12)
        case _Cheapest(prices):
            return np.asarray(listed @ prices[index], np.float64)
        case _:
            return np.zeros(len(listed))


NEAR = 2e-5  # to a whole number: some times the tolerance of the solver, which such targets may stop or mislead


def _solve_program(
    component: Component, low: Sequence[int], high: Sequence[int], objective: _Objective
) -> tuple[int, ...] | None:
    """As `_solve`, by mixed-integer programming in the coordinates of the lattice: no equation is left to round.

    Variables: coordinates z, then one distance per group where the objective measures distances.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    assert component.origin is not None
    index, n, n_z = list(component.groups), len(component.groups), len(component.basis)
    origin, basis = np.array(component.origin, np.float64), np.array(component.basis, np.float64).T  # [i], [i, z]
    n_distances = n if isinstance(objective, _Nearest) else 0
    padding = np.zeros((n, n_distances))
    constraints = [LinearConstraint(np.hstack([basis, padding]), np.array(low) - origin, np.array(high) - origin)]
    costs = np.zeros(n_z + n_distances)
    if isinstance(objective, _Nearest):
        target, weights = objective.target[index], objective.weights[index]
        whole = np.rint(target)
        target = np.where(np.abs(target - whole) < NEAR, whole, target) - origin
        costs[n_z:] = weights / max(weights.max(), 1e-300)
        constraints += [  # distance >= ±(k - target)
            LinearConstraint(np.hstack([-basis, np.eye(n)]), -target, np.inf),
            LinearConstraint(np.hstack([basis, np.eye(n)]), target, np.inf),
        ]
    elif isinstance(objective, _Cheapest):
        prices = objective.prices[index] @ basis
        costs[:] = prices / max(np.abs(prices).max(), 1e-300)
    # Presolve fails now and then with "solve error" on programs that are fine without it.
    for presolve in (True, False):
        result = milp(
            costs,
            integrality=np.array([1] * n_z + [0] * n_distances),
            bounds=Bounds([-np.inf] * n_z + [0.0] * n_distances, np.inf),
            constraints=constraints,
            options={"mip_rel_gap": 0.0, "presolve": presolve},
        )
        if result.status == 2:
            return None
        if result.x is not None:
            break
    assert result.x is not None, f"the solver of count equations stopped early: {result.message}"
    z = [int(v) for v in np.rint(result.x[:n_z])]
    counts = tuple(
        o + sum(v * direction[i] for v, direction in zip(z, component.basis, strict=True))
        for i, o in enumerate(component.origin)
    )
    assert all(a <= k <= b for a, k, b in zip(low, counts, high, strict=True)), f"{counts} is out of bounds"
    return counts


def _unsatisfiable(
    constraints: System,
    component: Component,
    least: Sequence[int] | None = None,
    most: Sequence[int] | None = None,
) -> Unsatisfiable:
    """Names a set of equations of which none can be left out: equations are dropped while there is no solution."""
    least = constraints.least if least is None else least
    most = constraints.n_units if most is None else most
    blame = list(component.equations)
    for equation in component.equations:
        fewer = [e for e in blame if e is not equation]
        if _solve(_component(component.groups, tuple(fewer)), least, most, _no_preference) is None:
            blame = fewer
    involved = sorted({g for e in blame for g, _ in e.terms})
    names = constraints.names or tuple(str(g) for g in range(len(constraints.n_units)))
    bounds = ", ".join(f"{least[g]} <= k[{names[g]}] <= {most[g]}" for g in involved)
    return Unsatisfiable(
        "no kept counts satisfy all count equations",
        where="; ".join(describe(e, names) for e in blame),
        expected=f"whole numbers with {bounds}" if bounds else "equations that can hold",
        got="none",
        todo="freeze the groups concerned, lower `least`, or take a smaller `round_to`",
    )
