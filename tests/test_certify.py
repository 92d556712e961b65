"""The certificate as a whole: the path, the data, the words; with models whose every answer is known."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from secateur import _exact
from secateur._certify import bootstrap_interval, certify, explain, verify_certificate
from secateur._surgery import fingerprint_weights
from secateur.certifiers import betting, exact
from secateur.errors import (
    CertificateError,
    EmptyData,
    InputError,
    NonFinite,
    OneShotIterable,
    SplitOverlap,
    TaskShapeError,
)
from secateur.schema import from_json, to_json
from secateur.schema.certificate import Certificate
from secateur.schema.task import Task

N = 1500


class Answers(nn.Module):
    """Right on example i with score right[i]; the label is always class 0."""

    def __init__(self, right: Sequence[float] | Tensor, classes: int = 2) -> None:
        super().__init__()
        self.right = nn.Parameter(torch.as_tensor(right, dtype=torch.float32))
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        score = self.right[x[:, 0].long()]
        rest = ((1 - score) / (self.classes - 1))[:, None].expand(-1, self.classes - 1)
        return torch.cat([score[:, None], rest], dim=1)


def make_task(**more: Any) -> Task:
    return Task(
        **{
            "forward": lambda model, batch: model(batch[0]),
            "losses": lambda out, batch: F.cross_entropy(out, batch[1], reduction="none"),
            "correct": lambda out, batch: (out.argmax(1) == batch[1]).double(),
            "name": "answers",
            **more,
        }
    )


SOFT = make_task(correct=lambda out, batch: out[:, 0].double())


def batches(n: int = N, size: int = 100, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    x = torch.arange(start, start + n)[:, None].float()
    y = torch.zeros(n, dtype=torch.long)
    return [(x[i : i + size], y[i : i + size]) for i in range(0, n, size)]


def wrong_at(*where: int, n: int = N) -> Answers:
    right = torch.ones(n)
    right[list(where)] = 0
    return Answers(right)


DENSE = wrong_at(*range(100))
SAME = wrong_at(*range(100))
GOOD = wrong_at(*range(2, 102))  # gains 0 and 1, loses 100 and 101
BAD = wrong_at(*range(300))


def make(candidates: Sequence[nn.Module] = (SAME, GOOD, BAD), **more: Any) -> Certificate:
    given = {"task": make_task(), "held_out": batches(), "max_drop": 0.01, **more}
    return certify(DENSE, list(candidates), given.pop("held_out"), given.pop("task"), **given)


# The path


def test_the_sparsest_candidate_before_the_first_failure_is_named() -> None:
    found = make(names=["a", "b", "c"])
    assert (found.certified, found.index) == ("b", 1)
    assert [(t.name, t.certified) for t in found.tested] == [("a", True), ("b", True), ("c", False)]
    assert found.failed is not None
    assert found.failed.name == "c"
    assert found.chosen is not None
    assert found.chosen.name == "b"
    assert found.bound == 0.01  # one failed, so only the margin is shown for those before


def test_nothing_after_a_failure_is_tested_or_certified_however_good() -> None:
    found = make([BAD, SAME])
    assert found.certified is None
    assert found.bound is None
    assert len(found.tested) == 1


def test_where_the_whole_path_passes_the_bound_is_its_largest_limit() -> None:
    found = make([SAME, GOOD])
    assert found.bound == max(t.limit for t in found.tested) < 0.01


def test_counts_and_positions_are_those_of_the_answers() -> None:
    tested = make([GOOD]).tested[0]
    assert (tested.losses, tested.gains) == (2, 2)
    assert tested.lost == (100, 101)
    assert tested.gained == (0, 1)
    assert tested.churn == pytest.approx(4 / N)
    assert tested.drop == 0
    assert tested.dense == pytest.approx(1 - 100 / N) == tested.pruned
    assert tested.limit == pytest.approx(_exact.upper_limit(N, 2, 2, 0.05))
    assert tested.mcnemar == 1.0


@given(losses=st.integers(0, 40), gains=st.integers(0, 40))
@settings(max_examples=5)
def test_decisions_and_mcnemar_agree_with_the_counts(losses: int, gains: int) -> None:
    pruned = wrong_at(*range(gains, 100), *range(100, 100 + losses))
    tested = make([pruned]).tested[0]
    assert tested.certified == _exact.region(N, 0.01, 0.05).certifies(losses, gains)
    expected = binomtest(losses, losses + gains).pvalue if losses + gains else 1.0
    assert tested.mcnemar == pytest.approx(expected)


def test_a_candidate_that_is_better_is_certified_and_never_punished() -> None:
    better = wrong_at()
    found = make([better])
    assert found.certified is not None
    assert found.tested[0].drop < 0
    assert found.tested[0].limit < 0


def test_no_discordant_example_is_an_answer_not_a_division_by_zero() -> None:
    tested = make([SAME]).tested[0]
    assert tested.certified
    assert tested.churn == 0
    assert 0 < tested.limit < 0.01


def test_all_wrong_is_not_certified_and_no_number_of_examples_helps() -> None:
    found = make([wrong_at(*range(N))])
    assert found.certified is None
    assert found.tested[0].needed is not None
    assert found.tested[0].needed.n is None


def test_dense_and_pruned_both_all_wrong_lose_nothing() -> None:
    nothing = wrong_at(*range(N))
    assert certify(nothing, [nothing], batches(), make_task(), max_drop=0.01).certified is not None


def test_one_example_is_not_certifiable_and_says_how_many_are_needed() -> None:
    found = certify(wrong_at(n=1), [wrong_at(n=1)], batches(1), make_task(), max_drop=0.01)
    assert found.certified is None
    needed = found.tested[0].needed
    assert "Not certifiable" in explain(found)
    assert needed is not None


def test_the_examples_needed_would_do() -> None:
    """The size named is given, with the same rates: then the candidate is certified."""
    n = 500
    found = certify(wrong_at(n=n), [wrong_at(0, 1, 2, n=n)], batches(n), make_task(), max_drop=0.01)
    needed = found.tested[0].needed
    assert found.certified is None
    assert needed is not None
    assert needed.n is not None
    assert needed.more == needed.n - n
    lost = round(3 * needed.n / n)
    assert _exact.power(_exact.region(needed.n, 0.01, 0.05), 2.5 / n, 3.5 / n) >= 0.75
    again = certify(
        wrong_at(n=needed.n), [wrong_at(*range(lost), n=needed.n)], batches(needed.n), make_task(), max_drop=0.01
    )
    assert again.certified is not None


# The data


def test_shared_examples_are_dropped_and_counted() -> None:
    found = make([SAME], also=[batches(12, start=N - 10), batches(50, start=10_000)])
    assert found.held_out.n_shared == 10
    assert [o.shared for o in found.held_out.overlaps] == [10, 0]
    assert found.tested[0].n == N - 10 == found.held_out.n_units
    assert any("dropped" in note for note in found.notes)


def test_more_than_one_percent_shared_is_refused() -> None:
    with pytest.raises(SplitOverlap, match="16 of 1500"):
        make([SAME], also=[batches(16, start=N - 16)])


def test_duplicates_are_refused_merged_or_kept_as_told() -> None:
    twice = batches(300) + batches(300)
    dense, pruned = wrong_at(), wrong_at(0)
    with pytest.raises(CertificateError, match="more than once"):
        certify(dense, [pruned], twice, make_task(), max_drop=0.05)
    merged = certify(dense, [pruned], twice, make_task(), max_drop=0.05, duplicates="merge")
    assert (merged.tested[0].n, merged.held_out.n_duplicates, merged.tested[0].losses) == (300, 300, 1)
    kept = certify(dense, [pruned], twice, make_task(), max_drop=0.05, duplicates="keep")
    assert (kept.tested[0].n, kept.tested[0].losses, kept.tested[0].lost) == (600, 2, (0, 300))


def test_a_few_duplicates_count_once() -> None:
    found = make([SAME], held_out=batches() + batches(3))
    assert (found.tested[0].n, found.held_out.n_duplicates) == (N, 3)


class Shuffled:
    """The same examples in another order at every pass."""

    def __init__(self, n: int = N) -> None:
        self.n, self.passes = n, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        order = torch.randperm(self.n, generator=torch.Generator().manual_seed(self.passes))
        for part in order.split(100):
            yield part[:, None].float(), torch.zeros(len(part), dtype=torch.long)


def test_pairs_stay_together_under_a_loader_that_shuffles() -> None:
    found, plain = make(held_out=Shuffled()), make()
    assert found.held_out.positions == "order of content hashes"
    assert found.held_out.fingerprint == plain.held_out.fingerprint
    for one, other in zip(found.tested, plain.tested, strict=True):
        assert (one.losses, one.gains, one.limit, one.certified) == (
            *(other.losses, other.gains, other.limit, other.certified),
        )


def test_the_betting_test_gives_the_same_whatever_the_order_of_the_data() -> None:
    plain, shuffled = make(test=betting()), make(test=betting(), held_out=Shuffled())
    assert [t.evidence for t in plain.tested] == [t.evidence for t in shuffled.tested]


class Augmented:
    """Examples that change at every pass: a random second feature, as an augmentation would give."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in batches():
            yield torch.cat([x, torch.rand(len(x), 1)], dim=1), y


def test_examples_that_change_at_every_pass_are_not_checkable_and_it_says_so() -> None:
    found = make([GOOD], held_out=Augmented(), also=[batches()])
    assert not found.held_out.checkable
    assert not found.held_out.overlaps[0].checkable
    assert "not checkable" in explain(found)
    assert (found.tested[0].losses, found.tested[0].gains) == (2, 2)


def test_another_split_that_changes_is_not_checkable_either() -> None:
    found = make([GOOD], also=[Augmented()])
    assert found.held_out.checkable
    assert not found.held_out.overlaps[0].checkable


def test_data_that_can_be_read_once_or_is_empty_is_refused() -> None:
    with pytest.raises(OneShotIterable):
        make(held_out=(b for b in batches()))
    with pytest.raises(EmptyData):
        make(held_out=[])


# Stopping early


def test_a_shuffling_loader_lets_the_betting_test_stop_and_saves_evaluations() -> None:
    x, y = torch.arange(N)[:, None].float(), torch.zeros(N, dtype=torch.long)
    loader = DataLoader(TensorDataset(x, y), batch_size=50, shuffle=True)
    found = make([SAME, BAD], held_out=loader, test=betting())
    assert found.early
    assert found.tested[0].n_saved > 0
    assert found.tested[0].n + found.tested[0].n_saved == N
    assert found.n_saved == found.tested[0].n_saved
    assert found.tested[0].evidence is not None
    assert found.tested[0].evidence >= 20
    assert "saved" in explain(found)


def test_an_order_that_may_not_be_random_is_evaluated_to_the_end() -> None:
    """All losses stand at the end: who stopped early in this order would be wrong."""
    late = wrong_at(*range(100), *range(N - 60, N))
    assert make([late], test=betting()).certified is None
    found = make([SAME], test=betting())
    assert found.tested[0].n_saved == 0
    assert any("not known to be random" in note for note in found.notes)
    assert make([SAME], test=betting(), random_order=True).tested[0].n_saved > 0


def test_the_exact_test_never_stops_early() -> None:
    assert make([SAME], test=exact(), random_order=True).n_saved == 0


def test_a_whole_population_leaves_no_doubt() -> None:
    found = make([wrong_at(*range(116))], population=True)
    assert found.tested[0].drop == pytest.approx(16 / N)
    assert found.certified is None
    assert make([wrong_at(*range(114))], population=True, max_drop=14.5 / N).certified is not None
    assert "exactly these" in explain(found)
    with pytest.raises(InputError, match="population"):
        make([SAME], population=True, test=exact())


# Groups, weights, fractions, losses


def test_groups_are_the_units() -> None:
    task = make_task(groups=lambda batch: (batch[0][:, 0].long() // 5).tolist())
    found = make([GOOD], task=task)
    assert (found.test, found.held_out.unit, found.tested[0].n) == ("betting", "group", N // 5)
    assert found.tested[0].n_examples == N
    with pytest.raises(CertificateError, match="exact test"):
        make([wrong_at(*range(2, 103))], task=task, test=exact())


def test_a_group_may_be_spread_over_batches_and_counts_by_its_mean() -> None:
    task = make_task(groups=lambda batch: ["big" if i < 1000 else i for i in batch[0][:, 0].tolist()])
    found = make([wrong_at(*range(100), *range(1000, 1010))], task=task)
    assert found.tested[0].n == N - 1000 + 1
    assert found.tested[0].drop == pytest.approx(10 / 501)
    by_size = make([wrong_at(*range(100), *range(1000, 1010))], task=task, max_weight=1000.0)
    assert by_size.tested[0].drop == pytest.approx(10 / N)


def test_copies_inside_a_group_are_kept_and_across_groups_count_once() -> None:
    task = make_task(groups=lambda b: ["last"] * 3 if len(b[1]) == 3 else [min(i, 1490) for i in b[0][:, 0].tolist()])
    inside = make([SAME], task=task, held_out=batches() + batches(2, start=1490))
    assert (inside.held_out.n_duplicates, inside.held_out.n_units) == (0, 1491)
    across = make([SAME], task=task, held_out=batches() + batches(3))
    assert (across.held_out.n_duplicates, across.held_out.n_units) == (3, 1491)


def test_varying_weights_need_a_bound_known_beforehand() -> None:
    task = make_task(weights=lambda batch: 1.0 + (batch[0][:, 0] < 200).double())
    with pytest.raises(CertificateError, match="max_weight"):
        make([SAME], task=task)
    found = make([wrong_at(*range(110))], task=task, max_weight=2.0)
    assert found.test == "betting"
    assert found.tested[0].drop == pytest.approx(20 / (N + 200))
    with pytest.raises(CertificateError, match="weighs more"):
        make([SAME], task=task, max_weight=1.5)


def test_fractions_go_to_the_betting_test_and_the_exact_test_refuses_them() -> None:
    dense, pruned = Answers(torch.full((N,), 0.8)), Answers(torch.full((N,), 0.799))
    found = certify(dense, [pruned], batches(), SOFT, max_drop=0.01)
    assert found.test == "betting"
    assert found.certified is not None
    assert found.tested[0].losses is None
    assert found.tested[0].mcnemar is None
    assert found.tested[0].drop == pytest.approx(0.001, abs=1e-6)
    with pytest.raises(CertificateError, match="betting"):
        certify(dense, [pruned], batches(), SOFT, max_drop=0.01, test=exact())


def test_a_loss_budget_is_about_clipped_losses_in_nats() -> None:
    found = make([GOOD], max_drop=None, max_loss_increase=0.1, clip=1.0)
    tested = found.tested[0]
    with torch.no_grad():
        rows = [(DENSE(x), GOOD(x), y) for x, y in batches()]
    a = torch.cat([F.cross_entropy(d, y, reduction="none") for d, _, y in rows]).double().clamp(0, 1)
    b = torch.cat([F.cross_entropy(p, y, reduction="none") for _, p, y in rows]).double().clamp(0, 1)
    assert tested.dense == pytest.approx(float(a.mean()))
    assert tested.pruned == pytest.approx(float(b.mean()))
    assert tested.drop == pytest.approx(float((b - a).mean()), abs=1e-9)
    assert tested.clipped == pytest.approx((float((a >= 1).double().mean()), float((b >= 1).double().mean())))
    assert (found.claim, found.clip, found.margin) == ("loss", (0.0, 1.0), 0.1)
    assert tested.losses == 2  # scores exist, so discordance is still reported
    assert "nats" in explain(found)


def test_a_loss_budget_without_a_clip_or_without_losses_per_example_is_refused() -> None:
    with pytest.raises(CertificateError, match="clip"):
        make([SAME], max_drop=None, max_loss_increase=0.1)
    with pytest.raises(CertificateError, match="mean loss"):
        make([SAME], task=make_task(per_example=False), max_drop=None, max_loss_increase=0.1, clip=1.0)


def test_strata_have_limits_that_hold_together() -> None:
    found = make([SAME, GOOD], strata=lambda batch: (batch[0][:, 0] >= 500).tolist())
    assert found.strata is not None
    assert found.strata.level == pytest.approx(0.05 / (2 * 2))
    assert found.strata.candidate == "candidate 2"
    rows = {s.key: s for s in found.strata.items}
    assert (rows["False"].n, rows["False"].losses, rows["False"].gains) == (500, 2, 2)
    assert (rows["True"].n, rows["True"].losses, rows["True"].gains) == (1000, 0, 0)
    assert rows["False"].limit == pytest.approx(_exact.upper_limit(500, 2, 2, 0.0125))
    assert found.strata.worst.key == "False"
    assert "'False'" in explain(found)


def test_strata_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(InputError, match="strata"):
        make([SAME], strata=lambda batch: [0])


# What is refused


@pytest.mark.parametrize(
    "more",
    [
        {"max_drop": 1.0},
        {"max_drop": -0.1},
        {"max_drop": float("nan")},
        {"max_drop": None},
        {"max_drop": 0.1, "max_loss_increase": 0.1},
        {"confidence": 1.0},
        {"confidence": 0.2},
        {"clip": 1.0},
        {"max_weight": -1.0},
        {"duplicates": "forget"},
        {"names": ["a"]},
        {"names": ["a", "a", "b"]},
        {"candidates": []},
        {"max_drop": None, "max_loss_increase": 2.0, "clip": 1.0},
        {"max_drop": None, "max_loss_increase": 0.1, "clip": (2.0, 1.0)},
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_before_anything_is_read(more: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        make(**more)


def test_one_model_instead_of_a_path_is_refused() -> None:
    with pytest.raises(InputError, match="write \\[small\\]"):
        certify(DENSE, GOOD, batches(), make_task(), max_drop=0.01)  # type: ignore[arg-type]


def test_a_task_without_a_score_is_refused() -> None:
    with pytest.raises(CertificateError, match="no score"):
        make([SAME], task=make_task(correct=None))


@pytest.mark.parametrize(
    ("correct", "error", "text"),
    [
        (lambda out, batch: out[:, 0] * float("nan"), NonFinite, "not finite"),
        (lambda out, batch: out[:, 0] * 2, InputError, "leave \\[0, 1\\]"),
        (lambda out, batch: out[:, 0] - 0.5, InputError, "leave \\[0, 1\\]"),
        (lambda out, batch: out[:, 0].mean(), TaskShapeError, "one number per example"),
    ],
    ids=["nan", "above one", "below zero", "a mean"],
)
def test_scores_that_are_none_are_refused_by_name(correct: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make([SAME], task=make_task(correct=correct))


def test_a_candidate_with_nan_weights_is_refused_by_name() -> None:
    broken = Answers(torch.full((N,), float("nan")))
    with pytest.raises(NonFinite, match="candidate 'broken'"):
        make([broken], names=["broken"])


def test_a_candidate_of_another_task_is_refused_by_name() -> None:
    with pytest.raises(CertificateError, match=r"'ten' does not do the task"):
        make([SAME, Answers(torch.ones(N), classes=10)], names=["two", "ten"])
    with pytest.raises(CertificateError, match="does not do the task"):
        make([nn.Linear(3, 2)])


# Several tries


def test_a_second_try_is_refused_where_the_first_spent_everything() -> None:
    first = make([BAD])
    with pytest.raises(CertificateError, match="no error probability is left"):
        make([SAME], held_out=batches(1000, start=0), history=[first])


def test_later_tries_spend_their_share_on_fresh_data() -> None:
    def answers(*wrong: int) -> Answers:
        return wrong_at(*wrong, n=3 * N)

    def attempt(number: int, **more: Any) -> Certificate:
        data = batches(start=number * N)
        return certify(
            answers(), [answers(*range(number * N, number * N + 100))], data, make_task(), max_drop=0.01, **more
        )

    first = attempt(0, more_tries=True)
    second = attempt(1, history=[first])
    third = attempt(2, history=[first, second])
    assert [c.level for c in (first, second, third)] == pytest.approx([0.05 / 2, 0.05 / 6, 0.05 / 12])
    assert (third.attempt, third.spent) == (3, pytest.approx(0.05 * 2 / 3))
    assert "try 3" in explain(third)
    assert attempt(2, history=[second]) == third  # the last certificate remembers the whole series
    assert verify_certificate(
        third, answers(), [answers(*range(2 * N, 2 * N + 100))], batches(start=2 * N), make_task()
    ).holds
    with pytest.raises(CertificateError, match="used before"):
        attempt(0, history=[second])
    with pytest.raises(CertificateError, match="used before"):
        attempt(0, history=[first])


def test_data_that_overlaps_an_earlier_try_is_recognised_in_any_order_and_batch_size() -> None:
    first = make([BAD], more_tries=True)
    with pytest.raises(CertificateError, match="used before"):
        make([SAME], held_out=batches(700, size=7, start=800), history=[first])


# Files, words, derivation


def test_a_certificate_survives_json_bit_by_bit() -> None:
    for found in (make(strata=lambda batch: [int(i) % 2 for i in batch[0][:, 0]]), make([GOOD], test=betting())):
        assert from_json(Certificate, json.loads(json.dumps(to_json(found)))) == found


def test_a_certificate_is_derived_again() -> None:
    candidates = [SAME, GOOD, BAD]
    for more in ({}, {"test": betting()}, {"max_drop": None, "max_loss_increase": 0.1, "clip": 1.0}):
        found = make(candidates, **more)
        again = verify_certificate(found, DENSE, candidates, batches(size=64), make_task())
        assert again.holds, [c for c in again.checks if not c.holds]


def test_derivation_notices_other_models_other_data_and_other_numbers() -> None:
    found = make([SAME, GOOD])

    def failing(
        c: Certificate, dense: nn.Module = DENSE, path: Sequence[nn.Module] = (SAME, GOOD), n: int = N
    ) -> set[str]:
        return {k.name for k in verify_certificate(c, dense, path, batches(n), make_task()).checks if not k.holds}

    assert failing(found) == set()
    assert failing(found, dense=BAD) == {"dense model"}
    assert failing(found, path=[SAME, BAD]) == {"candidates"}
    assert failing(found, n=N - 1) == {"held-out data"}
    assert failing(dataclasses.replace(found, certified="candidate 1")) == {"claim"}
    assert failing(dataclasses.replace(found, level=0.2)) == {"error probability"}
    nicer = dataclasses.replace(found.tested[1], losses=1, lost=(100,))
    assert failing(dataclasses.replace(found, tested=(found.tested[0], nicer))) == {"evidence for candidate 2"}
    bold = dataclasses.replace(found.tested[1], losses=90)
    assert "arithmetic" in failing(dataclasses.replace(found, tested=(found.tested[0], bold)))


def test_the_words_say_what_a_manager_needs() -> None:
    text = explain(make(names=["a", "b", "c"]))
    assert text.startswith("Certified: 'b'.")
    assert "1 percentage point" in text
    assert "at most 5 %" in text
    assert "'c' was not certified" in text
    assert "Not certifiable" in explain(make([BAD]))


def test_no_model_is_changed_and_modes_come_back() -> None:
    model, small = Answers(torch.ones(N)).train(), Answers(torch.ones(N)).train()
    before = fingerprint_weights(model)
    certify(model, [small], batches(), make_task(), max_drop=0.01)
    assert model.training
    assert small.training
    assert fingerprint_weights(model) == before


def test_progress_is_told() -> None:
    heard: list[tuple[str, int, int]] = []
    make([SAME], progress=lambda *step: heard.append(step))
    assert ("hash", 15, 15) in heard
    assert ("certify candidate 1", 15, 15) in heard


# Corpus metrics


def f1(records: Sequence[tuple[bool, bool]]) -> float:
    hit = sum(a and b for a, b in records)
    return 2 * hit / max(1, sum(a for a, _ in records) + sum(b for _, b in records))


def test_a_corpus_metric_gets_an_interval_around_its_drop() -> None:
    generator = np.random.default_rng(0)
    truth = torch.tensor(generator.random(400) < 0.5)
    dense = Answers(torch.where(torch.tensor(generator.random(400) < 0.9), truth, ~truth).float())
    pruned = Answers(torch.where(torch.tensor(generator.random(400) < 0.8), truth, ~truth).float())

    def records(out: Tensor, batch: tuple[Tensor, Tensor]) -> list[tuple[bool, bool]]:
        return [(bool(o), bool(truth[int(i)])) for o, i in zip(out[:, 0] > 0.5, batch[0][:, 0], strict=True)]

    def run(**more: Any) -> Any:
        return bootstrap_interval(
            dense, pruned, batches(400), make_task(**more), records=records, metric=f1, metric_name="F1", resamples=300
        )

    found = run()
    assert found.low < found.drop < found.high
    assert found.dense == pytest.approx(f1(records(dense(batches(400, 400)[0][0]), batches(400, 400)[0])))
    assert found.low > 0
    assert run() == found
    grouped = run(groups=lambda batch: (batch[0][:, 0].long() // 20).tolist())
    assert grouped.n_units == 20
    assert grouped.drop == found.drop


def test_a_corpus_metric_that_is_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        bootstrap_interval(
            SAME, GOOD, batches(), make_task(), records=lambda out, batch: list(out),
            metric=lambda r: float("nan"), metric_name="m", resamples=100,
        )  # fmt: skip
