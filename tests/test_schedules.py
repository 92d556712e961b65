"""Schedules: shares of the way, against the published formula."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.schedules import SCHEDULES, cubic, linear, one_shot


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@given(steps=st.integers(1, 200))
def test_every_schedule_rises_and_ends_at_exactly_one(name: str, steps: int):
    schedule = SCHEDULES[name]()
    shares = [schedule(step, steps) for step in range(1, steps + 1)]
    assert schedule.name == name
    assert all(0.0 < share <= 1.0 for share in shares)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@given(steps=st.integers(1, 60), step=st.integers(1, 60), target=st.floats(0.05, 0.99))
def test_cubic_is_the_published_formula(steps: int, step: int, target: float):
    step = min(step, steps)
    # Zhu & Gupta, eq. 1: s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3 with s_i = 0, t0 = 0, dt = 1.
    published = target + (0.0 - target) * (1.0 - step / steps) ** 3
    assert cubic()(step, steps) * target == pytest.approx(published, abs=1e-12)


def test_three_steps_by_hand():
    assert [linear()(k, 3) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert [cubic()(k, 3) for k in (1, 2, 3)] == pytest.approx([19 / 27, 26 / 27, 1.0])
    assert [one_shot()(k, 3) for k in (1, 2, 3)] == [1.0, 1.0, 1.0]
