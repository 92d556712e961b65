"""Plots, for the report and for files.

Every function takes plain numbers or readings and returns a `Picture`, which is drawn as SVG or PNG bytes, or as SVG in
a data URI: on a page it works offline and cannot meddle with what is around it.

Colours differ in lightness as well as in hue, and no line or marker is told apart by colour alone.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from secateur._curves import Measured
from secateur.errors import NotInstalled
from secateur.schema.comparison import Comparison

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
DENSE, GOOD, BAD, ACCENT, COOL = "#52606d", "#0b7a75", "#b3261e", "#c77700", "#3b6fb6"
BEFORE, FIT, AFTER, PREDICTED = "measured", "isotonic fit, 95 %", "after the recovery", "score predicts"
MOST_ROWS_WITH_NUMBERS = 60  # of a heat map; more, and nobody can read them
_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Segoe UI", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    # glyphs as outlines: the page looks the same on a machine without these fonts
    "svg.fonttype": "path",
    "svg.hashsalt": "secateur",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A plot that has not been drawn yet: its size in inches, and what paints it on a figure."""

    width: float
    height: float
    paint: Callable[[Any], None]


def draw(picture: Picture, form: Literal["svg", "png"]) -> bytes:
    """The picture under our style; SVG is transparent, PNG white.

    Raises:
        NotInstalled: matplotlib is missing.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NotInstalled("plots need matplotlib", got=error, todo="pip install 'secateur[demo]'") from None
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        # a Figure of its own instead of pyplot: no global state, nothing to close
        figure = Figure(figsize=(picture.width, picture.height), layout="constrained")
        picture.paint(figure)
        # no dates: the same numbers give the same file
        same = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
        figure.savefig(buffer, format=form, transparent=form == "svg", dpi=150, metadata=same)
    return buffer.getvalue()


def uri(picture: Picture) -> str:
    """The text for the `src` of an image."""
    return "data:image/svg+xml;base64," + base64.b64encode(draw(picture, "svg")).decode()


def path(
    kept: Sequence[float],
    scores: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    accepted: Sequence[bool],
    chosen: int,
    max_drop: float | None,
    label: str,
) -> Picture:
    """Score of each candidate against the MACs it keeps, with the line it must not fall below."""

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        x = [100 * k for k in kept]
        axes.plot(x, [100 * s for s in scores], color=MUTED, linewidth=1.2, zorder=1)
        for i, (k, s, (low, high)) in enumerate(zip(x, scores, intervals, strict=True)):
            color = DENSE if i == 0 else GOOD if accepted[i] else BAD
            bars = [[100 * (s - low)], [100 * (high - s)]]
            axes.errorbar([k], [100 * s], yerr=bars, fmt="o", color=color, markersize=5, capsize=3, linewidth=1.2)
        axes.plot([x[chosen]], [100 * scores[chosen]], "o", markersize=11, markerfacecolor="none", color=GOOD)
        axes.annotate(
            "chosen" if chosen else "dense",
            (x[chosen], 100 * scores[chosen]),
            (-9, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            color=GOOD,
        )
        if max_drop is not None:
            floor = 100 * (scores[0] - max_drop)
            axes.axhline(floor, color=BAD, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                "allowed drop",
                (0.01, floor),
                (0, -3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                color=BAD,
                va="top",
                ha="left",
            )
        axes.set_xlim(104, min(x) - 6)
        axes.margins(y=0.2)
        axes.set_xlabel("MACs kept, %")
        axes.set_ylabel(label)

    return Picture(width=5.4, height=3.0, paint=paint)


def sensitivity(names: Sequence[str], lines: Sequence[Sequence[Measured]], *, columns: int = 4) -> Picture:
    """Small multiples: measured loss increase of every group with 95 % bars, its fit, and what the scores predict."""
    shown = [(name, line) for name, line in zip(names, lines, strict=True) if line]
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    every = [p.reading for _, line in shown for p in line]
    every += [p.recovered for _, line in shown for p in line if p.recovered is not None]
    low, top = min(r.loss - 1.96 * r.error for r in every), max(r.loss + 1.96 * r.error for r in every)

    def paint(figure: Any) -> None:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for cell in grid.flat[len(shown) :]:
            cell.axis("off")
        for cell in grid.flat[max(0, len(shown) - columns) : len(shown)]:
            cell.tick_params(labelbottom=True)
        handles: dict[str, Any] = {}
        for cell, (name, line) in zip(grid.flat, shown, strict=False):
            _one_curve(cell, line)
            cell.set_title(_short(name, 28), loc="left")
            handles |= dict(zip(*reversed(cell.get_legend_handles_labels()), strict=True))
        first = grid[0, 0]
        first.set_xlim(0, 100)
        # one steep group must not flatten all others
        near = _widen(first, "y", [r.loss for r in every], low, top)
        margin = near or 0.05 * max(-low, top) or 1.0
        first.set_ylim(min(1.25 * low, -margin), max(1.25 * top, margin))
        order = [label for label in (BEFORE, FIT, AFTER, PREDICTED) if label in handles]
        figure.legend([handles[k] for k in order], order, fontsize=8.5, loc="outside upper right", ncols=len(order))
        figure.supxlabel("units removed, %", fontsize=9)
        figure.supylabel("increase of the loss, nats", fontsize=9)

    return Picture(width=max(5.4, 2.6 * columns), height=1.75 * rows + 0.75, paint=paint)


def _one_curve(cell: Any, line: Sequence[Measured]) -> None:
    before, after = [p.reading for p in line], [p.recovered for p in line if p.recovered is not None]
    cell.axhline(0, color=MUTED, linewidth=0.8)
    ends = [0.0, *(100 * r.removed for r in before)]
    low, high = [0.0, *(r.low for r in before)], [0.0, *(r.high for r in before)]
    cell.fill_between(ends, low, high, color=GOOD, alpha=0.15, linewidth=0)
    cell.plot(ends, [0.0, *(r.fit for r in before)], color=GOOD, linewidth=1.2, label=FIT)
    for readings, color, style, face, label in ((before, GOOD, "o", GOOD, BEFORE), (after, COOL, "s:", "white", AFTER)):
        if readings:
            x, bars = [100 * r.removed for r in readings], [1.96 * r.error for r in readings]
            shape = {"color": color, "mfc": face, "ms": 3.2, "lw": 1, "elinewidth": 0.9}
            cell.errorbar(x, [r.loss for r in readings], bars, fmt=style, label=label, **shape)
    if all(p.predicted is not None for p in line):
        x = [0.0, *(100 * p.reading.removed for p in line)]
        predicted = [0.0, *(p.predicted for p in line)]
        cell.plot(x, predicted, color=ACCENT, linewidth=1.3, linestyle=(0, (4, 2)), label=PREDICTED)


def _widen(axes: Any, axis: Literal["x", "y"], values: Sequence[float], low: float, top: float) -> float:
    """Linear near zero and logarithmic beyond, with decades as ticks; linear where one decade holds all of it.

    Returns:
        Half the value where the scale turns logarithmic; 0 where it is linear.
    """
    middle = sorted(abs(v) for v in values)[len(values) // 2]
    reach = max(-low, top)
    if reach <= 0 or middle >= reach / 10:
        return 0.0
    # at most four decades: what lies below is noise
    threshold = 10.0 ** math.floor(math.log10(max(middle, reach / 1e4)))
    (axes.set_xscale if axis == "x" else axes.set_yscale)("symlog", linthresh=threshold, linscale=0.7)
    decades = [threshold * 10.0**k for k in range(6)]
    ticks = [t for t in (*(-d for d in reversed(decades)), 0.0, *decades) if 1.3 * min(low, 0.0) <= t <= 1.3 * top]
    (axes.set_xticks if axis == "x" else axes.set_yticks)(ticks, [_tick(t) for t in ticks])
    axes.minorticks_off()
    return threshold / 2


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", "\N{MINUS SIGN}") if abs(value) >= 1e-3 or not value else _power(value)


def _power(value: float) -> str:
    sign = "-" if value < 0 else ""
    return f"${sign}10^{{{round(math.log10(abs(value)))}}}$"


def heat(
    names: Sequence[str], removed: Sequence[float], panels: Mapping[str, Sequence[Sequence[tuple[float, float] | None]]]
) -> Picture:
    """Groups x removed fractions: colour and number are the measured loss increase; grey numbers are within noise.

    Args:
        panels: title -> [g][j] (loss, standard error); None = not measured.
    """
    shown = [g for g in range(len(names)) if any(cells[g][j] for cells in panels.values() for j in range(len(removed)))]
    found = [cell for cells in panels.values() for row in cells for cell in row if cell is not None]
    reach = max((abs(loss) for loss, _ in found), default=0.0) or 1.0
    middle = sorted(abs(loss) for loss, _ in found)[len(found) // 2]
    threshold = 10.0 ** math.floor(math.log10(max(middle, reach / 1e3)))
    written = len(shown) <= MOST_ROWS_WITH_NUMBERS

    def paint(figure: Any) -> None:
        from matplotlib.colors import SymLogNorm

        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        norm = SymLogNorm(linthresh=threshold, linscale=0.5, vmin=-reach, vmax=reach)
        for cell, (title, cells) in zip(axes, panels.items(), strict=True):
            values = [[math.nan if (c := cells[g][j]) is None else c[0] for j in range(len(removed))] for g in shown]
            # purple and orange: told apart by everyone
            image = cell.imshow(values, cmap="PuOr_r", norm=norm, aspect="auto", interpolation="nearest")
            cell.set_facecolor(GRID)
            cell.set_title(title, loc="left")
            cell.set_xticks(range(len(removed)), [f"{100 * f:.3g}" for f in removed])
            cell.set_yticks(range(len(shown)), [_short(names[g], 34) for g in shown], fontsize=8 if written else 6)
            cell.grid(visible=False)
            cell.spines[:].set_visible(False)
            cell.tick_params(length=0)
            for i, g in enumerate(shown):
                for j, held in enumerate(cells[g]):
                    if held is not None and written:
                        loss, error = held
                        red, green, blue, _ = image.cmap(norm(loss))
                        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.55
                        color = "white" if dark else MUTED if abs(loss) < 1.96 * error else INK
                        text = f"{loss:.2g}".replace("-", "\N{MINUS SIGN}")
                        cell.text(j, i, text, ha="center", va="center", color=color, fontsize=6.5)
        bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.04, aspect=30)
        decades = [threshold * 10.0**k for k in range(5) if threshold * 10.0**k <= reach]
        ticks = [*(-d for d in reversed(decades)), 0.0, *decades]
        bar.set_ticks(ticks, labels=[_tick(t) for t in ticks])
        bar.minorticks_off()
        bar.outline.set_visible(False)
        bar.set_label("increase of the loss, nats")
        figure.supxlabel("units removed, %", fontsize=9)

    height = (0.26 if written else 0.12) * len(shown) + 1.1
    return Picture(width=2.6 + 0.56 * len(removed) * len(panels), height=max(2.0, height), paint=paint)


def agreement(lines: Sequence[Sequence[Measured]]) -> Picture:
    """Predicted against measured loss increase of every point, both on one symmetric logarithmic scale."""
    points = [p for line in lines for p in line if p.predicted is not None]

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        x, y = [p.predicted or 0.0 for p in points], [p.reading.loss for p in points]
        bars = [1.96 * p.reading.error for p in points]
        axes.errorbar(x, y, yerr=bars, fmt="o", color=GOOD, markersize=3, elinewidth=0.7)
        ends = [min(*x, *y, 0.0), max(*x, *y, 1e-3)]
        axes.plot(ends, ends, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        threshold = max(1e-3, 10 ** math.floor(math.log10(sorted(map(abs, y))[len(y) // 4] + 1e-9)))
        axes.set_xscale("symlog", linthresh=threshold)
        axes.set_yscale("symlog", linthresh=threshold)
        axes.minorticks_off()
        axes.set_xlabel("predicted, nats")
        axes.set_ylabel("measured, nats")

    return Picture(width=3.9, height=3.0, paint=paint)


def against(found: Comparison, *, columns: int = 3) -> Picture:
    """Small multiples: what each criterion predicted against what was measured, one point a unit, with 95 % bars."""
    criteria = [a for a in found.agreements if a.group == ""]
    columns = min(columns, len(criteria))
    rows = -(-len(criteria) // columns)
    bars = [1.96 * e for e in found.errors]
    low, top = (
        pick(m + sign * b for m, b in zip(found.measured, bars, strict=True)) for pick, sign in ((min, -1), (max, 1))
    )

    def paint(figure: Any) -> None:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for cell in grid.flat[len(criteria) :]:
            cell.axis("off")
        _widen(grid[0, 0], "y", found.measured, low, top)
        for cell, one in zip(grid.flat, criteria, strict=False):
            x = found.predicted[one.criterion]
            color = GOOD if one.unit == "nats" else DENSE
            cell.axhline(0, color=MUTED, linewidth=0.8)
            style = {"fmt": "o", "color": color, "ms": 3, "elinewidth": 0.6, "mec": "white", "mew": 0.3}
            cell.errorbar(x, found.measured, yerr=bars, alpha=0.85, **style)
            _widen(cell, "x", x, min(x), max(x))
            if one.unit == "nats":
                ends = [min(*x, 0.0), max(x)]
                cell.plot(ends, ends, color=ACCENT, linewidth=1.2, linestyle=(0, (4, 2)))
            facts = [] if one.spearman is None else [f"rank {one.spearman:.2f}".replace("-", "\N{MINUS SIGN}")]
            facts += [] if one.slope is None else [f"slope {one.slope:.2g}"]
            cell.set_title(_short(one.criterion, 26), loc="left", pad=14)
            where = {"xycoords": "axes fraction", "xytext": (0, 3), "textcoords": "offset points"}
            cell.annotate(", ".join([*facts, one.unit]), (0, 1), fontsize=7.5, color=MUTED, **where)
            cell.locator_params(axis="x", nbins=5) if cell.get_xscale() == "linear" else None
            cell.tick_params(labelsize=7.5)
        figure.supxlabel("score", fontsize=9)
        figure.supylabel("measured increase of the loss, nats", fontsize=9)

    return Picture(width=max(4.0, 2.9 * columns), height=2.25 * rows + 0.5, paint=paint)


def correlations(found: Comparison) -> Picture:
    """Bars: rank correlation of every criterion with leave-one-out, best first, and the ceiling of the measurement."""
    criteria = sorted(
        (a for a in found.agreements if a.group == "" and a.spearman is not None), key=lambda a: a.spearman or 0.0
    )

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        values = [a.spearman or 0.0 for a in criteria]
        hatches = ["" if a.unit == "nats" else "////" for a in criteria]
        axes.barh(
            range(len(values)), values, height=0.62, color="#d7efed", edgecolor=GOOD, hatch=hatches, linewidth=0.9
        )
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        for i, value in enumerate(values):
            text = f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
            axes.annotate(
                text, (max(value, 0.0), i), (4, 0), textcoords="offset points", va="center", fontsize=8, bbox=paper
            )
        axes.set_yticks(range(len(values)), [_short(a.criterion, 30) for a in criteria])
        axes.axvline(0, color=MUTED, linewidth=0.8)
        if found.ceiling is not None:
            axes.axvline(found.ceiling, color=ACCENT, linewidth=1.3, linestyle=(0, (4, 2)))
            side = {"ha": "center", "va": "bottom", "color": ACCENT, "fontsize": 8, "textcoords": "offset points"}
            at = (found.ceiling, 1), (0, 3)
            axes.annotate(f"ceiling {found.ceiling:.2f}", *at, xycoords=("data", "axes fraction"), **side)
        axes.set_xlim(min([0.0, *values]) - 0.05, max([1.0, *values]) + 0.08)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("rank correlation with leave-one-out   (hatched: arbitrary units)")

    return Picture(width=6.0, height=0.3 * len(criteria) + 1.0, paint=paint)


def scores(names: Sequence[str], values: Sequence[Sequence[float]]) -> Picture:
    """All scores, sorted within their group: how much there is to gain where."""

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        data = [sorted(v) for v in values]
        axes.boxplot(
            data,
            orientation="horizontal",
            whis=(5, 95),
            widths=0.6,
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": "#d7efed", "edgecolor": GOOD},
            medianprops={"color": GOOD},
            whiskerprops={"color": GOOD},
            capprops={"color": GOOD},
        )
        axes.set_yticks(range(1, len(names) + 1), [_short(n, 34) for n in names])
        axes.invert_yaxis()
        axes.axvline(0, color=MUTED, linewidth=0.8)
        scale = sorted(abs(v) for line in data for v in line)
        threshold = max(scale[len(scale) // 2], 1e-12)
        axes.set_xscale("symlog", linthresh=10 ** math.floor(math.log10(threshold)))
        axes.minorticks_off()
        axes.grid(visible=False, axis="y")

    return Picture(width=6.6, height=0.26 * len(names) + 0.7, paint=paint)


def _short(name: str, n: int) -> str:
    return name if len(name) <= n else f"…{name[1 - n :]}"
