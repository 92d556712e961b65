"""`secateur score --compare`: criteria beside leave-one-out, always with four that every paper compares with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from torch import nn

from secateur import _report, criteria
from secateur._evaluate import Progress
from secateur._score import compare, score
from secateur.cli._shell import console
from secateur.errors import InputError, MissingStatistic
from secateur.schema.comparison import Comparison
from secateur.schema.groups import Groups
from secateur.schema.members import Criterion
from secateur.schema.task import Batches, Task

MOST_COLUMNS = 4  # of criteria in a table on a terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class EveryOther:
    """Every second batch, beginning with `start`: two halves of the data that share nothing."""

    batches: Batches
    start: int

    def __iter__(self) -> Iterator[Any]:
        return (batch for index, batch in enumerate(self.batches) if index % 2 == self.start)


@dataclass(frozen=True, slots=True, kw_only=True)
class First:
    """The first batch alone."""

    batches: Batches

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.batches), 1)


def halves(batches: Batches) -> tuple[Batches, Batches]:
    """What scores are made from, and what is measured on: every other batch, and those between.

    Raises:
        InputError: there is only one batch.
    """
    scoring, measuring = (EveryOther(batches=batches, start=start) for start in (0, 1))
    if next(iter(measuring), None) is None:
        raise InputError(
            "there is one batch only: scores would be compared with the examples they were made from",
            where="search data",
            todo="use smaller batches; every other one is measured on",
        )
    return scoring, measuring


def compared(
    model: nn.Module,
    groups: Groups,
    batches: Batches,
    task: Task,
    chosen: Sequence[Criterion],
    *,
    n_units: int,
    seed: int,
    progress: Progress | None,
) -> tuple[Comparison, dict[str, str]]:
    """Scores from every other batch, leave-one-out on the batches between them.

    Returns:
        The comparison; criterion -> why it cannot serve this model or task.

    Raises:
        InputError: there is only one batch.
    """
    scoring, measuring = halves(batches)
    wanted, missing = with_yardsticks(chosen), {}
    for criterion in wanted:  # what a criterion needs shows on the first batch; then one pass serves all
        try:
            score(model, groups, First(batches=scoring), task, criterion=criterion, seed=seed)
        except MissingStatistic as error:
            missing[criterion.name] = error.what
    able = [criterion for criterion in wanted if criterion.name not in missing]
    scores = score(model, groups, scoring, task, criterion=able, seed=seed, progress=progress)
    found = compare(model, groups, measuring, task, scores, n_units=n_units, seed=seed, progress=progress)
    return found, missing


def with_yardsticks(chosen: Sequence[Criterion]) -> list[Criterion]:
    """The chosen criteria, and what no comparison should be without: chance, two norms, the usual "Taylor"."""
    always = (criteria.random(), criteria.magnitude(p=1), criteria.magnitude(p=2), criteria.absolute_taylor())
    return list({criterion.name: criterion for criterion in (*chosen, *always)}.values())


def show(found: Comparison, missing: dict[str, str], files: Sequence[Path]) -> None:
    """Tables over all units and per group."""
    out = console()
    title = f"{len(found.units)} units taken away one at a time, measured on {found.n_examples} examples"
    table = Table(*_report.OVERALL, title=title)
    for row in _report.overall(found):
        table.add_row(*map(escape, row))
    table.columns[0].no_wrap = True
    for column in table.columns[2:]:
        column.justify = "right"
    out.print(table)
    out.print(f"{_report.ceiling_in_words(found)} {_report.cost_in_words(found)}")
    names = list(found.predicted)
    for start in range(0, len(names), MOST_COLUMNS):
        stop = start + MOST_COLUMNS
        table = Table("group", "units", *names[start:stop], title="rank correlation inside each group")
        for name, n, *values in _report.within(found):
            table.add_row(escape(name), n, *values[start:stop])
        for column in table.columns[1:]:
            column.justify = "right"
        out.print(table)
    for name, why in missing.items():
        out.print(f"[dim]{escape(name)} is left out: {escape(why)}[/dim]")
    if found.skipped:
        out.print(f"[dim]no single unit can be taken from: {escape(', '.join(found.skipped))}[/dim]")
    for path in files:
        out.print(escape(str(path)), soft_wrap=True)
