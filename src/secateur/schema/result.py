"""Result: what `prune` hands back, with everything that led to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from secateur.schema.budget import Budget
from secateur.schema.costs import Latency
from secateur.schema.curves import Curves
from secateur.schema.graph import Graph
from secateur.schema.groups import Groups
from secateur.schema.plan import Plan
from secateur.schema.receipt import Receipt
from secateur.schema.scores import Scores
from secateur.schema.state import Candidate, State

if TYPE_CHECKING:
    from secateur.schema.certificate import Certificate
    from secateur.schema.validation import Validation


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """A member that took part.

    Attributes:
        role: `criterion`, `allocator`, `recovery`, `schedule` or `task`.
        name: as in its table.  settings: its arguments in words.  source: citation, empty where there is none.
    """

    role: str
    name: str
    settings: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The outcome of a run of the whole pipeline.

    Attributes:
        model: the smallest candidate within the allowed drop on the search data, in eval mode;
            a copy of the dense model where no smaller one was.
        models: one per candidate, same order, dense first (a copy: the user's model is not among them).
        chosen: index of `model` in `candidates` and `models`.
        state: where the run ended: candidates, budget, allowed drop, seed, and why it stopped (`state.reason`).
        graph, groups, scores: of the dense model.
        plan, receipt: from the dense model to `model`, in indices of the dense model; None where nothing was cut.
        curves: the scan of the dense model, None where none was asked for or needed.
        validation: how the budget was chosen, None where the user gave one.
        certificate: None without held-out data; `notes` says why, if it is missing for another reason.
        used: the members that took part, with their sources.
        latency: measured times, if somebody measured (`dataclasses.replace(result, latency=...)`).
        notes: what the user should know, in sentences.
        reporter: writes the report; `prune` hands it in, so that a noun needs no stage.
    """

    model: nn.Module
    models: tuple[nn.Module, ...]
    chosen: int
    state: State
    graph: Graph
    groups: Groups
    scores: Scores
    plan: Plan | None
    receipt: Receipt | None
    curves: Curves | None
    validation: Validation | None
    certificate: Certificate | None
    used: tuple[Used, ...]
    reporter: Callable[[Result, str | PathLike[str]], Path]
    latency: tuple[Latency, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """All models on the path, dense first, accepted or not."""
        return self.state.candidates

    @property
    def budget(self) -> Budget | None:
        """The final target, given or chosen by cross-validation."""
        return self.state.budget

    def report(self, path: str | PathLike[str]) -> Path:
        """Write one self-contained HTML file and return its path."""
        return self.reporter(self, path)
