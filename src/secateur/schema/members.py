"""Protocols of the members: what a criterion, an allocator, a recovery ... has to offer.

A member is made by a call (`taylor()`, `finetune(epochs=3)`) and is a small frozen object or plain function
with the signature below. All members of one folder share one signature. Their attributes are read only, so that
frozen records fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from secateur.schema.certificate import Drops, Outcome
from secateur.schema.problem import Problem
from secateur.schema.task import Batches, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """A score per unit, computed from named statistics with the unit axis first.

    Attributes:
        name: as in the table.  needs: names of the statistics (see `secateur._stats`).
        wants: statistics that it uses where the task can give them.
        unit: `nats` where the value is a predicted loss increase, else `a.u.`.
        order: of the expansion in the scale of the unit; 0 where it is none.
        source: authors, year, arXiv, equation.
        compute: statistics of one group -> coefficients: {"value": [U], optional "error", "linear", "quadratic": [U]}.
        kinds: group kinds it serves; empty = all.
    """

    name: str
    needs: tuple[str, ...]
    unit: Literal["nats", "a.u."]
    order: int
    source: str
    compute: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    wants: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()


class Allocator(Protocol):
    """Kept counts for a problem: [group]. Deterministic; never exceeds the budget; satisfies the equations."""

    @property
    def name(self) -> str: ...

    def __call__(self, problem: Problem) -> tuple[int, ...]: ...


class Recovery(Protocol):
    """Wins back quality; trains `model` in place (a copy that `recover` made) and returns it.

    Attributes:
        name: as in the table.  gradients: whether it needs them.  source: citation.
    """

    @property
    def name(self) -> str: ...

    @property
    def gradients(self) -> bool: ...

    @property
    def source(self) -> str: ...

    def __call__(
        self,
        model: nn.Module,
        batches: Batches,
        task: Task,
        *,
        teacher: nn.Module | None,
        seed: int,
        progress: Callable[[str, int, int], None] | None,
    ) -> nn.Module: ...


class Schedule(Protocol):
    """Fraction of the way to the target after step `step` of `steps` (1-based), in (0, 1], 1 at the end.

    Attributes:
        name: as in the table.  source: citation, empty where there is none.
    """

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> str: ...

    def __call__(self, step: int, steps: int) -> float: ...


class Exporter(Protocol):
    """Writes a model to `path` in some format and checks it there."""

    @property
    def name(self) -> str: ...

    def __call__(self, model: nn.Module, example_inputs: Any, path: str) -> Mapping[str, Any]: ...


class Executor(Protocol):
    """Maps a work function over work items; results may come in any order, as (index, result).

    Where its processes do not see the memory of the caller, it says `remote = True`, and how many they are (`n`): each
    of them then computes for itself, in its part of the memory, what the others would find ready.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[tuple[int, Any]]: ...


class Certifier(Protocol):
    """Decides from paired drops whether the mean drop is shown to be at most a margin.

    Attributes:
        name: as in the table.  settings: its arguments in words.  source: citation.
        sequential: whether it may look after every unit (and so stop early), or only once at the planned n.

    `__call__` rejects "mean drop > margin" wrongly with probability at most `level`, whatever the drops are.
    `limit` is an upper confidence limit of the mean drop, at most the margin if and only if `__call__` certifies.
    `needed` estimates the units for a power of 0.8, with the calculation in words;
    None where the drops seen are not below the margin.
    """

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> str: ...

    @property
    def source(self) -> str: ...

    @property
    def sequential(self) -> bool: ...

    def __call__(self, drops: Drops, *, margin: float, level: float) -> Outcome: ...

    def limit(self, drops: Drops, *, margin: float, level: float) -> float: ...

    def needed(self, drops: Drops, *, margin: float, level: float) -> tuple[int, str] | None: ...


class Metric(Protocol):
    """Drops of examples as one number with its standard error; positive = worse.

    Args of the call: drops [N] float64, paired (dense minus pruned score, or pruned minus dense loss);
    weights [N]; groups: N keys of dependent examples, or None.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, drops: Tensor, weights: Tensor, groups: Sequence[object] | None) -> tuple[float, float]: ...
