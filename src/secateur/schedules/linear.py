"""Linear: the same share at every step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """Made by `linear()`."""

    name: str = "linear"
    source: str = ""

    def __call__(self, step: int, steps: int) -> float:
        """Fraction of the way after step `step` of `steps`."""
        return step / steps


def linear() -> Linear:
    """The same share of the original cost at every step: f(t) = t / n."""
    return Linear()
