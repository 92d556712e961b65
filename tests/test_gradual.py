"""The gradual step: budgets that never drift, states that restore, plans that retell the cuts."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from helpers.digits import DATA, TASK, Tiny, dense_model
from secateur import _cost, _store, _surgery, allocators, criteria, recoveries, schedules
from secateur._couple import couple
from secateur._cut import cut
from secateur._gradual import (
    STATE_FILE,
    Run,
    begin,
    budget_of_step,
    dense_plan,
    digest,
    fingerprint,
    load_state,
    restore,
    step,
)
from secateur._recover import recover
from secateur._trace import trace
from secateur.errors import FileCorrupt, InputError, StaleArtifact
from secateur.schema.budget import Budget
from secateur.schema.costs import Costs
from secateur.schema.state import Candidate, State

EXAMPLE = torch.zeros(2, 1, 8, 8)


def candidate(costs: Costs, number: int = 0) -> Candidate:
    return Candidate(
        step=number, file="", receipt=None, costs=costs, removed=0.0, search_loss=0.0, search_correct=None,
        drop=0.0, accepted=True,
    )  # fmt: skip


def state_of(dense: Costs, now: Costs, budget: Budget, steps: int) -> State:
    return State(
        step=0, steps=steps, budget=budget, max_drop=None, candidates=(candidate(dense), candidate(now, 1)),
        finished=False, reason="", seed=0, settings="",
    )  # fmt: skip


def make_run(folder: Path | None = None, **changes) -> Run:
    plain = {
        "model": dense_model(),
        "example_inputs": EXAMPLE,
        "data": DATA,
        "task": TASK,
        "criterion": criteria.obd(),
        "allocator": allocators.greedy(),
        "recovery": recoveries.finetune(epochs=1),
        "schedule": schedules.linear(),
        "steps": 2,
        "max_drop": None,
        "scan": "never",
        "seed": 0,
        "confidence": 0.95,
        "clip": None,
        "precision": None,
        "couple": {},
        "plan": {},
        "folder": folder,
        "memory": {},
    }
    return Run(**{**plain, **changes})


def begin_run(run: Run) -> State:
    groups = couple(trace(run.model, EXAMPLE))
    return begin(run, groups, Budget(macs=0.5), "settings")


# ------------------------------------------------------------------------------------- budgets
costs = st.builds(
    lambda m, p, b: Costs(macs=m, params=p, memory=b),
    st.integers(1, 10**15), st.integers(1, 10**12), st.integers(1, 10**13),
)  # fmt: skip
shares = st.integers(1, 100).map(lambda percent: percent / 100)


@given(dense=costs, now=costs, kept=shares, kept_params=st.none() | shares, steps=st.integers(1, 9), data=st.data())
def test_the_budget_of_a_step_is_exactly_the_share_of_the_original_cost(dense, now, kept, kept_params, steps, data):
    number = data.draw(st.integers(1, steps))
    made = budget_of_step(
        state_of(dense, now, Budget(macs=kept, params=kept_params), steps), schedules.linear(), number
    )
    limits = {} if made is None else _cost.limits(made, now)
    for kind, target in (("macs", kept), ("params", kept_params)):
        have, full = dataclasses.asdict(now)[kind], dataclasses.asdict(dense)[kind]
        if target is None:
            assert kind not in limits
            continue
        share = Fraction(repr(target)) if number == steps else Fraction(1.0 - number / steps * (1.0 - target))
        wanted = share * full
        limit = limits.get(kind, have)
        assert limit <= wanted * (1 + Fraction(1, 10**15)) or have <= limit
        assert limit in (have, int(wanted)) or abs(limit - wanted) <= 1 + wanted / 10**14


def test_a_step_whose_budget_is_met_already_cuts_nothing():
    dense, now = Costs(macs=100, params=10, memory=40), Costs(macs=50, params=9, memory=36)
    state = state_of(dense, now, Budget(macs=0.5), 3)
    assert [budget_of_step(state, schedules.linear(), k) for k in (1, 2, 3)] == [None, None, None]
    both = state_of(dense, now, Budget(macs=0.5, params=0.5), 1)
    made = budget_of_step(both, schedules.linear(), 1)
    assert made is not None
    assert (made.macs, _cost.limits(made, now)) == (None, {"params": 5})


def test_a_schedule_that_does_not_end_at_one_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Half:
        name: str = "half"
        source: str = ""

        def __call__(self, step: int, steps: int) -> float:
            return 0.5

    dense = Costs(macs=100, params=10, memory=40)
    with pytest.raises(InputError, match=r"half\(2, 2\)"):
        budget_of_step(state_of(dense, dense, Budget(macs=0.5), 2), Half(), 2)


# ------------------------------------------------------------------------------------- steps
def test_each_step_goes_on_from_the_last_and_receipts_speak_of_the_dense_model():
    run = make_run()
    before = _surgery.fingerprint_weights(run.model)
    state = begin_run(run)
    full = state.candidates[0].costs.macs
    while not state.finished:
        state = step(state, run)
    first, second = state.candidates[1:]
    assert _surgery.fingerprint_weights(run.model) == before
    assert second.costs.macs <= 0.5 * full < first.costs.macs <= 0.75 * full
    for made in (first, second):
        model = restore(run, made)
        assert _surgery.fingerprint_structure(model) == _surgery.fingerprint_structure(
            _surgery.apply(run.model, made.receipt)
        )
        again = couple(trace(model, EXAMPLE))
        assert _cost.cost(again.costs, _cost.full_counts(again)) == made.costs
    for name, axes in second.receipt.kept.items():
        earlier = first.receipt.kept.get(name, (None,) * len(axes))
        assert all(a is None or b is None or set(b) <= set(a) for a, b in zip(earlier, axes, strict=True))


def test_the_dense_plan_makes_all_cuts_in_one_go():
    run = make_run()
    state = begin_run(run)
    while not state.finished:
        state = step(state, run)
    last = state.candidates[-1]
    groups = couple(trace(run.model, EXAMPLE))
    whole = dense_plan(run, groups, last, state.budget)
    _, receipt = cut(run.model, groups, whole, example_inputs=EXAMPLE)
    assert receipt.kept == last.receipt.kept
    assert _cost.cost(groups.costs, [len(k) for k in whole.kept]) == last.costs == whole.after


def test_a_step_in_a_folder_and_one_in_memory_give_the_same_bits(tmp_path: Path):
    made = []
    for folder in (None, tmp_path / "run"):
        run = make_run(folder)
        state = begin_run(run)
        while not state.finished:
            torch.rand(3)  # what the user draws in between must not matter
            state = step(state, run)
        made.append(digest(state))
    assert made[0] == made[1]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        STATE_FILE, "step-1.safetensors", "step-2.safetensors",
    ]  # fmt: skip
    assert digest(load_state(tmp_path / "run", "settings")) == made[0]


def test_a_step_that_fails_leaves_state_and_files_as_they_were(tmp_path: Path):
    @dataclasses.dataclass(frozen=True)
    class Breaks:
        name: str = "breaks"
        gradients: bool = False
        source: str = ""

        def __call__(self, model, batches, task, *, teacher, seed, progress):
            raise RuntimeError("power cut")

    run = make_run(tmp_path)
    state = step(begin_run(run), run)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    weights, random_state = _surgery.fingerprint_weights(run.model), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="power cut"):
        step(state, dataclasses.replace(run, recovery=Breaks()))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert _surgery.fingerprint_weights(run.model) == weights
    assert torch.equal(torch.get_rng_state(), random_state)


def test_tensors_that_are_not_those_of_the_state_are_refused(tmp_path: Path):
    run = make_run(tmp_path)
    state = step(begin_run(run), run)
    made = state.candidates[1]
    tensors = _store.load_tensors(tmp_path / made.file)
    whole = (tmp_path / made.file).read_bytes()
    (tmp_path / made.file).write_bytes(whole[:-7])
    with pytest.raises(FileCorrupt):
        restore(run, made)
    name = next(iter(tensors))
    _store.save_tensors(tmp_path / made.file, {**tensors, name: tensors[name] + 1})
    with pytest.raises(FileCorrupt, match="not those that the state"):
        restore(run, made)
    _store.save_tensors(tmp_path / made.file, {k: v for k, v in tensors.items() if k != name})
    with pytest.raises(FileCorrupt, match="not those that the state"):
        restore(run, made)


def test_buffers_that_are_not_in_the_state_dict_are_kept_too():
    class Counts(Tiny):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1), persistent=False)

        def forward(self, x):
            if self.training:
                self.calls += 1
            return super().forward(x)

    counting = Counts()
    counting.load_state_dict(dense_model().state_dict())
    run = make_run(model=counting)
    state = step(begin_run(run), run)
    small = recover(restore(run, state.candidates[1]), DATA.train, TASK, recovery=recoveries.finetune(epochs=1))
    assert restore(run, state.candidates[1]).calls.item() == len(DATA.train)
    assert small.calls.item() == 2 * len(DATA.train)


# ------------------------------------------------------------------------------------- fingerprints
def test_the_fingerprint_of_a_run_moves_with_everything_that_matters_and_with_nothing_else():
    base = fingerprint(make_run(), Budget(macs=0.5))
    assert fingerprint(make_run(progress=print, folder=Path("elsewhere")), Budget(macs=0.5)) == base
    other_model = dense_model()
    with torch.no_grad():
        next(other_model.parameters())[0] += 1e-3
    other_train = [(x, y.flip(0)) for x, y in DATA.train]
    changes = [
        {"model": other_model},
        {"data": dataclasses.replace(DATA, train=other_train)},
        {"data": dataclasses.replace(DATA, search=DATA.search[:-1])},
        {"data": dataclasses.replace(DATA, held_out=None)},
        {"example_inputs": EXAMPLE[:1]},
        {"criterion": criteria.magnitude(p=1)},
        {"recovery": recoveries.finetune(epochs=2)},
        {"schedule": schedules.cubic()},
        {"steps": 4},
        {"max_drop": 0.1},
        {"confidence": 0.9},
        {"clip": 9.0},
        {"scan": "each"},
        {"seed": 1},
        {"plan": {"round_to": 4}},
        {"couple": {"freeze": ("head",)}},
    ]
    seen = [fingerprint(make_run(**change), Budget(macs=0.5)) for change in changes]
    seen += [base, fingerprint(make_run(), Budget(macs=0.4)), fingerprint(make_run(), None)]
    assert len(set(seen)) == len(seen)


def test_a_state_of_other_settings_is_refused(tmp_path: Path):
    run = make_run(tmp_path)
    step(begin_run(run), run)
    with pytest.raises(StaleArtifact, match="other settings"):
        load_state(tmp_path, "others")
    path = tmp_path / STATE_FILE
    path.write_bytes(path.read_bytes().replace(b'"accepted": true', b'"accepted": null'))
    with pytest.raises(FileCorrupt):
        load_state(tmp_path, "settings")


def test_nothing_of_the_model_is_shared_between_candidates():
    run = make_run()
    state = step(begin_run(run), run)
    dense, small = restore(run, state.candidates[0]), restore(run, state.candidates[1])
    with torch.no_grad():
        for p in (*dense.parameters(), *small.parameters()):
            p.zero_()
    assert all(bool(p.any()) for p in run.model.parameters() if p.ndim > 1)
    assert any(bool(p.any()) for p in restore(run, state.candidates[1]).parameters())
    assert isinstance(small, nn.Module)
