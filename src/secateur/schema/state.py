"""State: everything a gradual pruning run needs to go on, except the tensors (stored beside it)."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.schema.budget import Budget
from secateur.schema.costs import Costs
from secateur.schema.receipt import Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One model on the path from dense to sparse.

    Attributes:
        step: which gradual step made it (0 = dense).
        file: name of its tensors inside the run directory.
        receipt: cut from the dense model; None for the dense one.
        costs: MACs, parameters, bytes.  removed: fraction of the MACs removed.
        search_loss: mean loss on the search data; search_correct: mean score; drop: dense minus this one.
        accepted: within the allowed drop on the search data.
        weights: fingerprint of the tensors in `file`, checked when they are read.
    """

    step: int
    file: str
    receipt: Receipt | None
    costs: Costs
    search_loss: float
    search_correct: float | None
    drop: float | None
    accepted: bool
    removed: float = 0.0
    weights: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Where a gradual run stands.

    Attributes:
        step: steps done.  steps: steps in all.
        budget: final target.  max_drop: allowed drop of the score on the search data.
        candidates: so far, dense first.
        finished: no further step will be made; reason: why.
        seed: of the run.
        settings: fingerprint of every argument that must not change on resume.
    """

    step: int
    steps: int
    budget: Budget | None
    max_drop: float | None
    candidates: tuple[Candidate, ...]
    finished: bool
    reason: str
    seed: int
    settings: str
