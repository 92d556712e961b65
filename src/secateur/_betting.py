"""Testing a bounded mean by betting: a capital that can hardly grow while the null is true.

Units i = 1 .. n arrive in random order, each with a drop D_i in [-1, 1] and a weight w_i in [0, 1]. Against the null
that the weighted mean drop is at least m, i.e. E[w (D - m)] >= 0, one bets on small drops:

    W_t(m) = prod_{i <= t} (1 + k_i w_i (m - D_i)),   0 <= k_i <= CAP / (1 - m),   k_i chosen before D_i is seen.

Every factor is positive since w (D - m) <= 1 - m, and its mean given the past is at most 1 under the null; so W is a
nonnegative supermartingale with W_0 = 1, and P(W ever reaches 1/level) <= level (Ville 1939). The test may therefore
be looked at after every unit, and stops at the first crossing (Waudby-Smith and Ramdas, JRSS B 2024,
arXiv:2010.09686). Only k >= 0 is ever bet: a capital that bets on both sides also grows when the model is *worse*.

Bets: k_i = sqrt(2 ln(1/level) / (0.7 n v_{i-1})), v the mean square of w (D - margin) over the past: the best
constant bet for a decision near 70 % of the planned n. It does not depend on m, so W_t(m) grows in m, and
{m : W < 1/level throughout} is an interval: its lower end is a confidence limit valid at any stopping time.

Without replacement, from a population of N whose mean drop is at least m, the next unit has mean at least
(N m - S_{t-1}) / (N - t + 1), which takes the place of m above (Waudby-Smith and Ramdas, NeurIPS 2020,
arXiv:2006.04347): sampling everything leaves no uncertainty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from secateur.schema.certificate import Drops, Outcome

Floats = NDArray[np.float64]

# Largest fraction of the capital that one unit may cost; 1 would be ruin.
CAP = 0.9
# Decisions are aimed at this part of the planned n: what is gained in evaluations costs hardly any power.
_AIM = 0.7
# Power for which the units still needed are estimated.
POWER = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Betting:
    """The one-sided betting test, for any score in [0, 1]; a `Certifier` that may look after every unit."""

    name: str = "betting"
    settings: str = f"bets aimed at {_AIM:g} of the planned units, at most {CAP:g} of the capital on one"
    source: str = "one-sided betting e-process: Waudby-Smith and Ramdas, JRSS B 2024, arXiv:2010.09686; Ville 1939"
    sequential: bool = True

    def __call__(self, drops: Drops, *, margin: float, level: float) -> Outcome:
        """Certified at the first unit at which the capital reaches 1/level."""
        wealth = log_wealth(
            drops.values, drops.weights, _stakes(drops, margin, level), margin, population=drops.population
        )
        used = crossing(wealth, level)
        best = float(np.exp(min(max(float(wealth.max()), 0.0), 700.0)))
        return Outcome(certified=used is not None, used=len(drops.values) if used is None else used, evidence=best)

    def limit(self, drops: Drops, *, margin: float, level: float) -> float:
        """Limit valid at whatever unit one stopped."""
        return upper_limit(
            drops.values, drops.weights, _stakes(drops, margin, level), level=level, population=drops.population
        )

    def needed(self, drops: Drops, *, margin: float, level: float) -> tuple[int, str] | None:
        """From the mean and mean square seen, as for a sample from many."""
        weights = np.ones_like(drops.values) if drops.weights is None else drops.weights
        spread = weights * (drops.values - margin)
        gap = -float(spread.mean())
        if gap <= 0 or drops.population is not None:
            return None
        variance = max(float(spread.var()), max(margin, 1.0 / len(spread)) / len(spread))
        found = required(variance, gap, level, POWER)
        return found, (
            f"(sqrt(2 ln(1/level)) + z_power)^2 variance / (margin - drop)^2 with level {level:.4g}, power {POWER}, "
            f"margin - drop = {gap:.4g}, variance {variance:.4g}" + (" (weighted)" if drops.weights is not None else "")
        )


def _stakes(drops: Drops, margin: float, level: float) -> Floats:
    return bets(drops.values, drops.weights, margin=margin, level=level, planned=drops.planned)


def bets(drops: Floats, weights: Floats | None, *, margin: float, level: float, planned: int) -> Floats:
    """k: [..., n]: the bet on each unit, from the units before it only.

    Args:
        drops: [..., n] in [-1, 1].  weights: [..., n] in [0, 1], None = all one.
        margin: the allowed drop.  level: error probability.  planned: n that could be reached.
    """
    spread = drops - margin if weights is None else weights * (drops - margin)
    squares = np.cumsum(spread**2, axis=-1)
    past = np.concatenate([np.zeros_like(squares[..., :1]), squares[..., :-1]], axis=-1)
    count = np.arange(1, drops.shape[-1] + 1)
    # One imagined unit with a mean square of `margin` stands in front: rare differences are the usual case.
    variance = (past + max(margin, 1.0 / planned)) / count
    return np.asarray(np.sqrt(2 * math.log(1 / level) / (_AIM * planned * variance)))


def log_wealth(
    drops: Floats, weights: Floats | None, stakes: Floats, mean: float, *, population: int | None = None
) -> Floats:
    """Ln W_t(mean) for t = 1 .. n: [..., n]; infinite from where the null has become impossible.

    Args:
        stakes: [..., n] from `bets`.  mean: the null: the mean drop is at least this, below 1.
        population: N, where the units are drawn without replacement from so many; then no weights.
    """
    if population is None:
        k = np.minimum(stakes, CAP / (1 - mean))
        gains = k * (mean - drops) if weights is None else k * weights * (mean - drops)
        return np.asarray(np.cumsum(np.log1p(gains), axis=-1))
    assert weights is None, "weights and a finite population do not go together"
    n = drops.shape[-1]
    seen = np.cumsum(drops, axis=-1)
    before = np.concatenate([np.zeros_like(seen[..., :1]), seen[..., :-1]], axis=-1)
    left = population - np.arange(n)
    means = (population * mean - before) / left
    with np.errstate(divide="ignore"):
        k = np.minimum(stakes, CAP / np.maximum(1 - means, 0.0))
    # A mean of all units left above 1 cannot be: the null is refuted. The tolerance is for rounding in sums.
    impossible = np.maximum.accumulate(means > 1 + 1e-9, axis=-1)
    impossible[..., -1] |= (n == population) & (seen[..., -1] < population * mean - 1e-9 * population)
    steps = np.where(impossible, 0.0, np.log1p(np.maximum(k * (means - drops), -CAP)))
    return np.where(impossible, np.inf, np.cumsum(steps, axis=-1))


def crossing(wealth: Floats, level: float) -> int | None:
    """Units used until ln W first reaches ln(1/level): 1 .. n; None = never."""
    hit = wealth >= math.log(1 / level)
    return int(hit.argmax()) + 1 if bool(hit.any()) else None


def upper_limit(
    drops: Floats, weights: Floats | None, stakes: Floats, *, level: float, population: int | None = None
) -> float:
    """The confidence limit of the mean drop: the least m whose capital reached 1/level (from above, to 1e-7); or 1."""
    low, high = -1.0, 1.0
    while high - low > 1e-7:
        middle = (low + high) / 2
        reached = crossing(log_wealth(drops, weights, stakes, middle, population=population), level) is not None
        low, high = (low, middle) if reached else (middle, high)
    return high


def required(variance: float, gap: float, level: float, power: float) -> int:
    """About how many units certify with the given power, if D has this variance and lies `gap` below the margin.

    n = (sqrt(2 ln(1/level)) + z_power)^2 variance / gap^2.
    """
    return math.ceil((math.sqrt(2 * math.log(1 / level)) + float(ndtri(power))) ** 2 * variance / gap**2)
