"""Report: everything that the written report shows, without tensors. Saved as JSON it can be rendered again."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.schema.certificate import Certificate
from secateur.schema.costs import Latency
from secateur.schema.curves import Curves
from secateur.schema.groups import Frozen
from secateur.schema.receipt import Verification
from secateur.schema.result import Used
from secateur.schema.scores import Scores
from secateur.schema.state import State
from secateur.schema.validation import Validation


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """One group, dense and pruned.

    Attributes:
        name, kind, module: of the group.  n_units: dense.  n_kept: of them.
        exact: zeroing equals cutting.  why: the statistic over the cut axis, where it does not.
    """

    name: str
    kind: str
    module: str
    n_units: int
    n_kept: int
    exact: bool
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The content of a report.

    Attributes:
        model: class of the model.
        state: of the run, without the receipts of its candidates.  chosen: index of the result in its candidates.
        n_search: examples of the search data.
        widths: of the result.  frozen: what could not be removed.
        verification: of the cut that led to the result.
        environment: versions and machine, for the last lines.
    """

    model: str
    state: State
    chosen: int
    n_search: int
    widths: tuple[Width, ...]
    frozen: tuple[Frozen, ...]
    scores: Scores | None
    curves: Curves | None
    validation: Validation | None
    certificate: Certificate | None
    verification: Verification | None
    used: tuple[Used, ...]
    latency: tuple[Latency, ...] = ()
    notes: tuple[str, ...] = ()
    environment: dict[str, str]
