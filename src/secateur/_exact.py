"""Exact unconditional inference on the paired difference of two proportions.

n independent examples, each judged right or wrong for two models: b are right for the dense model only, c for the
pruned one only. (b, c) is trinomial with probabilities (p_b, p_c); the drop is p_b - p_c, and how often the models
differ at all is a nuisance. Three steps make everything here exact at every n, without a normal approximation:

1. **Order.** Outcomes are ordered by the score limit T(b, c) (Tango 1998; Nam 1997): the margin t at which the score
   statistic equals -z, z the normal quantile of the level. The order is good because T is nearly an upper limit
   already; validity does not rest on that. {T <= t} is {b <= k_t(c)} with k_t growing in c and in t, by construction.
2. **One line of nulls suffices.** With fewer gains fixed, more losses can only leave {b <= k(c)} (couple the examples),
   so P({T <= t}) falls in p_b, and its supremum over all p_b - p_c >= a lies on p_b - p_c = a (Barnard convexity;
   Roehmel and Mansmann 1999; Hsueh, Liu and Chen 2001).
3. **A rigorous supremum along that line.** At p_c = s each outcome has a probability whose logarithm is concave in s,
   so on [m - h, m + h] it is at most its value at m times exp((s - m) slope). Summed over a region R this bound is
   convex in s, hence largest at an end, and there it is again a trinomial probability:
   P_s(R) <= S^n P_q(R), q = (p_b e^(h/p_b), p_c e^(h/p_c), p_0 e^(-2h/p_0)) / S, S their sum.
   No gap remains between grid points, and S^n exceeds 1 by about n I h^2 / 2 only (I the Fisher information).

Rejecting {T <= t} for the largest t whose supremum is at most the level is an exact test; the smallest margin
at which the observed {T <= T(b, c)} has at most that probability is Buehler's upper limit (Buehler 1957; Lloyd
and Moldovan 2007). Both come from one order, so they agree: certified if and only if the limit is within the margin.

Index conventions: b losses, c gains, n examples, s the probability of the rarer discordance.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc, gammaln, ndtri, xlogy

from secateur.errors import CertificateError
from secateur.schema.certificate import Drops, Outcome

Floats = NDArray[np.float64]

# Half-width of the intervals along the line of nulls, in standard errors of s: the bound is loose by about half
# its square, relative to the level, and never on the wrong side. Narrow where power is at stake, wide where a
# limit is only reported.
_NARROW = 0.12
_WIDE = 0.18
# Beyond so many standard deviations of c nothing is summed; the mass left out is added to every bound.
_WINDOW = 7.5
# Floating-point summation errs by far less; added to every bound.
_ROUNDING = 1e-9
# Power for which the examples still needed are estimated.
POWER = 0.8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Region:
    """The outcomes that certify: b <= most[c].

    Attributes:
        n: examples.  margin: the allowed drop.  level: error probability.
        most: [n + 1] int: the most losses that certify beside c gains; -1 = none.
        limit: t of {T <= t}; 1 below the smallest T where nothing certifies.
        size: rigorous upper bound of P(certified) over all drops >= margin; at most `level`.
    """

    n: int
    margin: float
    level: float
    most: NDArray[np.int64]
    limit: float
    size: float

    def certifies(self, losses: int, gains: int) -> bool:
        """Whether this outcome lies in the region."""
        return losses <= int(self.most[gains])


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """The exact unconditional paired test, for scores that are 0 or 1; a `Certifier`."""

    name: str = "exact"
    settings: str = ""
    source: str = (
        "exact unconditional paired test, score order: Tango 1998; Nam 1997; Buehler 1957; Lloyd and Moldovan 2007"
    )
    sequential: bool = False

    def __call__(self, drops: Drops, *, margin: float, level: float) -> Outcome:
        """Certified if (losses, gains) lies in the region of n, margin and level."""
        n, losses, gains = _counts(drops)
        return Outcome(certified=self.decide(n, losses, gains, margin=margin, level=level), used=n)

    def decide(self, n: int, losses: int, gains: int, *, margin: float, level: float) -> bool:
        """The decision from the counts alone."""
        return region(n, margin, level).certifies(losses, gains)

    def limit(self, drops: Drops, *, margin: float, level: float) -> float:
        """Buehler's upper limit."""
        n, losses, gains = _counts(drops)
        return upper_limit(n, losses, gains, level)

    def needed(self, drops: Drops, *, margin: float, level: float) -> tuple[int, str] | None:
        """From the rates seen; where nothing differed, from half a difference each way."""
        n, losses, gains = _counts(drops)
        b, c = max(losses, 0.5) / n, max(gains, 0.5) / n
        if (losses - gains) / n >= margin or b - c >= margin or b + c > 1:
            return None
        found = required(b, c, margin, level, POWER)
        return found, (
            f"((z_level s0 + z_power s1) / (margin - drop))^2 with level {level:.4g}, power {POWER}, "
            f"margin - drop = {margin:.4g} - {b - c:.4g}, discordance {b + c:.4g}"
        )


def _counts(drops: Drops) -> tuple[int, int, int]:
    values = drops.values
    if drops.weights is not None or drops.population is not None or not bool(np.isin(values, (-1.0, 0.0, 1.0)).all()):
        raise CertificateError(
            "the exact test is for unweighted 0/1 scores of independent examples",
            expected="every drop -1, 0 or 1, no weights, no groups, no finite population",
            got="weights or a finite population"
            if drops.weights is not None or drops.population is not None
            else f"a drop of {float(values[~np.isin(values, (-1.0, 0.0, 1.0))][0]):g}",
            todo="pass test=certifiers.betting(), which serves any score in [0, 1]",
        )
    return len(values), int((values == 1).sum()), int((values == -1).sum())


@functools.lru_cache(maxsize=64)
def region(n: int, margin: float, level: float) -> Region:
    """The region of the exact test of H0: drop > margin; about 2 s at n = 10,000, cached.

    Args:
        n: examples.  margin: in [0, 1).  level: in (0, 0.5].
    """
    assert n >= 1, n
    assert -1 < margin < 1, margin
    assert 0 < level <= 0.5, level
    z = float(-ndtri(level))
    line = _points(n, margin, 64)

    def roughly(t: float) -> float:
        most = _most(n, t, z)
        return max(_probability(most, n, b, c) for b, c in line)

    # First on points, then proven; what is proven is never taken back, so the points need no rigour.
    low, high = -1.0, 1.0
    if roughly(margin) <= level:
        low = margin
    else:
        high = margin
    near = margin + math.copysign(2.0 / n, 0.5 - high)
    if low < near < high:
        low, high = (near, high) if roughly(near) <= level else (low, near)
    while high - low > 1e-3 / n:
        middle = (low + high) / 2
        low, high = (middle, high) if roughly(middle) <= level else (low, middle)
    intervals = _intervals(n, margin, _NARROW)
    start = int(np.argmax([_probability(_most(n, low, z), n, b, c) for b, c in line]))
    step = 0.005 * z * math.sqrt(max(margin, 1.0 / n) / n)
    t, excess = low, 0
    while t > -1:
        most = _most(n, t, z)
        size, excess = _supremum(most, n, intervals, level, excess if excess else start)
        if size <= level:
            return Region(n=n, margin=margin, level=level, most=most, limit=t, size=size)
        t, step = t - step, step * 1.3
    return Region(n=n, margin=margin, level=level, most=np.full(n + 1, -1), limit=-2.0, size=0.0)


@functools.lru_cache(maxsize=4096)
def upper_limit(n: int, losses: int, gains: int, level: float) -> float:
    """Buehler's exact upper confidence limit of the drop, at confidence 1 - level.

    The smallest a (to within a few hundredths of a standard error, from above) with
    sup over drops >= a of P(T <= T_observed) at most `level`.
    """
    z = float(-ndtri(level))
    t = order(n, losses, gains, level)
    most = _most(n, t, z)

    def roughly(a: float) -> float:
        return max(_probability(most, n, b, c) for b, c in _points(n, a, 48))

    spread = z * math.sqrt(max((losses + gains) / n, 1.0 / n) / n)
    low, high = max(-1.0, t - spread), min(1.0, t + 0.1 * spread)
    while high < 1 and roughly(high) > level:
        low, high = high, min(1.0, high + 0.5 * spread)
    if roughly(low) <= level:
        low = -1.0
    while high - low > 2e-3 * spread:
        middle = (low + high) / 2
        low, high = (low, middle) if roughly(middle) <= level else (middle, high)
    step, excess = 0.005 * spread, 0
    while high < 1:
        size, excess = _supremum(most, n, _intervals(n, high, _WIDE), level, excess)
        if size <= level:
            return high
        high, step = high + step, step * 1.5
    return 1.0


def order(n: int, losses: int, gains: int, level: float) -> float:
    """T(b, c): the smallest t (from above, to 1e-9) whose region {b <= k_t(c)} holds the outcome."""
    z = float(-ndtri(level))
    low, high = -1.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        inside = losses <= _most_at(n, middle, z, gains)
        low, high = (low, middle) if inside else (middle, high)
    return high


def power(where: Region, drop: float, discordance: float) -> float:
    """P(certified) at a true drop and discordance (= P(loss) + P(gain)), summed exactly."""
    losses, gains = (discordance + drop) / 2, (discordance - drop) / 2
    assert gains >= 0, (drop, discordance)
    assert losses + gains <= 1, (drop, discordance)
    return _probability(where.most, where.n, losses, gains, upper=False)


def statistic(losses: Floats, gains: Floats, n: int, t: float) -> Floats:
    """Score statistic (b - c - n t) / sqrt(n (2 p + t - t^2)), p the likelihood's best p_c on drop = t (Tango 1998)."""
    linear = losses + gains + t * (losses - gains) - 2 * n * t
    p = (linear + np.sqrt(np.maximum(linear**2 + 8 * n * gains * t * (1 - t), 0.0))) / (4 * n)
    p = np.clip(p, max(0.0, -t), (1 - t) / 2)
    variance = n * (2 * p + t - t * t)
    numerator = losses - gains - n * t
    with np.errstate(divide="ignore", invalid="ignore"):
        z = numerator / np.sqrt(variance)
    return np.where(variance > 0, z, np.where(numerator < 0, -np.inf, np.inf))


# Regions


def _most(n: int, t: float, z: float) -> NDArray[np.int64]:
    """k_t: [n + 1]: for each number of gains the most losses with Z_t <= -z, made to grow in the gains."""
    gains = np.arange(n + 1, dtype=np.float64)
    low, high = np.full(n + 1, -1.0), n - gains
    while bool((high > low).any()):
        middle = np.ceil((low + high) / 2)
        inside = statistic(middle, gains, n, t) <= -z
        low, high = np.where(inside, middle, low), np.where(inside, high, np.minimum(high, middle - 1))
        high = np.maximum(high, low)
    return np.maximum.accumulate(low).astype(np.int64)


def _most_at(n: int, t: float, z: float, gains: int) -> int:
    return int(_most(n, t, z)[gains])


# Probabilities


def _probability(most: NDArray[np.int64], n: int, b: float, c: float, *, upper: bool = True) -> float:
    """P(B <= most[C]) for the trinomial with cell probabilities b and c; with `upper`, plus what was left out."""
    if c <= 0:
        return float(bdtr(int(most[0]), n, b)) if most[0] >= 0 else 0.0
    if c >= 1:
        return 1.0 if most[n] >= 0 else 0.0
    spread = math.sqrt(n * c * (1 - c))
    first = max(0, math.floor(n * c - _WINDOW * spread - 8))
    last = min(n, math.ceil(n * c + _WINDOW * spread + 25))
    gains = np.arange(first, last + 1)
    k = most[first : last + 1]
    weight = np.exp(_log_choose(n)[first : last + 1] + xlogy(gains, c) + xlogy(n - gains, 1 - c))
    rest = np.minimum(np.maximum(k, 0), n - gains)
    inside = np.where(k >= 0, np.where(rest >= n - gains, 1.0, bdtr(rest, n - gains, min(1.0, b / (1 - c)))), 0.0)
    total = float(weight @ inside)
    if not upper:
        return min(1.0, total)
    outside = (float(bdtr(first - 1, n, c)) if first > 0 else 0.0) + (float(bdtrc(last, n, c)) if last < n else 0.0)
    return total * (1 + _ROUNDING) + outside


@functools.lru_cache(maxsize=8)
def _log_choose(n: int) -> Floats:
    counts = np.arange(n + 1, dtype=np.float64)
    made: Floats = gammaln(n + 1.0) - gammaln(counts + 1) - gammaln(n - counts + 1)
    return made


# The line of nulls: p_b = s + max(a, 0), p_c = s + max(-a, 0), 0 <= s <= (1 - |a|) / 2


def _points(n: int, a: float, count: int) -> list[tuple[float, float]]:
    """Points of the line, even in the variance-stabilised scale, with the ends."""
    top = (1 - abs(a)) / 2
    angles = np.linspace(0.0, math.pi / 2, count)
    return [(s + max(a, 0.0), s + max(-a, 0.0)) for s in top * np.sin(angles) ** 2]


@functools.lru_cache(maxsize=16)
def _intervals(n: int, a: float, width: float) -> tuple[tuple[float, float, float], ...]:
    """The bounds whose maximum covers the whole line: (factor, b, c) stands for factor * P_{b, c}(region).

    The two ends, where the information is infinite, are covered by monotonicity: fewest losses with most gains.
    """
    up, down = max(a, 0.0), max(-a, 0.0)
    top = (1 - up - down) / 2
    edge = min(1e-3 / n, top / 2)
    made = [(1.0, up, down + edge), (1.0, top - edge + up, top + down)]
    left = edge
    while left < top - edge:
        half = width * _deviation(n, left, up, down)
        # Narrow enough at both of its ends.
        right = min(left + 2 * half, top - edge)
        half = min(half, width * _deviation(n, (left + right) / 2, up, down), (top - edge - left) / 2)
        half = min(half, 2 * width * _deviation(n, left + 2 * half, up, down) if left + 2 * half < top - edge else half)
        middle = left + half
        cells = (middle + up, middle + down, 1 - up - down - 2 * middle)
        for h in (-half, half):
            tilted = [p * math.exp(sign * h / p) for p, sign in zip(cells, (1, 1, -2), strict=True)]
            total = math.fsum(tilted)
            made.append((math.exp(n * math.log(total)), tilted[0] / total, tilted[1] / total))
        left = left + 2 * half if left + 2 * half > left else top
    return tuple(made)


def _deviation(n: int, s: float, up: float, down: float) -> float:
    """Standard error of s: 1 / sqrt of the Fisher information of n examples."""
    information = n * (1 / (s + up) + 1 / (s + down) + 4 / (1 - up - down - 2 * s))
    return 1 / math.sqrt(information)


def _supremum(
    most: NDArray[np.int64], n: int, intervals: tuple[tuple[float, float, float], ...], enough: float, start: int
) -> tuple[float, int]:
    """Bound of P(region) over the line, and where the search ended: it stops as soon as `enough` is exceeded."""
    worst, count = 0.0, len(intervals)
    for step in range(count):
        index = (start + step) % count
        factor, b, c = intervals[index]
        worst = max(worst, factor * _probability(most, n, b, c))
        if worst > enough:
            return worst, index
    return worst, 0


def required(losses: float, gains: float, margin: float, level: float, power: float) -> int:
    """About how many examples certify with the given power, if losses and gains have these probabilities.

    n = ((z_level s_0 + z_power s_1) / (margin - drop))^2 with s_1^2 = losses + gains - drop^2 the variance of D,
    and s_0^2 = 2 p + margin - margin^2 its variance at the nearest null (the p of `statistic` in the limit of many).
    """
    drop = losses - gains
    assert drop < margin, (drop, margin)
    linear = losses + gains + margin * drop - 2 * margin
    p = (linear + math.sqrt(linear**2 + 8 * gains * margin * (1 - margin))) / 4
    null, true = 2 * p + margin - margin**2, max(losses + gains - drop**2, 0.0)
    root = float(-ndtri(level)) * math.sqrt(null) + float(ndtri(power)) * math.sqrt(true)
    rough = math.ceil((root / (margin - drop)) ** 2)
    # Where nothing is lost, (1 - margin)^n <= level decides.
    return max(rough, math.ceil(math.log(level) / math.log1p(-margin)) if margin > 0 else rough, 1)
