"""The README and the pages beside it: what they name exists, and what they show is what is run."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import secateur as sc
from secateur.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def rows(title: str) -> dict[str, str]:
    """First and second column of the table that follows a heading."""
    section = README.split(f"## {title}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.M))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_leads_to_a_file(page: Path):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert re.match(r"https?://", target) or (page.parent / target).exists(), target


@pytest.mark.parametrize(
    "folder", ["criteria", "allocators", "recoveries", "schedules", "certifiers", "tasks", "exporters"]
)
def test_the_table_of_members_is_the_table_of_the_folder(folder: str):
    module = vars(sc)[folder]
    listed = set(re.findall(r"`(\w+)`", rows("What to choose from")[folder]))
    assert set(vars(module)[folder.upper()]) <= listed
    assert all(name in vars(module) for name in listed - {"Task", "chain"} if name != "sc")


def test_the_table_of_commands_is_the_list_of_commands():
    assert list(rows("The command line")) == [c.name for c in app.registered_commands]


def test_the_session_shown_is_the_session_that_runs():
    shown = README.split("## A session")[1].split("```python\n")[1].split("```")[0]
    script = (ROOT / "docs/examples/session.py").read_text()
    assert shown in script
    ast.parse(script)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_public_name_that_is_mentioned_exists(page: Path):
    for path in re.findall(r"\bsc\.((?:\w+\.)*\w+)", page.read_text()):
        found = sc
        for part in path.split("."):
            assert part in dir(found), f"sc.{path}"
            found = getattr(found, part)
