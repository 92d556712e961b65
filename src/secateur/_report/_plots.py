"""Plots of the report, as SVG in a data URI: they work offline and cannot meddle with the page around them.

Every function takes plain numbers and returns the text for the `src` of an image.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

from secateur._report._curves import Measured
from secateur.errors import NotInstalled

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
DENSE, GOOD, BAD, ACCENT, COOL = "#52606d", "#0b7a75", "#b3261e", "#c77700", "#3b6fb6"
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


def _draw(width: float, height: float, paint: Any) -> str:
    """Run `paint(figure)` under our style; inches."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NotInstalled(
            "the plots of the report need matplotlib", got=error, todo="pip install 'secateur[demo]'"
        ) from None
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        # a Figure of its own instead of pyplot: no global state, nothing to close
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def path(
    kept: Sequence[float],
    scores: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    accepted: Sequence[bool],
    chosen: int,
    max_drop: float | None,
    label: str,
) -> str:
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

    return _draw(5.4, 3.0, paint)


def sensitivity(names: Sequence[str], lines: Sequence[Sequence[Measured]], *, columns: int = 4) -> str:
    """Small multiples: measured loss increase of every group with 95 % bars, its fit, and what the scores predict."""
    shown = [(name, line) for name, line in zip(names, lines, strict=True) if line]
    rows = -(-len(shown) // columns)
    every = [p.reading for _, line in shown for p in line]
    every += [p.recovered for _, line in shown for p in line if p.recovered is not None]
    top = max(r.loss + 1.96 * r.error for r in every)
    low = min(r.loss - 1.96 * r.error for r in every)

    def paint(figure: Any) -> None:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for cell in grid.flat[len(shown) :]:
            cell.axis("off")
        for cell in grid.flat[max(0, len(shown) - columns) : len(shown)]:
            cell.tick_params(labelbottom=True)
        for cell, (name, line) in zip(grid.flat, shown, strict=False):
            _one_curve(cell, line)
            cell.set_title(_short(name, 26), loc="left")
        # one steep group must not flatten all others: linear near zero, logarithmic above
        if top > 0.5:
            grid[0, 0].set_yscale("symlog", linthresh=0.1, linscale=0.7)
            ticks = [t for t in (-1, -0.1, 0, 0.1, 1, 10, 100) if 1.5 * min(low, 0) <= t <= 1.5 * top]
            grid[0, 0].set_yticks(ticks, [f"{t:g}" for t in ticks])
            grid[0, 0].minorticks_off()
        grid[0, 0].set_ylim(min(1.2 * low, -0.02), 1.2 * top)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, fontsize=8.5, loc="outside upper right", ncols=len(labels))
        figure.supxlabel("units removed, %", fontsize=9)
        figure.supylabel("increase of the loss, nats", fontsize=9)

    return _draw(2.6 * columns, 1.75 * rows + 0.75, paint)


def _one_curve(cell: Any, line: Sequence[Measured]) -> None:
    points = [p.reading for p in line]
    x, ends = [100 * r.removed for r in points], [0.0, *(100 * r.removed for r in points)]
    cell.axhline(0, color=MUTED, linewidth=0.8)
    cell.fill_between(ends, [0, *(r.low for r in points)], [0, *(r.high for r in points)], color=GOOD, alpha=0.13, lw=0)
    cell.plot(ends, [0, *(r.fit for r in points)], color=GOOD, linewidth=1.2, label="isotonic fit")
    if all(p.predicted is not None for p in line):
        cell.plot(x, [p.predicted for p in line], color=ACCENT, lw=1.1, ls=(0, (4, 2)), label="score predicts")
    after = [p.recovered for p in line if p.recovered is not None]
    if after:
        bars = [1.96 * r.error for r in after]
        values = [100 * r.removed for r in after], [r.loss for r in after], bars
        cell.errorbar(*values, fmt="s-", color=COOL, ms=2.5, lw=1, elinewidth=0.9, label="recalibrated")
    bars = [1.96 * r.error for r in points]
    cell.errorbar(x, [r.loss for r in points], bars, fmt="o", color=GOOD, ms=3, elinewidth=0.9, label="measured")


def agreement(lines: Sequence[Sequence[Measured]]) -> str:
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

    return _draw(3.9, 3.0, paint)


def scores(names: Sequence[str], values: Sequence[Sequence[float]]) -> str:
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

    return _draw(6.6, 0.26 * len(names) + 0.7, paint)


def _short(name: str, n: int) -> str:
    return name if len(name) <= n else f"…{name[1 - n :]}"
