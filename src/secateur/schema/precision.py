"""Precision: how well a point of a scan has to be known before it needs no more examples."""

from __future__ import annotations

import math
from dataclasses import dataclass

from secateur.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """A point is known well enough as soon as one of these holds.

    - Its standard error is at most the larger of `absolute` and `relative` * |loss increase|.
    - Its loss increase surely exceeds `ceiling`: no plan that is wanted would cut that deep.

    Attributes:
        absolute: nats; None = three standard errors of the dense model's own mean loss on these data, whatever
            its scale: an increase that is known better than that matters to no claim made with them.
        relative: a fraction of the measured increase.
        ceiling: nats; None = deep cuts are measured like the others.
        level: probability that a point below the ceiling is taken for one above it, however often one looks.
    """

    absolute: float | None = None
    relative: float = 0.1
    ceiling: float | None = None
    level: float = 0.001

    def __post_init__(self) -> None:
        checks = (
            ("absolute", self.absolute, self.absolute is None or 0.0 <= self.absolute < math.inf, "nats, at least 0"),
            ("relative", self.relative, 0.0 <= self.relative < math.inf, "a fraction, at least 0"),
            ("ceiling", self.ceiling, self.ceiling is None or 0.0 < self.ceiling < math.inf, "nats, more than 0"),
            ("level", self.level, 0.0 < self.level < 1.0, "a probability between 0 and 1"),
        )
        for name, got, ok, expected in checks:
            if not ok:
                raise InputError(
                    "this precision cannot be asked for", where=f"Precision({name}=...)", expected=expected, got=got
                )
