from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zoo
import zoo_models
import zoo_run
from zoo_models import Entry
from zoo_trial import Trial, ours, randomise


def row(model: str, tool: str = zoo.OURS, **facts: Any) -> dict[str, Any]:
    head = {"tool": tool, "set": "nasty", "model": model, "seed": 0, "code": "", "wall": 1.0}
    return head | dataclasses.asdict(Trial(outcome="ok", params=100)) | facts


@pytest.mark.parametrize("name", ["nasty", "nn"])
def test_every_model_of_a_set_has_a_name_of_its_own(name: str) -> None:
    entries = zoo_models.entries(name)
    assert len({e.name for e in entries}) == len(entries) >= 60


def test_nothing_of_a_randomised_model_is_constant_or_tiny() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.LayerNorm(4))
    model.register_parameter("scale", nn.Parameter(1e-6 * torch.ones(4)))
    nn.init.zeros_(model[1].weight)
    randomise(model, 0)
    for name, tensor in (*model.named_parameters(), ("mean", model[1].running_mean), ("var", model[1].running_var)):
        assert float(tensor.detach().std()) > 1e-2, name


def test_a_trial_tells_what_was_cut_and_how_exactly() -> None:
    entry = next(e for e in zoo_models.entries("nasty") if e.name == "WeightNorm")
    trial = ours(entry, 0)
    assert trial.outcome == "ok", trial.message
    assert trial.error is not None
    assert trial.error < 1e-9
    assert 0 < trial.removed < 1
    assert trial.distance is not None
    assert trial.distance > 1e-3
    assert trial.reach == pytest.approx(trial.allowed)


def test_a_model_that_does_not_run_is_not_held_against_a_tool() -> None:
    entry = Entry(name="broken", build=lambda: nn.Linear(3, 4), inputs=lambda: torch.randn(2, 5))
    assert ours(entry, 0).outcome == "unbuilt"


def test_a_process_that_takes_too_long_is_stopped() -> None:
    entry = Entry(name="endless", build=lambda: nn.Linear(3, 4), inputs=_wait)
    assert zoo.run_one((zoo.OURS, "nasty", "endless", 0), entry, seconds=1.0, memory=12.0)["outcome"] == "timeout"


def _wait() -> None:
    while True:
        pass


def test_a_later_line_replaces_an_earlier_one_and_a_torn_one_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "zoo.jsonl"
    for outcome in ("error", "ok"):
        zoo_run.append(file, row("A", outcome=outcome))
    with file.open("a") as f:
        f.write(json.dumps(row("B"))[:40])
    results = zoo_run.read(file)
    assert [r["outcome"] for r in results.values()] == ["ok"]


def test_the_summary_counts_and_compares_seconds_of_what_both_can() -> None:
    seconds = {"record": 1.0, "couple": 0.5, "verify": 9.0}
    rows = [
        row("A", reach=0.5, allowed=0.52, seconds=seconds),
        row("B", reach=0.3, allowed=0.5, seconds=seconds),
        row("A", zoo.PEER, seconds={"record": 3.0}),
        row("B", zoo.PEER, outcome="error"),
    ]
    text = zoo.summary(rows)
    assert "| nasty | secateur | 2 | 2 | 0 | 0 | 0 | 0 | 0 | 0 | 1 | 1.50 | 3 |" in text
    assert "Models that both cut: 1." in text
    assert "ratio 0.50" in text
    assert "| A | 0.00 | ok |" in zoo.markdown(rows)
