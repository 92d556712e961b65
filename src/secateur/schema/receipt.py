"""Receipt: what was taken where; enough to do the same cut again to a fresh dense model."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.schema.graph import Attribute
from secateur.schema.program import Rewrite


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An integer attribute that was changed."""

    attribute: Attribute
    old: int
    new: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How the cut was checked against the masked oracle.

    Attributes:
        checks: what was compared (`eval`, `train`, `eval batch 3`, ...).
        error: the largest relative error.  tolerance: what was allowed.
        distance: relative distance to the dense model's output, so that nothing passes vacuously.
    """

    checks: tuple[str, ...]
    error: float
    tolerance: float
    distance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a cut took, always in indices of the *original dense* model: cuts compose.

    Attributes:
        kept: canonical parameter or buffer name -> for each axis the kept indices, ascending, or None = all.
            Names that are not listed were not touched.
        shapes: name -> dense shape, of every parameter and buffer; checked before the receipt is applied.
        changes: integer attributes, dense value and new value.
        swaps: modules whose class was replaced by one that can hold uneven sizes: (path, key in `ops.SWAPS`).
        rewrites: modules whose forward was written again, with integers that stood in it as attributes.
        structure: fingerprint of the dense model.
        verification: None where the user asked for no check.
        version: of secateur.
    """

    kept: dict[str, tuple[tuple[int, ...] | None, ...]]
    shapes: dict[str, tuple[int, ...]]
    changes: tuple[Change, ...]
    swaps: tuple[tuple[str, str], ...]
    structure: str
    verification: Verification | None = None
    version: str = ""
    rewrites: tuple[Rewrite, ...] = ()
