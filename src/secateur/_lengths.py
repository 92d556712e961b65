"""Lengths as linear functions of kept counts, and what integers of the forward must become.

Every statement "this integer equals that length" is linear in the kept counts once lengths are known: it determines
an attribute of a module (a `Setting`), ties counts (an `Equation`), or cannot be met, which freezes the groups.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from secateur.schema.graph import Attribute, Expression, Op, Size
from secateur.schema.groups import Equation, Extent, Setting


@dataclass(frozen=True, slots=True)
class Linear:
    """constant + sum of coefficient[g] * k[g]."""

    constant: Fraction
    terms: tuple[tuple[int, Fraction], ...] = ()

    @property
    def fixed(self) -> bool:
        """Whether no count matters."""
        return not self.terms


@functools.lru_cache(maxsize=4096)
def number(value: int | Fraction) -> Linear:
    """A constant."""
    return Linear(Fraction(value))


def add(a: Linear, b: Linear, sign: int = 1) -> Linear:
    """A + sign * b."""
    terms = dict(a.terms)
    for g, c in b.terms:
        terms[g] = terms.get(g, Fraction(0)) + sign * c
    return Linear(a.constant + sign * b.constant, tuple(sorted((g, c) for g, c in terms.items() if c)))


def scale(a: Linear, factor: Fraction) -> Linear:
    """Factor * a."""
    return Linear(a.constant * factor, tuple((g, c * factor) for g, c in a.terms if factor))


@functools.lru_cache(maxsize=4096)  # thousands of values have a few dozen lengths
def of_extent(extent: Extent) -> Linear:
    """An extent as a linear function."""
    d = extent.divisor
    return Linear(Fraction(extent.fixed, d), tuple(sorted((g, Fraction(m, d)) for g, m in extent.terms)))


def to_extent(a: Linear) -> Extent:
    """A linear function as an extent."""
    d = math.lcm(a.constant.denominator, *(c.denominator for _, c in a.terms))
    return Extent(int(a.constant * d), tuple((g, int(c * d)) for g, c in a.terms), d)


def to_equation(a: Linear, reason: str, source: str) -> Equation:
    """A = 0."""
    e = to_extent(a)
    shrink = math.gcd(e.fixed, *(m for _, m in e.terms)) or 1
    return Equation(
        terms=tuple((g, m // shrink) for g, m in e.terms),
        constant=e.fixed // shrink,
        reason=reason,
        source=source,
    )


def at(a: Linear, counts: Sequence[int]) -> Fraction:
    """The value for kept counts."""
    return a.constant + sum((c * counts[g] for g, c in a.terms), Fraction(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """`expression` equals `length` after every cut.

    Attributes:
        expression: the integer of the forward; reason, source: for messages.
    """

    expression: Expression
    length: Linear
    reason: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Two integers of the forward that were compared and found equal: they must stay so."""

    left: Expression
    right: Expression
    reason: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What the statements mean.

    Attributes:
        settings: attributes that follow.  equations: ties between counts.
        stuck: groups that some statement cannot let go: (group, reason, source).
        known: the attributes as linear functions.
    """

    settings: tuple[Setting, ...]
    equations: tuple[Equation, ...]
    stuck: tuple[tuple[int, str, str], ...]
    known: Mapping[Attribute, Linear]


class _Nonlinear(Exception):
    """An expression that is not linear in the counts."""


def solve(
    statements: Iterable[Statement],
    links: Iterable[Link],
    ties: Iterable[Equation],
    attributes: Mapping[Attribute, int],
    length_of: Callable[[Size], Linear],
    full: Sequence[int],
) -> Solution:
    """Work out what integers must become.

    Args:
        statements: integers that equal a length.  links: integers that equal each other.
        ties: equations that hold already (equal parts).
        attributes: dense values.  length_of: the length of an axis of a recorded value.  full: dense counts [G].
    """
    pending = list(dict.fromkeys(statements))
    joined = list(dict.fromkeys(links))
    same = _same_counts(ties)
    known: dict[Attribute, Linear] = {}
    equations: list[Equation] = []
    stuck: list[tuple[int, str, str]] = []

    def evaluate(e: Expression) -> Linear:
        return _evaluate(e, known, attributes, length_of)

    def demand(difference: Linear, statement: Statement) -> None:
        if difference.fixed:
            return
        if at(difference, full) != 0:  # a floor division that was not exact
            raise _Nonlinear
        equations.append(to_equation(difference, statement.reason, statement.source))

    # attributes that stand alone say what they must be
    for s in pending:
        if isinstance(s.expression, Attribute) and s.expression not in known:
            known[s.expression] = s.length
    # then those inside an expression, as far as the rest of it is known; repeated until nothing new is learned
    for _ in range(4):
        before = len(known)
        for link in joined:
            for here, there in ((link.left, link.right), (link.right, link.left)):
                with contextlib.suppress(_Nonlinear):
                    value = evaluate(there)
                    made = Statement(expression=here, length=value, reason=link.reason, source=link.source)
                    unknown = [a for a in _attributes(here) if a not in known]
                    # `width // heads` is compared with a size that stays, while the heads follow: so must the width
                    follows = any(a in known and not known[a].fixed for a in _attributes(here)) and any(
                        _isolate(made, a, known, attributes, length_of, full) is not None for a in unknown
                    )
                    if unknown and (follows or not value.fixed):
                        pending += [made] if made not in pending else []
                        if isinstance(here, Attribute):
                            known[here] = value
        for s in pending:
            unknown = [a for a in _attributes(s.expression) if a not in known]
            if not unknown or isinstance(s.expression, Attribute):
                continue
            try:
                now = evaluate(s.expression)
                # where both sides follow the counts already, the attribute is a number of parts: it stays
                if now == s.length or not (now.fixed or s.length.fixed):
                    continue
            except _Nonlinear:
                pass
            answers = {a: _isolate(s, a, known, attributes, length_of, full) for a in unknown}
            found = {a: answer for a, answer in answers.items() if answer is not None}
            if found:
                # of `parts * size` the size follows: it is whole whatever the counts are
                best = next((a for a in found if _whole(found[a], same)), next(iter(found)))
                known[best] = found[best]
        if len(known) == before:
            break
    for s in pending:
        try:
            demand(_difference(s, evaluate), s)
        except _Nonlinear:
            involved = {g for g, _ in s.length.terms}
            for size in sizes(s.expression):
                involved |= {g for g, _ in length_of(size).terms}
            for a in _attributes(s.expression):
                involved |= {g for g, _ in known.get(a, number(0)).terms}
            stuck += [(g, s.reason, s.source) for g in sorted(involved)]
    for s in pending:
        broken = [a for a in _attributes(s.expression) if a in known and not _whole(known[a], same)]
        equations += [_must_be_whole(known[a], f"{a.module}.{a.name}", s.source) for a in broken]
    # `2 * (width // heads)` may be a whole number where the quotient is none, which the forward then makes smaller
    said = [(s.expression, s.source) for s in pending] + [(e, k.source) for k in joined for e in (k.left, k.right)]
    for quotient, source in [(q, source) for e, source in said for q in _quotients(e)]:
        with contextlib.suppress(_Nonlinear):
            value = evaluate(quotient)
            if not value.fixed and not _whole(value, same) and at(value, full).denominator == 1:
                equations.append(_must_be_whole(value, "a quotient in the forward", source))
    for link in joined:
        with contextlib.suppress(_Nonlinear):
            difference = add(evaluate(link.left), evaluate(link.right), -1)
            if not difference.fixed:
                equations.append(to_equation(difference, link.reason, link.source))
    settings = tuple(
        Setting(attribute=a, extent=to_extent(value))
        for a, value in known.items()
        if not value.fixed and a in attributes
    )
    return Solution(
        settings=settings, equations=tuple(dict.fromkeys(equations)), stuck=tuple(dict.fromkeys(stuck)), known=known
    )


def _must_be_whole(value: Linear, what: str, source: str) -> Equation:
    extent = to_extent(value)
    return Equation(
        terms=extent.terms,
        constant=extent.fixed,
        modulus=extent.divisor,
        reason=f"{what} is a whole number",
        source=source,
    )


def _difference(s: Statement, evaluate: Callable[[Expression], Linear]) -> Linear:
    """What must be zero for the statement to hold. width // heads == size becomes width - size * heads."""
    e = s.expression
    if isinstance(e, Op) and e.operator == "floordiv" and s.length.fixed:
        divisor = evaluate(e.right)
        if not divisor.fixed:
            return add(evaluate(e.left), scale(divisor, s.length.constant), -1)
    value = evaluate(e)
    return number(0) if value == s.length else add(value, s.length, -1)


def linear(
    e: Expression,
    known: Mapping[Attribute, Linear],
    attributes: Mapping[Attribute, int],
    length_of: Callable[[Size], Linear],
) -> Linear | None:
    """An expression as a linear function of kept counts, None where it is not one."""
    try:
        return _evaluate(e, known, attributes, length_of)
    except _Nonlinear:
        return None


def _same_counts(ties: Iterable[Equation]) -> dict[int, int]:
    """group -> the first group that always has the same count."""
    first: dict[int, int] = {}
    for eq in ties:
        if len(eq.terms) == 2 and not eq.constant and not eq.modulus and sum(c for _, c in eq.terms) == 0:
            a, b = sorted(_root(first, g) for g, _ in eq.terms)
            if a != b:
                first[b] = a
    return {g: _root(first, g) for g in first}


def _root(first: Mapping[int, int], g: int) -> int:
    while g in first and first[g] != g:
        g = first[g]
    return g


def _whole(value: Linear, same: Mapping[int, int]) -> bool:
    """Whether a linear function of counts is a whole number whatever the counts are."""
    merged: dict[int, Fraction] = {}
    for g, c in value.terms:
        merged[same.get(g, g)] = merged.get(same.get(g, g), Fraction(0)) + c
    return all(c.denominator == 1 for c in (value.constant, *merged.values()))


def _parts(e: Expression) -> list[Expression]:
    """An expression and everything that it is made of."""
    return [e, *_parts(e.left), *_parts(e.right)] if isinstance(e, Op) else [e]


def sizes(e: Expression) -> list[Size]:
    """The lengths that an expression is made of."""
    return [part for part in _parts(e) if isinstance(part, Size)]


def _quotients(e: Expression) -> list[Op]:
    return [part for part in _parts(e) if isinstance(part, Op) and part.operator == "floordiv"]


def _attributes(e: Expression) -> list[Attribute]:
    return [part for part in _parts(e) if isinstance(part, Attribute)]


def _evaluate(
    e: Expression,
    known: Mapping[Attribute, Linear],
    attributes: Mapping[Attribute, int],
    length_of: Callable[[Size], Linear],
) -> Linear:
    if isinstance(e, int):
        return number(e)
    if isinstance(e, Attribute):
        return known[e] if e in known else number(attributes[e])
    if isinstance(e, Size):
        return length_of(e)
    a = _evaluate(e.left, known, attributes, length_of)
    b = _evaluate(e.right, known, attributes, length_of)
    if e.operator in ("add", "sub"):
        return add(a, b, 1 if e.operator == "add" else -1)
    if e.operator == "mul":
        if a.fixed or b.fixed:
            return scale(b, a.constant) if a.fixed else scale(a, b.constant)
        raise _Nonlinear
    if a.fixed and b.fixed and b.constant:
        whole = int(a.constant // b.constant)
        return number(whole if e.operator == "floordiv" else a.constant - whole * b.constant)
    if e.operator == "floordiv" and b.fixed and b.constant:
        return scale(a, 1 / b.constant)  # exact for every count that satisfies the statement it stands in
    if e.operator == "floordiv" and not b.fixed:
        ratio = _ratio(a, b)
        if ratio is not None:
            return number(ratio)
    raise _Nonlinear


def _ratio(a: Linear, b: Linear) -> Fraction | None:
    """C with a = c * b, if there is one."""
    if len(a.terms) != len(b.terms) or not b.terms:
        return None
    c = a.terms[0][1] / b.terms[0][1]
    return c if scale(b, c) == a else None


def _isolate(
    s: Statement,
    attribute: Attribute,
    known: Mapping[Attribute, Linear],
    attributes: Mapping[Attribute, int],
    length_of: Callable[[Size], Linear],
    full: Sequence[int],
) -> Linear | None:
    """What `attribute` must be for the statement to hold, if its expression can be turned round."""

    def turn(e: Expression, wanted: Linear) -> Linear | None:
        if e == attribute:
            return wanted
        if not isinstance(e, Op):
            return None
        inside_left = attribute in _attributes(e.left)
        inside, other = (e.left, e.right) if inside_left else (e.right, e.left)
        if attribute in _attributes(other):
            return None
        try:
            rest = _evaluate(other, known, attributes, length_of)
        except _Nonlinear:
            return None
        undone = _undo(e.operator, inside_left, wanted, rest)
        return None if undone is None else turn(inside, undone)

    answer = turn(s.expression, s.length)
    # floor division forgets a remainder: the dense value must come out again
    if answer is None or at(answer, full) != attributes[attribute]:
        return None
    return answer


def _undo(operator: str, inside_left: bool, wanted: Linear, rest: Linear) -> Linear | None:
    if operator == "add":
        return add(wanted, rest, -1)
    if operator == "sub":
        return add(wanted, rest) if inside_left else add(rest, wanted, -1)
    if operator == "mul":
        if rest.fixed and rest.constant:
            return scale(wanted, 1 / rest.constant)
        ratio = _ratio(wanted, rest)
        return None if ratio is None else number(ratio)
    if operator == "floordiv" and inside_left and (rest.fixed or wanted.fixed):
        return scale(wanted, rest.constant) if rest.fixed else scale(rest, wanted.constant)
    if operator == "floordiv" and not inside_left:
        if wanted.fixed and wanted.constant:
            return scale(rest, 1 / wanted.constant)
        ratio = _ratio(rest, wanted)
        return None if ratio is None else number(ratio)
    return None
