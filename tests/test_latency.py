"""Latency: the interval against simulation and tables, the measurement against models of known duration."""

from __future__ import annotations

import random
import time

import pytest
import torch
from torch import nn

from secateur._latency import measure, median_interval
from secateur.errors import InputError


class Sleeper(nn.Module):
    def __init__(self, seconds: float, log: list[float]):
        super().__init__()
        self.seconds, self.log = seconds, log
        self.drop = nn.Dropout()

    def forward(self, x):
        self.log.append(self.seconds)
        assert not self.training
        assert torch.is_inference_mode_enabled()
        time.sleep(self.seconds)
        return x


@pytest.mark.parametrize(("n", "rank"), [(6, 1), (8, 1), (9, 2), (20, 6), (50, 18), (100, 40)])
def test_ranks_of_the_interval_are_those_of_the_sign_test_table(n: int, rank: int):
    # Ranks as tabulated for the two-sided 95 % sign-test interval of the median (for example Conover, table A3).
    _, low, high = median_interval([float(i) for i in range(1, n + 1)])
    assert (low, high) == (rank, n + 1 - rank)


def test_the_interval_covers_the_true_median_as_often_as_it_says():
    draw = random.Random(0)
    hits = 0
    for _ in range(2000):
        _, low, high = median_interval([draw.expovariate(1.0) for _ in range(25)])
        hits += low <= 0.6931471805599453 <= high  # ln 2, the median of the exponential
    assert 0.94 <= hits / 2000 <= 0.99


def test_the_median_is_the_middle_and_too_few_values_are_refused():
    assert median_interval([5.0, 1.0, 9.0, 3.0, 4.0, 2.0, 8.0])[0] == 4.0
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 60.0])[0] == 3.5
    with pytest.raises(InputError, match="too few"):
        median_interval([1.0, 2.0, 3.0, 4.0, 5.0])


def test_measured_times_are_those_of_the_models_and_runs_take_turns():
    log: list[float] = []
    models = {"slow": Sleeper(0.006, log), "fast": Sleeper(0.002, log)}
    before = torch.get_num_threads()
    told = []
    made = measure(
        models, {1: torch.zeros(1, 2), 4: (torch.zeros(4, 2),)}, threads=1, repeats=9, warmup=1,
        progress=lambda *a: told.append(a),
    )  # fmt: skip
    assert [(m.label, m.batch) for m in made] == [("slow", 1), ("fast", 1), ("slow", 4), ("fast", 4)]
    for m in made:
        assert m.low <= m.median <= m.high
        assert (m.threads, m.device, m.n) == (1, "cpu", 9)
        assert models[m.label].seconds <= m.median < models[m.label].seconds + 0.2
    # Each round runs both, and who goes first alternates.
    rounds = [tuple(log[i : i + 2]) for i in range(0, 20, 2)]
    assert {frozenset(r) for r in rounds} == {frozenset({0.006, 0.002})}
    assert rounds[0] == rounds[1][::-1]
    assert told[-1] == ("latency", 20, 20)
    assert torch.get_num_threads() == before
    assert all(m.training for model in models.values() for m in model.modules())


def test_modes_and_threads_come_back_when_a_model_fails():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    model, before = Broken(), torch.get_num_threads()
    with pytest.raises(RuntimeError, match="no"):
        measure({"broken": model}, {1: torch.zeros(1)}, threads=before + 1)
    assert model.training
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("bad", [{"repeats": 5}, {"warmup": -1}, {"threads": 0}])
def test_impossible_settings_are_refused(bad: dict[str, int]):
    with pytest.raises(InputError):
        measure({"m": nn.Identity()}, {1: torch.zeros(1)}, **bad)
    with pytest.raises(InputError, match="nothing to measure"):
        measure({}, {1: torch.zeros(1)})
