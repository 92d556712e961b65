"""Cubic: much at first, where much is redundant, little at the end."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cubic:
    """Made by `cubic()`."""

    name: str = "cubic"
    source: str = "Zhu & Gupta 2017, To prune, or not to prune, arXiv 1710.01878, eq. 1"

    def __call__(self, step: int, steps: int) -> float:
        """Fraction of the way after step `step` of `steps`."""
        # Written as one cube of the remainder: exactly 1 at the end, no rounding.
        return 1.0 - ((steps - step) / steps) ** 3


def cubic() -> Cubic:
    """The AGP schedule from nothing removed: f(t) = 1 - (1 - t / n)^3.

    Source: Zhu & Gupta 2017, arXiv 1710.01878, eq. 1, with initial sparsity 0.
    """
    return Cubic()
