"""A `Report` written by hand, with everything in it that a run can find out."""

from __future__ import annotations

import math

from secateur.schema.budget import Budget
from secateur.schema.certificate import Certificate, Entry, HeldOut, Needed, Tested
from secateur.schema.costs import Costs, Latency
from secateur.schema.curves import Curves, Point
from secateur.schema.groups import Frozen
from secateur.schema.receipt import Verification
from secateur.schema.report import Report, Width
from secateur.schema.result import Used
from secateur.schema.scores import Scores
from secateur.schema.state import Candidate, State
from secateur.schema.validation import Choice, Trial, Validation

NAMES = ("stem", "stage1.0.conv1", "stage1.1.conv1", "stage2.0.conv1", "stage2.0.conv2", "stage2.1.conv1")
UNITS = (32, 32, 32, 64, 64, 64)
N = 300


def candidate(step: int, macs: int, correct: float, *, accepted: bool = True) -> Candidate:
    return Candidate(
        step=step,
        file="",
        receipt=None,
        costs=Costs(macs=macs, params=macs // 20, memory=macs // 5),
        removed=1 - macs / 9_000_000,
        search_loss=0.05 + 0.01 * step,
        search_correct=correct,
        drop=0.99 - correct,
        accepted=accepted,
    )


def state(*, last_accepted: bool = True) -> State:
    return State(
        step=3,
        steps=3,
        budget=Budget(macs=0.5),
        max_drop=0.03,
        candidates=(
            candidate(0, 9_000_000, 0.99),
            candidate(1, 7_480_000, 0.985),
            candidate(2, 5_990_000, 0.98),
            candidate(3, 4_490_000, 0.972 if last_accepted else 0.95, accepted=last_accepted),
        ),
        finished=True,
        reason="all 3 steps done" if last_accepted else "step 3 lost too much: rolled back to step 2",
        seed=0,
        settings="",
    )


def scores() -> Scores:
    values = tuple(tuple(0.002 * (g + 1) * (u / n) ** 3 for u in range(n)) for g, n in enumerate(UNITS))
    return Scores(
        criterion="obd", unit="nats", order=2, source="LeCun, Denker & Solla 1990", values=values, n_examples=N
    )


def curves() -> Curves:
    points = []
    for g, n in enumerate(UNITS):
        for step in range(1, 10):
            removed = math.floor(step / 10 * n)
            mean = 0.004 * (g + 1) * math.expm1(5 * step / 10)
            for fold in range(5):
                k, noise = N // 5, 0.01 * math.cos(7 * fold + g)
                loss = k * (mean + noise * mean)
                points.append(
                    Point(
                        group=g,
                        removed=step / 10,
                        n_removed=removed,
                        fold=fold,
                        n=k,
                        weight=float(k),
                        loss=loss,
                        loss_sq=k * (mean**2 + (0.02 + mean) ** 2),
                        drop=k * mean / 5,
                        drop_sq=k * mean / 5,
                        base_loss=0.05 * k,
                        base_correct=0.99 * k,
                        weight_sq=float(k),
                    )
                )
    return Curves(points=tuple(points), names=NAMES, n_units=UNITS, n_folds=5, criterion="obd")


def tested(step: int, *, certified: bool) -> Tested:
    return Tested(
        name=f"step {step}",
        index=step - 1,
        certified=certified,
        n=600,
        n_saved=0,
        n_examples=600,
        dense=0.99,
        pruned=0.99 - 0.004 * step,
        drop=0.004 * step,
        limit=0.008 * step + (0.0 if certified else 0.02),
        evidence=None,
        churn=0.02,
        losses=4 + step,
        gains=2,
        mcnemar=0.3,
        needed=None if certified else Needed(n=1400, more=800, power=0.8, calculation="n = ..."),
    )


def certificate(*, certified: bool = True) -> Certificate:
    return Certificate(
        claim="score",
        margin=0.03,
        confidence=0.95,
        level=0.05,
        attempt=1,
        spent=0.0,
        certified="step 3" if certified else None,
        index=2 if certified else None,
        bound=0.03 if certified else None,
        test="exact_paired",
        settings="",
        source="Lloyd & Moldovan 2008",
        path=tuple(Entry(name=f"step {s}", weights="", n_params=100) for s in (1, 2, 3)),
        tested=tuple(tested(s, certified=True) for s in (1, 2, 3)) if certified else (tested(1, certified=False),),
        dense="",
        held_out=HeldOut(
            fingerprint="",
            n_examples=600,
            n_units=600,
            n_shared=0,
            n_duplicates=0,
            checkable=True,
            unit="example",
            positions="order of the data",
            sketch=(),
            overlaps=(),
        ),
        task="classification",
        versions={},
    )


def validation() -> Validation:
    return Validation(
        budget=Budget(macs=0.62),
        kept=0.62,
        reason="the smallest amount whose drop plus one standard error is allowed",
        max_drop=0.03,
        unit="score",
        metric="mean",
        trials=tuple(
            Trial(kept=k, macs=k, drop=0.1 * (1 - k) ** 2, error=0.006, fold_drops=(0.01,) * 5, accepted=k > 0.6)
            for k in (0.9, 0.8, 0.7, 0.62, 0.5)
        ),
        choices=tuple(Choice(fold=f, kept=0.6 + 0.02 * f, drop=0.01 * f, error=0.01, within=f < 4) for f in range(5)),
        spread=0.021,
        n=N,
    )


def full(*, certified: bool = True, last_accepted: bool = True) -> Report:
    """Every section filled."""
    times = ((1, "dense", 1.21e-3), (1, "pruned", 0.83e-3), (256, "dense", 0.0312), (256, "pruned", 0.0171))
    return Report(
        model="ResidualCNN",
        state=state(last_accepted=last_accepted),
        chosen=3 if last_accepted else 2,
        n_search=N,
        widths=tuple(
            Width(
                name=name,
                kind="channel",
                module=name,
                n_units=n,
                n_kept=n - 7 * (i + 1),
                exact=i != 1,
                why="layer norm over the channels" if i == 1 else "",
            )
            for i, (name, n) in enumerate(zip(NAMES, UNITS, strict=True))
        ),
        frozen=(
            Frozen(param="stem.weight", axis=1, count=1, reason="an input of the model", source="net.py:12"),
            Frozen(param="head.weight", axis=0, count=10, reason="an output of the model", node="aten.linear"),
        ),
        scores=scores(),
        curves=curves(),
        validation=validation(),
        certificate=certificate(certified=certified),
        verification=Verification(checks=("eval", "train", "eval batch 3"), error=3e-15, tolerance=1e-9, distance=0.4),
        used=(
            Used(role="criterion", name="obd", source="LeCun, Denker & Solla 1990, Optimal brain damage"),
            Used(role="allocator", name="greedy"),
            Used(role="recovery", name="finetune", settings="epochs=6, lr=0.001", source="Han et al. 2015, 1506.02626"),
        ),
        latency=tuple(
            Latency(
                label=label,
                batch=b,
                threads=2,
                device="cpu",
                runtime="torch 2.13",
                median=t,
                low=0.97 * t,
                high=1.04 * t,
                n=60,
            )
            for b, label, t in times
        ),
        notes=("The search data and the training data do not overlap.",),
        environment={"secateur": "0.1.0", "torch": "2.13.0", "on": "Linux x86_64, 2 threads"},
    )
