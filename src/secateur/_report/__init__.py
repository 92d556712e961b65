"""report: one self-contained HTML file that a person wants to read. Works offline; refers to nothing outside itself."""

from __future__ import annotations

import dataclasses
import os
import platform
from pathlib import Path

import torch

from secateur import _store, _surgery
from secateur._report._files import OVERALL as OVERALL
from secateur._report._files import ceiling_in_words as ceiling_in_words
from secateur._report._files import cost_in_words as cost_in_words
from secateur._report._files import fill
from secateur._report._files import overall as overall
from secateur._report._files import plot_comparison as plot_comparison
from secateur._report._files import plot_curves as plot_curves
from secateur._report._files import within as within
from secateur._report._groups import groups_page
from secateur._report._groups import outline as outline
from secateur._report._page import frozen_rows as frozen_rows
from secateur._report._page import page, verdict_lines
from secateur.schema.groups import Groups
from secateur.schema.plan import Plan
from secateur.schema.report import Report, Width
from secateur.schema.result import Result


def report(result: Result, path: str | os.PathLike[str]) -> Path:
    """Write the report of a run as one HTML file.

    Returns:
        The path of the file.

    Raises:
        NotInstalled: matplotlib is missing.
    """
    return write(summary(result), path)


def write(content: Report, path: str | os.PathLike[str]) -> Path:
    """Render `content` and write it, in one step."""
    _store.write_bytes(Path(path), render(content).encode())
    return Path(path)


def summary(result: Result) -> Report:
    """Everything that a report shows, without tensors: saved as JSON, it can be rendered again."""
    # the receipts list every kept index of every candidate: long, and of no use on a page
    candidates = tuple(dataclasses.replace(c, receipt=None) for c in result.candidates)
    receipt = result.candidates[result.chosen].receipt
    return Report(
        model=type(result.model).__name__,
        state=dataclasses.replace(result.state, candidates=candidates),
        chosen=result.chosen,
        n_search=result.scores.n_examples,
        widths=_widths(result.groups, result.plan),
        frozen=result.groups.frozen,
        scores=result.scores,
        curves=result.curves,
        validation=result.validation,
        certificate=result.certificate,
        verification=None if receipt is None else receipt.verification,
        used=result.used,
        latency=result.latency,
        notes=(*result.groups.notes, *result.notes),
        environment={
            "secateur": _surgery.package_version(),
            "torch": torch.__version__,
            "Python": platform.python_version(),
            "on": f"{platform.system()} {platform.machine()}",
            "torch threads": str(torch.get_num_threads()),
        },
    )


def render(content: Report) -> str:
    """The HTML text of a report.

    Raises:
        NotInstalled: matplotlib is missing.
    """
    return fill("template.html.jinja", page(content))


def draw_groups(groups: Groups, model: str, path: str | os.PathLike[str]) -> Path:
    """Write what `couple` found as one HTML file: where the parameters are, what can go together, and what cannot.

    Args:
        model: what the page calls it.

    Returns:
        The path of the file.
    """
    _store.write_bytes(Path(path), fill("groups.html.jinja", groups_page(groups, model)).encode())
    return Path(path)


def verdict(content: Report) -> list[str]:
    """The head of the report, as lines of text."""
    _, head, lines = verdict_lines(content)
    return [head, *lines]


def _widths(groups: Groups, plan: Plan | None) -> tuple[Width, ...]:
    return tuple(
        Width(
            name=group.name,
            kind=group.kind,
            module=group.module,
            n_units=group.n_units,
            n_kept=group.n_units if plan is None else len(plan.kept[group.index]),
            exact=group.exact,
            why=group.inexact_because,
        )
        for group in groups.groups
    )
