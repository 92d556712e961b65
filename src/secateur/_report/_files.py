"""Plots as files: PNG and SVG in a folder, and a page of its own that shows them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur import _curves, _store
from secateur._report import _plots
from secateur._report._format import number
from secateur.errors import InputError
from secateur.schema.comparison import Agreement, Comparison
from secateur.schema.curves import Curves
from secateur.schema.scores import Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A section of a page: a picture, a table, or both."""

    name: str
    title: str
    lead: str
    picture: _plots.Picture | None = None
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def plot_curves(curves: Curves, folder: str | os.PathLike[str], *, scores: Scores | None = None) -> tuple[Path, ...]:
    """Draw measured curves: one small plot a group, a heat map, and the scores' prediction against the measurement.

    Args:
        folder: takes `curves`, `heat` and (with scores in nats) `agreement`, each as .png and .svg, and `curves.html`.
        scores: those of the scan.

    Returns:
        The files.

    Raises:
        InputError: no point was measured.  NotInstalled: matplotlib is missing.
    """
    if not curves.points:
        raise InputError("there is nothing to plot", where="curves", expected="measured points", got="none")
    lines = _curves.measured(curves, scores)
    figures = [
        Figure(
            name="curves",
            title="Loss against removed units",
            lead="Each group alone, the units with the lowest scores first. Bars and bands are 95 % intervals.",
            picture=_plots.sensitivity(curves.names, lines),
        ),
        Figure(
            name="heat",
            title="The same as a map",
            lead="Orange costs, purple gains; grey numbers are within the noise of the measurement.",
            picture=heat(curves),
        ),
    ]
    correlation = _curves.rank_correlation(lines)
    if correlation is not None:
        figures.append(
            Figure(
                name="agreement",
                title="Does the prediction hold?",
                lead=f"Rank correlation of predicted and measured loss over all points: {number(correlation, 2)}. "
                "On the dashed line the prediction is exact.",
                picture=_plots.agreement(lines),
            )
        )
    lead = f"{len(curves.names)} groups, units removed in the order of {curves.criterion}."
    return _write(Path(folder), "curves.html", "Measured sensitivity", lead, figures)


def plot_comparison(found: Comparison, folder: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Draw scores against leave-one-out: a scatter plot a criterion, and the rank correlations under their ceiling.

    Args:
        folder: takes `against` and `correlations`, each as .png and .svg, and `comparison.html`.

    Returns:
        The files.

    Raises:
        NotInstalled: matplotlib is missing.
    """
    figures = [
        Figure(
            name="correlations",
            title="Which criterion ranks the units as the measurement does?",
            lead=ceiling_in_words(found),
            picture=_plots.correlations(found),
        ),
        Figure(
            name="against",
            title="Predicted against measured",
            lead="One point a unit, taken away alone, with its 95 % interval. On the dashed line scores are exact.",
            picture=_plots.against(found),
        ),
        Figure(name="", title="Over all groups", lead=cost_in_words(found), head=OVERALL, rows=tuple(overall(found))),
        Figure(
            name="",
            title="Rank correlation inside each group",
            lead="Empty where a group has fewer than three units in the sample, or all of them are equal.",
            head=("group", "units", *found.predicted),
            rows=tuple(within(found)),
        ),
    ]
    lead = f"{len(found.units)} units of {len(found.names)} groups, measured on {found.n_examples} examples."
    if found.skipped:
        lead += f" No single unit can be taken from: {', '.join(found.skipped)}."
    return _write(Path(folder), "comparison.html", "Scores against leave-one-out", lead, figures)


OVERALL = ("criterion", "unit", "rank correlation", "slope", "lowest quarter costs, nats", "over the least")


def overall(found: Comparison) -> Iterable[tuple[str, ...]]:
    """A row a criterion, best rank correlation first: `OVERALL`."""
    everything = [a for a in found.agreements if a.group == ""]
    for a in sorted(everything, key=lambda a: -2.0 if a.spearman is None else -a.spearman):
        ratio = a.cost / found.cheapest if found.cheapest > 0 else None
        yield a.criterion, a.unit, _two(a.spearman), _two(a.slope), number(a.cost), _two(ratio)


def within(found: Comparison) -> Iterable[tuple[str, ...]]:
    """A row a group: its name, units in the sample, and the rank correlation of every criterion."""
    by_group: dict[str, list[Agreement]] = {}
    for a in found.agreements:
        if a.group:
            by_group.setdefault(a.group, []).append(a)
    for name, agreements in by_group.items():
        yield name, str(agreements[0].n), *(_two(a.spearman) for a in agreements)


def ceiling_in_words(found: Comparison) -> str:
    """How well perfect scores could do."""
    if found.ceiling is None:
        return "The measurement is too noisy to say how well perfect scores would do: take more examples."
    return f"Perfect scores would reach {number(found.ceiling, 2)}, given the noise of the measurement."


def cost_in_words(found: Comparison) -> str:
    """What the lowest quarter of the units costs at least."""
    return f"The quarter of the units that costs least costs {number(found.cheapest)} nats a unit."


def heat(curves: Curves) -> _plots.Picture:
    """Groups x requested fractions, before and (where measured) after the recovery."""
    removed = sorted({p.removed for p in curves.points})
    panels = {}
    for recovered, title in ((False, "after the cut"), (True, "after the recovery")):
        readings = {(r.group, r.n_removed): (r.loss, r.error) for line in _read(curves, recovered) for r in line}
        if readings:
            asked = {(p.group, p.removed): p.n_removed for p in curves.points if p.recovered == recovered}
            panels[title] = [
                [readings.get((g, asked.get((g, f), -1))) for f in removed] for g in range(len(curves.names))
            ]
    return _plots.heat(curves.names, removed, panels)


def _read(curves: Curves, recovered: bool) -> tuple[tuple[_curves.Reading, ...], ...]:
    return _curves.read(curves, recovered=recovered)


def _two(value: float | None) -> str:
    return "" if value is None else number(value, 2)


def _write(folder: Path, page: str, title: str, lead: str, figures: Iterable[Figure]) -> tuple[Path, ...]:
    written, sections = [], []
    for figure in figures:
        image = ""
        if figure.picture is not None:
            for form in ("png", "svg"):
                written.append(folder / f"{figure.name}.{form}")
                _store.write_bytes(written[-1], _plots.draw(figure.picture, form))
            image = _plots.uri(figure.picture)
        sections.append(
            {"title": figure.title, "lead": figure.lead, "image": image, "head": figure.head, "rows": figure.rows}
        )
    text = fill("figures.html.jinja", {"title": title, "lead": lead, "figures": sections})
    written.append(folder / page)
    _store.write_bytes(written[-1], text.encode())
    return tuple(written)


def fill(template: str, content: Mapping[str, Any]) -> str:
    """A page from its template, with everything escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("secateur._report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template).render(content)
