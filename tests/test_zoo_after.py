from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo_after
import zoo_checks
import zoo_run
from zoo_after import DENSE, LOST, OK, RELOAD, after
from zoo_checks import Missing, compiled, copied, trained
from zoo_models import Entry
from zoo_run import alone
from zoo_trial import count


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.noise = nn.Linear(4, 8), nn.Linear(8, 3), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.noise(self.a(x).relu()))


ENTRY = Entry(name="Small", build=Small, inputs=lambda: torch.randn(2, 4))


def fewer(model: nn.Module, dense: nn.Module, inputs: Any) -> str:
    if count(model) < count(dense):
        raise Missing("it is smaller")
    return "as large"


def never(model: nn.Module, dense: nn.Module, inputs: Any) -> str:
    raise NotImplementedError("not in this version")


def test_a_cut_model_is_loaded_in_another_process_and_what_fails_is_tried_with_the_dense_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        zoo_after, "CHECKS", (("deepcopy", copied), ("train step", trained), ("compile", fewer), ("onnx", never))
    )
    row = after(ENTRY, 0, baked=False, seconds=60.0, memory=12.0)
    checks = row["checks"]
    assert 0 < row["removed"] < 1
    assert row["outcome"] == LOST
    assert {n: c["outcome"] for n, c in checks.items()} == {
        RELOAD: OK, "deepcopy": OK, "train step": OK, "compile": LOST, "onnx": DENSE,
    }  # fmt: skip
    assert checks[RELOAD]["message"] == "equal"
    assert "NotImplementedError: not in this version" in checks["onnx"]["dense"]


def test_a_saved_model_that_computes_something_else_is_found_out(tmp_path: Path) -> None:
    model, inputs = Small().eval(), torch.randn(2, 4)
    zoo_checks.leave(tmp_path, model, None, inputs)
    assert zoo_checks.returned(tmp_path, Small()) == "equal"
    left = torch.load(tmp_path / "expected.pt", weights_only=False)
    torch.save(left | {"inputs": 2 * inputs}, tmp_path / "expected.pt")
    with pytest.raises(Missing, match="the loaded model computes something else"):
        zoo_checks.returned(tmp_path, Small())


class Shared(Small):
    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        return self


def test_a_copy_that_shares_its_weights_is_no_copy() -> None:
    x = torch.randn(2, 4)
    assert copied(Small().eval(), Small(), x) == "equal"
    with pytest.raises(Missing, match="once its copy is zeroed"):
        copied(Shared().eval(), Small(), x)


def test_a_step_of_training_needs_the_same_gradients_and_finite_ones() -> None:
    x = torch.randn(2, 4)
    model = Small()
    assert trained(model, model, x) == "4 gradients"
    without = copy.deepcopy(model)
    without.a.bias = None
    with pytest.raises(Missing, match=r"other parameters than in the dense model: a\.bias"):
        trained(without, model, x)
    with torch.no_grad():
        without.b.weight.fill_(float("nan"))
    with pytest.raises(Missing, match="not finite"):
        trained(without, model, x)


class Eager(Small):
    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def test_a_model_that_dynamo_leaves_alone_is_not_compiled() -> None:
    x = torch.randn(2, 4)
    assert compiled(Small().eval(), Small(), x).endswith("1 graph")
    with pytest.raises(Missing, match="captured no graph"):
        compiled(Eager().eval(), Small(), x)


def _burn() -> None:
    while True:
        pass


def test_a_process_ends_at_its_limits_and_takes_its_own_with_it() -> None:
    assert alone(lambda: "here", seconds=10.0, memory=12.0) == zoo_run.End(how="done", value="here")
    assert alone(_burn, seconds=1.0, memory=12.0).how == "timeout"
    assert alone(lambda: torch.empty(2**40), seconds=10.0, memory=12.0).how == "memory"
    assert alone(lambda: os._exit(3), seconds=10.0, memory=12.0).how == "memory"
    inner = alone(lambda: alone(_burn, seconds=1.0, memory=12.0).how, seconds=10.0, memory=12.0)
    assert inner.value == "timeout"


def test_the_table_counts_what_can_be_done_and_names_the_reasons() -> None:
    ok, none = {"outcome": OK, "message": "equal"}, {"outcome": "", "message": ""}
    checks = dict.fromkeys(zoo_after.COLUMNS, ok) | {"generate": none}
    head = {"tool": zoo_after.TOOL, "set": "nasty", "seed": 0, "removed": 0.4, "message": "", "wall": 1.0}
    broken = checks | {"onnx": {"outcome": DENSE, "message": "x", "dense": "LOST: no such\n operator"}}
    rows = [
        head | {"model": "A", "outcome": OK, "checks": checks},
        head | {"model": "B", "outcome": OK, "checks": broken},
        head | {"model": "C", "outcome": "uncut", "message": "NothingToCut: all is frozen", "checks": {}},
    ]
    text = zoo_after.markdown(rows)
    assert "| nasty | 3 | 2 | 2 of 2 | 2 of 2 | 2 of 2 | 2 of 2 | 1 of 2 (1 dense too) | 0 of 0 |" in text
    assert "- `B`, onnx, dense too: LOST: no such operator" in text
    assert "- `C`, uncut: NothingToCut: all is frozen" in text


def test_each_third_model_is_chosen_and_those_that_must_not_be_missing() -> None:
    names = [e.name for e in zoo_after.chosen("nn", 3)]
    every = [e.name for e in zoo_after.chosen("nn", 1)]
    assert names == every[::3]
