"""Confidence sequences: the boundary against the integral that it comes from, and coverage while one looks on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad

from secateur import _sequence

LEVEL = 0.05
LOOKS = np.arange(256, 8193)


@pytest.mark.parametrize(("n", "level", "aim"), [(10, 0.05, 50), (400, 0.001, 1000), (5000, 0.05, 300)])
def test_the_width_is_where_the_mixture_of_likelihood_ratios_reaches_one_over_level(
    n: int, level: float, aim: float
) -> None:
    spread = -2 * math.log(level)
    r = (spread + math.log(1 + spread)) / aim
    total = n * _sequence.width(n, level=level, aim=aim)  # of n standard normal numbers

    def mixed(x: float) -> float:
        return math.exp(x * total - x * x * n / 2) * math.exp(-x * x / (2 * r)) / math.sqrt(2 * math.pi * r)

    centre = total * r / (n * r + 1)  # of the normal curve that the integrand is
    reach = 12 / math.sqrt(n + 1 / r)
    assert quad(mixed, centre - reach, centre + reach)[0] == pytest.approx(1 / level, rel=1e-6)


def test_the_interval_is_tightest_near_the_aim() -> None:
    widths = {aim: _sequence.width(1000, level=LEVEL, aim=aim) for aim in (10, 100, 300, 1000, 3000, 10_000)}
    assert min(widths, key=widths.__getitem__) == 1000
    assert math.isinf(_sequence.width(0, level=LEVEL, aim=100))


def looked_at(share: float, runs: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Errors of the running mean in running standard deviations, and the widths; [run, look], [look].

    Losses as cuts cause them: most examples feel nothing, a `share` of them loses much.
    """
    rng = np.random.default_rng(0)
    values = rng.exponential(1.0, (runs, LOOKS[-1])) * (rng.random((runs, LOOKS[-1])) < share)
    mean, square = (v.cumsum(1)[:, LOOKS - 1] / LOOKS for v in (values, values**2))
    widths = np.array([_sequence.width(n, level=LEVEL, aim=1250) for n in LOOKS])
    return (mean - share) / np.sqrt(square - mean**2), widths


def test_whoever_looks_after_every_example_is_misled_as_rarely_as_promised() -> None:
    off, widths = looked_at(0.3)  # skewness 3.6
    assert np.mean((np.abs(off) > widths).any(1)) <= LEVEL
    # An interval made for one look is wrong several times as often, which is why it decides nothing.
    assert np.mean((np.abs(off) > 1.96 / np.sqrt(LOOKS)).any(1)) > 4 * LEVEL


def test_the_lower_end_holds_for_losses_that_are_very_skewed() -> None:
    off, widths = looked_at(0.1)  # skewness 6.6: too much for both ends at 256 examples
    assert np.mean((off > widths).any(1)) <= LEVEL / 2
