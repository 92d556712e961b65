"""`secateur certify --verify`, called as a user calls it after `prune`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from test_cli import PROJECT, call


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, ...], Path]:
    """Words that name model and data, and the folder of a run with a certificate."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "tiny_project.py").write_text(PROJECT)
    words = (f"{folder}/tiny_project.py:net", "--data", f"{folder}/tiny_project.py:data")
    call("prune", *words, "--macs", 0.7, "--max-drop", 0.15, "--steps", 2, "--out", folder / "out")
    return words, folder / "out"


def test_the_certificate_of_a_run_is_derived_again(pruned: tuple[tuple[str, ...], Path]) -> None:
    words, out = pruned
    before = (out / "certificate.json").read_bytes()
    told = json.loads(call("certify", *words, "--verify", "--out", out, "--json"))
    assert {c["name"]: c["holds"] for c in told["checks"]}["decision"] is True
    assert all(c["holds"] for c in told["checks"])
    assert "decision: agrees" in call("certify", *words, "--verify", "--out", out)
    assert (out / "certificate.json").read_bytes() == before


def test_a_certificate_of_other_data_does_not_hold(pruned: tuple[tuple[str, ...], Path], tmp_path: Path) -> None:
    words, out = pruned
    project = tmp_path / "tiny_project.py"
    project.write_text(PROJECT.replace("make(3, 500)", "make(4, 500)"))
    text = call("certify", words[0], "--data", f"{project}:data", "--verify", "--out", out, code=4)
    assert "held-out data: DOES NOT AGREE" in text


def test_a_folder_without_the_run_or_the_certificate_says_what_is_missing(
    pruned: tuple[tuple[str, ...], Path], tmp_path: Path
) -> None:
    words, out = pruned
    shutil.copytree(out, tmp_path / "copy")
    (tmp_path / "copy" / "run" / "state.json").unlink()
    told = json.loads((out / "certificate.json").read_text())
    if len(told["path"]) > 1:
        assert "not in this folder" in call("certify", *words, "--verify", "--out", tmp_path / "copy", code=3)
    bare = tmp_path / "bare"
    call("score", *words, "--out", bare)
    call("plan", *words, "--macs", 0.5, "--out", bare)
    call("cut", *words, "--out", bare)
    assert "no certificate" in call("certify", *words, "--verify", "--out", bare, code=3)
