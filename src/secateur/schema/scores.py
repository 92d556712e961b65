"""Scores: the predicted loss increase if a unit goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One number per unit; higher = keep.

    Attributes:
        criterion: name of the member.  unit: `nats`, comparable across groups, or `a.u.`.
        order: order of the expansion, 0 where the criterion is not one.
        source: citation.
        values: [group][unit]: predicted increase of the mean loss if the unit goes (or a.u.).
        errors: [group][unit]: standard error of `values` over examples; empty where there is none.
        linear, quadratic: [group][unit]: coefficients a, b of the predicted loss at scale 1 - t: t a + t^2 b;
            empty for criteria that are not expansions.
        n_examples: examples seen.
        structure, data: fingerprints of the model and the data.
    """

    criterion: str
    unit: Literal["nats", "a.u."]
    order: int
    source: str
    values: tuple[tuple[float, ...], ...]
    errors: tuple[tuple[float, ...], ...] = ()
    linear: tuple[tuple[float, ...], ...] = ()
    quadratic: tuple[tuple[float, ...], ...] = ()
    n_examples: int = 0
    structure: str = ""
    data: str = ""
