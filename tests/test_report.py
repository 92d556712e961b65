"""The report: one file, offline, escaped, complete; its numbers are those of the record it was made from."""

from __future__ import annotations

import dataclasses
import html
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, spearmanr

from helpers import reports
from secateur import _curves, _report
from secateur._report._format import percent, points, quantity, seconds, size, wilson
from secateur.schema import from_json, to_json
from secateur.schema.report import Report


class Page(HTMLParser):
    """Tags opened and closed, addresses referred to, sections, and the text."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.sections: list[str] = []
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "action", "data", "poster", "srcset"):
                self.addresses.append(value or "")
            if name == "id":
                self.sections.append(value or "")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def light(**given: bool) -> Report:
    """Without the curves, whose plots take most of the time."""
    return dataclasses.replace(reports.full(**given), curves=None)


@pytest.fixture(scope="module")
def text() -> str:
    return _report.render(reports.full())


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_it_refers_to_nothing_outside_itself(text: str, page: Page):
    assert page.addresses
    assert all(a.startswith("data:image/svg+xml;base64,") for a in page.addresses)
    plain = re.sub(r"data:image[^\"]*", "", text)
    assert not re.search(r"https?:|//|@import|url\(|javascript:", plain)
    assert not {"script", "link", "iframe", "object", "embed"} & page.tags


def test_every_part_of_the_record_has_its_section(page: Page):
    assert page.sections == [
        *("certificate", "path", "latency", "widths", "sensitivity", "validation", "frozen", "recipe")
    ]


def test_the_numbers_on_the_page_are_those_of_the_record(page: Page):
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    for expected in (
        "with 95 % confidence, the mean score falls by at most 3.0 points",
        "9.00 M (100 %)",
        "4.49 M (50 %)",
        "25 of 32",
        "22 of 64",
        "1.21 ms",
        "1.46 ×",
        "layer norm over the channels",
        "an output of the model",
        "LeCun, Denker & Solla 1990",
        "relative error 3e-15",
        "62.0 %",
    ):
        assert expected in text, expected


def test_the_certificate_that_failed_says_so_and_what_is_needed():
    text = Page(_report.render(light(certified=False))).text
    assert "Not certifiable on this held-out data." in text
    assert "about 800 more held-out examples (1,400 in all)" in text.replace("\N{NO-BREAK SPACE}", " ")


def test_a_rolled_back_step_is_shown_as_such_and_the_verdict_says_which_model_is_meant():
    text = Page(_report.render(light(last_accepted=False))).text
    assert "rolled back" in text
    assert "step 2 of 3" in text


def test_without_anything_optional_the_page_still_stands():
    content = dataclasses.replace(
        reports.full(),
        certificate=None,
        curves=None,
        validation=None,
        latency=(),
        verification=None,
        frozen=(),
        scores=None,
    )
    page = Page(_report.render(content))
    assert page.sections == ["path", "widths", "sensitivity", "frozen", "recipe"]
    assert "No certificate: nothing is promised about new data." in page.text


def test_a_task_without_a_score_is_reported_in_nats():
    content = light()
    candidates = tuple(
        dataclasses.replace(c, search_correct=None, drop=0.01 * c.step) for c in content.state.candidates
    )
    content = dataclasses.replace(
        content, state=dataclasses.replace(content.state, candidates=candidates), certificate=None, validation=None
    )
    text = Page(_report.render(content)).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "0.03 nats" in text
    assert "points" not in text


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a & b", '"quoted"', "{{ 7 * 7 }}", "x" * 300])
def test_names_from_outside_are_escaped(name: str):
    content = light()
    widths = tuple(dataclasses.replace(w, name=name, kind="other") for w in content.widths)
    text = _report.render(dataclasses.replace(content, widths=widths, model=name, notes=(name,)))
    page = Page(text)
    assert html.escape(name, quote=False) in text.replace("&#34;", '"')
    assert "script" not in page.tags


def test_the_record_survives_json_and_gives_the_same_page():
    content = reports.full()
    again = from_json(Report, to_json(content))
    assert again == content
    assert _report.render(dataclasses.replace(again, curves=None)) == _report.render(light())


def test_a_write_makes_one_file_and_returns_its_path(tmp_path: Path):
    path = _report.write(light(), tmp_path / "new" / "r.html")
    assert path.read_text().startswith("<!doctype html>")
    assert list(path.parent.iterdir()) == [path]


def test_rank_correlation_is_that_of_scipy():
    content = reports.full()
    assert content.curves is not None
    lines = _curves.measured(content.curves, content.scores)
    pairs = [(p.predicted, p.reading.loss) for line in lines for p in line]
    assert math.isclose(_curves.rank_correlation(lines), spearmanr(*zip(*pairs, strict=True)).statistic, rel_tol=1e-12)


def test_the_prediction_of_a_point_is_the_sum_of_the_scores_that_went():
    content = reports.full()
    assert content.curves is not None
    assert content.scores is not None
    lines = _curves.measured(content.curves, content.scores)
    assert math.isclose(lines[2][4].predicted, sum(sorted(content.scores.values[2])[:16]), rel_tol=1e-12)


@given(st.integers(0, 500), st.integers(1, 500))
def test_wilson_is_the_interval_of_scipy(k: int, extra: int):
    n = k + extra
    expected = binomtest(k, n).proportion_ci(0.95, method="wilson")
    low, high = wilson(k / n, n)
    assert math.isclose(low, expected.low, abs_tol=1e-9)
    assert math.isclose(high, expected.high, abs_tol=1e-9)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (quantity(4_521_000), "4.52 M"),
        (quantity(999_600), "1.00 M"),
        (quantity(12), "12"),
        (size(1_234_567), "1.23 MB"),
        (size(999), "999 B"),
        (seconds(0.00123), "1.23 ms"),
        (seconds(0.0009999), "1.00 ms"),
        (seconds(25e-6), "25.0 µs"),
        (percent(0.5, 0), "50 %"),
        (percent(-0.0001), "0.0 %"),
        (points(-0.0123, sign=True), "−1.2 points"),
        (points(0.0123, sign=True), "+1.2 points"),
        (points(0.00001, sign=True), "0.0 points"),
    ],
)
def test_numbers_read_as_people_write_them(made: str, expected: str):
    assert made.replace("\N{NO-BREAK SPACE}", " ") == expected
