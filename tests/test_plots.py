"""Plots as files: what is written, what stands in them, and that odd numbers do not break them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from helpers import reports
from secateur import _curves, _report
from secateur._report import _files, _plots
from secateur.errors import InputError
from secateur.schema.comparison import Agreement, Comparison
from secateur.schema.curves import Curves, Point

PNG = b"\x89PNG\r\n\x1a\n"


def point(group: int, removed: float, mean: float, *, recovered: bool = False, spread: float = 0.1) -> Point:
    n = 100
    return Point(
        group=group,
        removed=removed,
        n_removed=max(1, round(10 * removed)),
        fold=0,
        n=n,
        weight=n,
        loss=n * mean,
        loss_sq=n * (mean**2 + spread**2),
        drop=None,
        drop_sq=None,
        base_loss=n,
        base_correct=None,
        recovered=recovered,
        weight_sq=n,
    )


def curves(points: list[Point], groups: int = 2) -> Curves:
    return Curves(
        points=tuple(points),
        names=tuple(f"layer{g}" for g in range(groups)),
        n_units=(10,) * groups,
        n_folds=1,
        criterion="obd",
    )


def comparison() -> Comparison:
    def one(criterion: str, unit: str, group: str, rank: float | None, slope: float | None) -> Agreement:
        return Agreement(criterion=criterion, unit=unit, group=group, n=4, spearman=rank, slope=slope, cost=0.01)  # type: ignore[arg-type]

    return Comparison(
        names=("a", "b", "c"),
        units=((0, 0), (0, 1), (1, 0), (1, 3)),
        measured=(-0.01, 0.02, 0.5, 3.0),
        errors=(0.01, 0.01, 0.02, 0.3),
        predicted={"obd": (0.0, 0.03, 0.4, 2.0), "random": (0.3, 0.1, 0.9, 0.5)},
        agreements=(
            one("obd", "nats", "", 0.9, 1.4),
            one("random", "a.u.", "", -0.2, None),
            one("obd", "nats", "a", None, None),
            one("random", "a.u.", "a", 0.1, None),
        ),
        ceiling=0.97,
        cheapest=0.005,
        skipped=("c",),
        n_examples=300,
    )


def words(svg: str) -> set[str]:
    """Matplotlib writes each text that it draws as outlines into a comment before them."""
    return set(re.findall(r"<!-- (.*?) -->", svg))


def test_curves_leave_three_pictures_in_two_forms_and_a_page(tmp_path: Path) -> None:
    content = reports.full()
    assert content.curves is not None
    files = _report.plot_curves(content.curves, tmp_path / "new", scores=content.scores)
    names = {f"{name}.{form}" for name in ("curves", "heat", "agreement") for form in ("png", "svg")} | {"curves.html"}
    assert {path.name for path in files} == {path.name for path in (tmp_path / "new").iterdir()} == names
    assert all(path.read_bytes().startswith(PNG) for path in files if path.suffix == ".png")
    drawn = words((tmp_path / "new" / "curves.svg").read_text())
    assert set(content.curves.names) <= drawn
    assert {"measured", "isotonic fit, 95 %", "score predicts"} <= drawn
    page = (tmp_path / "new" / "curves.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 3
    assert not re.search(r"https?://|<script", re.sub(r"data:image[^\"]*", "", page))


def test_without_scores_nothing_is_said_about_them(tmp_path: Path) -> None:
    files = _report.plot_curves(curves([point(0, 0.5, 0.1)]), tmp_path)
    assert {path.stem for path in files} == {"curves", "heat"}
    assert "score predicts" not in words((tmp_path / "curves.svg").read_text())


def test_points_after_the_recovery_have_marks_and_a_map_of_their_own(tmp_path: Path) -> None:
    points = [point(g, f, f, recovered=r) for g in (0, 1) for f in (0.2, 0.5) for r in (False, True)]
    _report.plot_curves(curves(points), tmp_path)
    assert "after the recovery" in words((tmp_path / "curves.svg").read_text())
    assert {"after the cut", "after the recovery"} <= words((tmp_path / "heat.svg").read_text())


def test_the_map_shows_each_mean_where_it_was_measured_and_negative_ones_as_such(tmp_path: Path) -> None:
    _report.plot_curves(curves([point(0, 0.2, -0.04), point(0, 0.5, 0.25), point(1, 0.5, 1.5)]), tmp_path)
    drawn = words((tmp_path / "heat.svg").read_text())
    assert {"layer0", "layer1", "20", "50", "\N{MINUS SIGN}0.04", "0.25", "1.5"} <= drawn


@pytest.mark.parametrize(
    "means", [(0.0, 0.0), (-3.0, -1e-9), (1e-12, 2e-12), (1e-6, 4e3), (5.0, 5.0)], ids=lambda means: f"{means}"
)
@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_any_numbers_can_be_drawn(means: tuple[float, float], spread: float) -> None:
    made = curves([point(0, 0.3, means[0], spread=spread), point(0, 0.6, means[1], spread=spread)])
    lines = _curves.measured(made, None)
    for picture in (_plots.sensitivity(made.names, lines), _files.heat(made)):
        assert b"<svg" in _plots.draw(picture, "svg")


def test_nothing_measured_is_nothing_to_plot(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to plot"):
        _report.plot_curves(curves([]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_leaves_scatter_bars_and_tables(tmp_path: Path) -> None:
    files = _report.plot_comparison(comparison(), tmp_path)
    names = {f"{name}.{form}" for name in ("against", "correlations") for form in ("png", "svg")}
    assert {path.name for path in files} == names | {"comparison.html"}
    assert {"obd", "random", "rank 0.90, slope 1.4, nats"} <= words((tmp_path / "against.svg").read_text())
    assert {"0.90", "\N{MINUS SIGN}0.20", "ceiling 0.97"} <= words((tmp_path / "correlations.svg").read_text())
    page = (tmp_path / "comparison.html").read_text()
    for expected in ("Perfect scores would reach 0.97", "No single unit can be taken from: c.", "300 examples"):
        assert expected in page


def test_the_table_of_a_comparison_is_sorted_and_says_what_the_lowest_quarter_costs() -> None:
    assert list(_report.overall(comparison())) == [
        ("obd", "nats", "0.9", "1.4", "0.01", "2"),
        ("random", "a.u.", "\N{MINUS SIGN}0.2", "", "0.01", "2"),
    ]
    assert list(_report.within(comparison())) == [("a", "4", "", "0.1")]


def test_a_comparison_without_a_ceiling_or_a_correlation_is_drawn_too(tmp_path: Path) -> None:
    bare = dataclasses.replace(
        comparison(),
        ceiling=None,
        agreements=tuple(dataclasses.replace(a, spearman=None, slope=None) for a in comparison().agreements),
    )
    _report.plot_comparison(bare, tmp_path)
    assert "too noisy" in (tmp_path / "comparison.html").read_text()


def test_the_same_numbers_give_the_same_file() -> None:
    made = curves([point(0, 0.5, 0.1)])
    for form in ("svg", "png"):
        assert _plots.draw(_files.heat(made), form) == _plots.draw(_files.heat(made), form)  # type: ignore[arg-type]
