"""prune, end to end on real digits: what it promises, checked from outside."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur
from helpers.digits import DATA, TASK, accuracy, dense_model
from secateur import _surgery, criteria, recoveries, schedules
from secateur._couple import couple
from secateur._cut import cut
from secateur._gradual import digest
from secateur._trace import trace
from secateur.errors import (
    BudgetUnreachable,
    CertificateError,
    EmptyData,
    FileCorrupt,
    InputError,
    NonFinite,
    OneShotIterable,
    SplitOverlap,
    StaleArtifact,
)
from secateur.pipeline import prune
from secateur.schema.budget import Budget
from secateur.schema.result import Result

EXAMPLE = torch.zeros(2, 1, 8, 8)
HALF = Budget(macs=0.5)


@dataclasses.dataclass(frozen=True)
class Does:
    """A recovery that calls a function with the number of the call."""

    what: object
    calls: list[int]
    name: str = "does"
    gradients: bool = False
    source: str = ""

    def __call__(self, model, batches, task, *, teacher, seed, progress):
        self.calls.append(1)
        self.what(model, len(self.calls))
        return model


def run(**changes) -> Result:
    plain = {
        "model": dense_model(),
        "data": DATA,
        "task": TASK,
        "budget": HALF,
        "max_drop": 0.05,
        "steps": 2,
        "schedule": schedules.linear(),
        "recovery": recoveries.chain(recoveries.finetune(epochs=2, lr=3e-3), recoveries.recalibrate()),
    }
    given = {**plain, **changes}
    return prune(given.pop("model"), EXAMPLE, **given)


@pytest.fixture(scope="module")
def half() -> Result:
    return run()


def macs(model: nn.Module) -> int:
    """Counted by hooks while the model runs, per example."""
    total = []

    def count(module, args, out):
        weight = module.weight
        per_output = weight[0].numel()
        total.append(out[0].numel() * per_output)

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    model.eval()(EXAMPLE)
    for handle in handles:
        handle.remove()
    return sum(total)


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    return _surgery.fingerprint_weights(a) == _surgery.fingerprint_weights(b)


# ------------------------------------------------------------------------------------- what it returns
def test_half_of_the_macs_go_and_the_numbers_are_those_that_anybody_can_count(half: Result):
    dense = dense_model()
    assert type(half.model) is type(dense)
    assert [c.step for c in half.candidates] == [0, 1, 2]
    assert macs(half.model) <= 0.5 * macs(dense)
    for candidate, model in zip(half.candidates, half.models, strict=True):
        assert candidate.costs.macs == 2 * macs(model)  # two example inputs
        assert candidate.costs.params == sum(p.numel() for p in model.parameters())
        assert candidate.costs.memory == sum(t.numel() * t.element_size() for t in model.state_dict().values())
        assert candidate.search_correct == pytest.approx(accuracy(model, DATA.search))
        assert candidate.drop == pytest.approx(accuracy(dense, DATA.search) - accuracy(model, DATA.search))
        assert candidate.removed == pytest.approx(1 - macs(model) / macs(dense))
    # Linear in the original cost: 0.75, then 0.5; the greedy allocator comes near its budget.
    assert 0.65 < macs(half.models[1]) / macs(dense) <= 0.75
    assert half.candidates[half.chosen].drop <= 0.05
    assert not half.model.training


def test_the_smallest_good_candidate_is_the_model_and_receipt_and_plan_lead_to_it(half: Result):
    assert half.chosen == max(c.step for c in half.candidates if c.accepted) == 2
    dense = dense_model()
    again = _surgery.apply(dense, half.receipt)
    assert _surgery.fingerprint_structure(again) == _surgery.fingerprint_structure(half.model)
    by_plan, _ = cut(dense, couple(trace(dense, EXAMPLE)), half.plan, example_inputs=EXAMPLE)
    assert _surgery.fingerprint_structure(by_plan) == _surgery.fingerprint_structure(half.model)
    assert half.plan.after == half.candidates[2].costs


def test_the_certificate_is_about_the_held_out_data_and_absent_without_it(half: Result):
    assert half.certificate is not None
    without = run(data=dataclasses.replace(DATA, held_out=None), steps=1)
    assert without.certificate is None
    assert any("held-out" in note for note in without.notes)
    assert run(max_drop=None, steps=1).certificate is None


def test_the_users_model_data_and_random_states_are_untouched():
    model = dense_model()
    model.stem_norm.train()
    before = _surgery.fingerprint_weights(model), {n: m.training for n, m in model.named_modules()}
    grads = [p.grad for p in model.parameters()]
    random_state = torch.get_rng_state()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    run(model=model, steps=1)
    assert (_surgery.fingerprint_weights(model), {n: m.training for n, m in model.named_modules()}) == before
    assert [p.grad for p in model.parameters()] == grads
    assert torch.equal(torch.get_rng_state(), random_state)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks


def test_without_a_budget_cross_validation_chooses_one_that_keeps_the_drop():
    found = run(budget=None, max_drop=0.05, steps=1)
    assert found.validation is not None
    assert found.curves is not None
    assert found.budget is not None
    assert found.candidates[1].costs.macs < found.candidates[0].costs.macs


def test_nothing_goes_where_cross_validation_allows_nothing(tmp_path: Path):
    found = run(budget=None, max_drop=0.0, scan="never", steps=2, out=tmp_path)
    assert found.curves is None
    assert found.validation.kept == 1.0
    assert (found.chosen, len(found.candidates)) == (0, 1)
    assert found.notes[0] == found.validation.reason
    again = run(budget=None, max_drop=0.0, scan="never", steps=2, out=tmp_path, resume=True)
    assert again.validation == found.validation
    assert digest(again.state) == digest(found.state)


def test_curves_of_each_step_serve_scores_that_have_no_unit():
    found = run(criterion=criteria.magnitude(p=2), scan="each", recovery=recoveries.recalibrate(), max_drop=None)
    assert found.scores.unit == "a.u."
    assert found.curves is not None
    assert found.candidates[2].costs.macs <= 0.5 * found.candidates[0].costs.macs


def test_a_task_without_a_score_is_judged_by_its_loss():
    blind = dataclasses.replace(TASK, correct=None)
    found = run(task=blind, max_drop=0.5, data=dataclasses.replace(DATA, held_out=None))
    for candidate in found.candidates:
        assert candidate.search_correct is None
        assert candidate.drop == pytest.approx(candidate.search_loss - found.candidates[0].search_loss)


def test_a_loss_can_be_certified_if_it_is_clipped():
    blind = dataclasses.replace(TASK, correct=None)
    found = run(task=blind, max_drop=0.5, clip=4.0, steps=1)
    assert found.certificate is not None
    assert found.certificate.claim == "loss"


def test_a_certificate_that_cannot_be_given_does_not_lose_the_models():
    copies = [batch for batch in DATA.held_out for _ in range(2)]
    found = run(data=dataclasses.replace(DATA, held_out=copies), steps=1)
    assert found.certificate is None
    assert "occur more than once" in found.notes[-1]
    assert found.chosen == 1


def test_the_result_says_what_was_used_and_how_it_was_set(half: Result):
    used = {u.role: u for u in half.used}
    assert used["recovery"].settings.startswith("finetune(epochs=2, lr=0.003, ")
    assert used["recovery"].settings.endswith(" + recalibrate()")
    assert "1506.02626" in used["recovery"].source
    assert (used["criterion"].name, used["schedule"].settings) == ("obd", "")


def test_the_result_writes_its_report_and_is_what_the_package_exports(half: Result, tmp_path: Path):
    page = half.report(tmp_path / "report.html")
    assert page == tmp_path / "report.html"
    assert "Tiny" in page.read_text()
    assert isinstance(half, secateur.Result)
    assert secateur.prune is prune


def test_progress_is_told_and_names_the_step():
    told = []
    run(steps=1, progress=lambda label, done, total: told.append((label, done, total)))
    labels = {label for label, _, _ in told}
    assert any(label.startswith("step 1/1: ") for label in labels)
    assert all(done > 0 and (total == 0 or done <= total) for _, done, total in told)


# ------------------------------------------------------------------------------------- acceptance and roll-back
def test_a_step_that_loses_too_much_is_rolled_back_and_ends_the_run():
    def ruin_third(model, call):
        if call == 3:
            with torch.no_grad():
                model.head.weight.zero_()

    found = run(steps=5, max_drop=0.9, recovery=Does(ruin_third, []))
    found_strict = run(steps=5, max_drop=0.6, recovery=Does(ruin_third, []))
    assert [c.accepted for c in found.candidates] == [True] * 6
    assert [c.accepted for c in found_strict.candidates] == [True, True, True, False]
    assert found_strict.chosen == 2
    assert same_bits(found_strict.model, found.models[2])
    assert "rolled back to step 2" in found_strict.state.reason
    assert found_strict.notes[0] == found_strict.state.reason
    assert found_strict.certificate is None or len(found_strict.models) == 4


def test_a_model_that_gets_better_is_never_a_violation():
    poor = dense_model()
    with torch.no_grad():
        poor.head.bias += torch.linspace(0, 12, 10)
    found = run(model=poor, max_drop=0.0, recovery=recoveries.finetune(epochs=4, lr=3e-3), steps=1)
    assert found.candidates[1].drop < 0
    assert found.chosen == 1


def test_if_no_step_is_good_enough_the_model_is_a_copy_of_the_dense_one():
    def ruin(model, call):
        with torch.no_grad():
            model.head.weight.zero_()

    model = dense_model()
    found = run(model=model, max_drop=0.1, recovery=Does(ruin, []))
    assert found.chosen == 0
    assert same_bits(found.model, model)
    assert found.model is not model
    assert found.plan is found.receipt is found.certificate is None
    assert any("No certificate" in note for note in found.notes)


# ------------------------------------------------------------------------------------- repeatability
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(half: Result):
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.cat([x for x, _ in DATA.train]), torch.cat([y for _, y in DATA.train])),
        batch_size=64,
        shuffle=True,
    )
    shuffled = dataclasses.replace(DATA, train=loader)
    made = []
    for seed in (3, 3, 4):
        torch.rand(seed + len(made))
        made.append(run(data=shuffled, seed=seed, steps=1))
    assert digest(made[0].state) == digest(made[1].state)
    assert made[0].certificate == made[1].certificate
    assert made[0].scores == made[1].scores
    assert not same_bits(made[0].model, made[2].model)


class Killed(BaseException):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("moment", ["step 1/2: finetune", "step 2/2: score", "step 2/2: finetune", "certify"])
def test_a_run_that_was_interrupted_and_resumed_ends_with_the_same_bits(half: Result, tmp_path: Path, moment: str):
    told = []

    def interrupt(label, done, total):
        told.append(label)
        if moment in label:
            raise Killed

    folder = tmp_path / "run"
    interrupted = True
    try:
        run(out=folder, progress=interrupt)
        interrupted = False
    except Killed:
        pass
    assert interrupted or moment == "certify", sorted(set(told))
    resumed = run(out=folder, resume=True)
    assert resumed.candidates == half.candidates
    assert same_bits(resumed.model, half.model)
    assert resumed.certificate == half.certificate
    # Once more, now that there is nothing left to do.
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert digest(run(out=folder, resume=True).state) == digest(resumed.state)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize("moment", ["scan", "cross-validate"])
def test_a_run_that_chooses_its_budget_goes_on_after_an_interruption(tmp_path: Path, moment: str):
    def interrupt(label, done, total):
        if moment in label and done == 4:
            raise Killed

    plain = {"budget": None, "steps": 1, "recovery": recoveries.recalibrate()}
    with pytest.raises(Killed):
        run(out=tmp_path / "run", progress=interrupt, **plain)
    resumed, whole = run(out=tmp_path / "run", resume=True, **plain), run(**plain)
    assert (resumed.curves, resumed.validation) == (whole.curves, whole.validation)
    assert resumed.candidates == whole.candidates


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from test_pipeline import run
run(out={folder!r})
"""


def test_a_run_that_was_killed_ends_with_the_same_bits(half: Result, tmp_path: Path):
    folder = tmp_path / "run"
    script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder))
    # Bits depend on the number of threads, so both processes have the same.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen([sys.executable, "-c", script], env=environment) as process:
        while not (folder / "step-1.safetensors").exists() and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "step-2.safetensors").exists()
    resumed = run(out=folder, resume=True)
    assert resumed.candidates == half.candidates
    assert resumed.certificate == half.certificate


# ------------------------------------------------------------------------------------- refusals
def test_folders_that_hold_something_else_are_refused_and_left_alone(tmp_path: Path):
    folder = tmp_path / "run"
    run(out=folder, steps=1)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(InputError, match="not empty"):
        run(out=folder, steps=1)
    other = dense_model()
    with torch.no_grad():
        other.head.bias += 1
    for change in (
        {"model": other},
        {"data": dataclasses.replace(DATA, train=DATA.train[1:])},
        {"budget": Budget(macs=0.6)},
        {"seed": 1},
        {"criterion": criteria.taylor()},
    ):
        with pytest.raises(StaleArtifact, match="other settings"):
            run(out=folder, resume=True, **{"steps": 1, **change})
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty"):
        run(out=foreign)
    with pytest.raises(StaleArtifact, match="something else"):
        run(out=foreign, resume=True)
    assert (foreign / "thesis.txt").read_text() == "precious"


def test_a_truncated_or_changed_run_is_refused(tmp_path: Path):
    folder = tmp_path / "run"
    run(out=folder, steps=1)
    for name in ("step-1.safetensors", "state.json"):
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(FileCorrupt):
            run(out=folder, steps=1, resume=True)
        path.write_bytes(whole)
    run(out=folder, steps=1, resume=True)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param({"budget": None, "max_drop": None}, InputError, id="no goal"),
        pytest.param({"steps": 0}, InputError, id="no step"),
        pytest.param({"max_drop": -0.1}, InputError, id="negative drop"),
        pytest.param({"max_drop": float("nan")}, InputError, id="drop not a number"),
        pytest.param({"confidence": 1.0}, InputError, id="certainty"),
        pytest.param({"scan": "sometimes"}, InputError, id="unknown scan"),
        pytest.param({"seed": -1}, InputError, id="negative seed"),
        pytest.param({"resume": True, "out": None}, InputError, id="resume without a folder"),
        pytest.param({"data": dataclasses.replace(DATA, train=[])}, EmptyData, id="empty data"),
        pytest.param({"data": dataclasses.replace(DATA, search=iter(DATA.search))}, OneShotIterable, id="iterator"),
        pytest.param({"data": dataclasses.replace(DATA, held_out=zip(DATA.search))}, OneShotIterable, id="zip"),
        pytest.param({"budget": Budget(macs=1e-6)}, BudgetUnreachable, id="unreachable budget"),
        pytest.param({"data": dataclasses.replace(DATA, held_out=DATA.search)}, SplitOverlap, id="held out = search"),
        pytest.param(
            {"data": dataclasses.replace(DATA, held_out=[*DATA.held_out, *DATA.train[:1]])},
            SplitOverlap,
            id="held out in train",
        ),
        pytest.param({"task": dataclasses.replace(TASK, correct=None)}, CertificateError, id="loss without clip"),
        pytest.param({"clip": 2.0}, InputError, id="clip of a score"),
    ],
)
def test_what_cannot_be_used_is_refused_and_leaves_no_file(tmp_path: Path, change, error):
    folder = tmp_path / "run"
    with pytest.raises(error):
        run(**{"out": folder, **change})
    assert not folder.exists()


def test_a_failing_stage_leaves_model_and_files_as_they_were(tmp_path: Path):
    model = dense_model()
    before = _surgery.fingerprint_weights(model)
    sick = dataclasses.replace(
        TASK, losses=lambda out, batch: F.cross_entropy(out, batch[1], reduction="none") * float("nan")
    )
    with pytest.raises(NonFinite):
        run(model=model, task=sick, out=tmp_path / "a")
    with pytest.raises(NonFinite):
        run(model=model, recovery=recoveries.finetune(lr=1e30, clip=None, optimizer="sgd"), out=tmp_path / "b")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
    assert _surgery.fingerprint_weights(model) == before


def test_a_task_without_labels_needs_no_criterion_of_its_own() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    batches = [(torch.randn(20, 6), torch.zeros(20, dtype=torch.long)) for _ in range(3)]
    result = secateur.prune(
        model,
        torch.randn(2, 6),
        data=secateur.Data(train=batches, search=batches),
        task=secateur.tasks.match_output(model),
        budget=secateur.Budget(params=0.6),
        steps=1,
        recovery=secateur.recoveries.recalibrate(),
    )
    assert result.plan is not None
    assert result.plan.criterion == "obd_sampled"
