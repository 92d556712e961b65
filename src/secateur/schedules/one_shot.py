"""One shot: everything at the first step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class OneShot:
    """Made by `one_shot()`."""

    name: str = "one_shot"
    source: str = ""

    def __call__(self, step: int, steps: int) -> float:
        """1 at every step."""
        return 1.0


def one_shot() -> OneShot:
    """The whole way at the first step: f(t) = 1. Further steps only retrain."""
    return OneShot()
