"""From a `Report` to the words, tables and plots of the page. No HTML here: the template escapes all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur._curves import measured, rank_correlation
from secateur._report import _plots
from secateur._report._certificate import headline, section
from secateur._report._certificate import lines as certificate_lines
from secateur._report._files import heat
from secateur._report._format import number, percent, points, quantity, seconds, size, wilson
from secateur.schema.certificate import Tested
from secateur.schema.costs import Latency
from secateur.schema.groups import Frozen
from secateur.schema.report import Report
from secateur.schema.state import Candidate

# more groups than this, and a box plot of all of them is a barcode
MOST_GROUPS_IN_PLOT = 60


def page(report: Report) -> dict[str, Any]:
    """Everything that the template names."""
    dense, small = report.state.candidates[0], report.state.candidates[report.chosen]
    return {
        "title": f"{report.model}, pruned" if report.chosen else f"{report.model}: nothing was pruned",
        "subtitle": _subtitle(report, dense, small),
        "verdict": _verdict(report),
        "cards": _cards(report, dense, small),
        "certificate": section(report.certificate),
        "path": _path(report),
        "latency": _latency(report.latency),
        "widths": _widths(report),
        "sensitivity": _sensitivity(report),
        "validation": _validation(report),
        "frozen": _frozen(report),
        "recipe": _recipe(report),
        "footer": " · ".join(f"{k} {v}" for k, v in report.environment.items()),
    }


def _subtitle(report: Report, dense: Candidate, small: Candidate) -> str:
    macs = _kept(small.costs.macs, dense.costs.macs)
    asked = _asked(report)
    return f"{percent(macs, 0)} of the multiply-accumulates kept{asked}. Seed {report.state.seed}."


def _asked(report: Report) -> str:
    parts = []
    if report.state.budget is not None:
        budget = report.state.budget
        named = (("MACs", budget.macs), ("parameters", budget.params), ("memory", budget.memory))
        kept = ", ".join(f"{percent(v, 0)} of the {k}" for k, v in named if v is not None)
        how = "budget, chosen by cross-validation" if report.validation else "budget"
        parts.append(f"{how}: {kept}")
    if report.state.max_drop is not None:
        parts.append(f"allowed drop: {_difference(report, report.state.max_drop)}")
    return f" ({'; '.join(parts)})" if parts else ""


def _difference(report: Report, value: float, *, sign: bool = False) -> str:
    """A drop in points where the task has a score, else an increase of the loss in nats."""
    if report.state.candidates[0].search_correct is not None:
        return points(value, sign=sign)
    return f"{number(value)} nats"


def _kept(now: int, before: int) -> float:
    return now / before if before else 1.0


def _saved(now: int, before: int) -> str:
    """As people say it: half as many, not minus 50 %."""
    change = 1 - _kept(now, before)
    return f"{percent(abs(change), 0)} {'less' if change >= 0 else 'more'}"


def _cards(report: Report, dense: Candidate, small: Candidate) -> list[dict[str, str]]:
    cards = []
    held_out = _on_held_out(report)
    if held_out is not None and report.certificate is not None and report.certificate.claim == "score":
        change = f"drop {points(held_out.drop)}" if held_out.drop > 0 else "no drop"
        cards.append(
            {
                "label": f"Score, {held_out.n_examples} held out",
                "value": percent(held_out.pruned),
                "detail": f"dense {percent(held_out.dense)}; {change}",
            }
        )
    elif dense.search_correct is not None and small.search_correct is not None:
        cards.append(
            {
                "label": "Score, search data",
                "value": percent(small.search_correct),
                "detail": f"dense {percent(dense.search_correct)}; {_dropped(report, small)}",
            }
        )
    else:
        cards.append(
            {
                "label": "Loss, search data",
                "value": f"{number(small.search_loss)} nats",
                "detail": f"dense {number(dense.search_loss)}",
            }
        )
    cards += [
        {
            "label": label,
            "value": show(after),
            "detail": f"dense {show(before)}; {_saved(after, before)}",
        }
        for label, before, after, show in (
            ("MACs, example inputs", dense.costs.macs, small.costs.macs, quantity),
            ("Parameters", dense.costs.params, small.costs.params, quantity),
            ("Size", dense.costs.memory, small.costs.memory, size),
        )
    ]
    for first, second in _pairs(report.latency)[-1:]:
        cards.append(
            {
                "label": f"Time, batch {first.batch}, {_threads(second)}",
                "value": seconds(second.median),
                "detail": f"dense {seconds(first.median)}; {number(first.median / second.median, 3)} × as fast",
            }
        )
    return cards


def _on_held_out(report: Report) -> Tested | None:
    """The chosen model on the held-out data, if it was tested there."""
    if report.certificate is None:
        return None
    return next((t for t in report.certificate.tested if t.name == f"step {report.chosen}"), None)


def _dropped(report: Report, small: Candidate) -> str:
    if report.chosen == 0 or small.drop is None:
        return "nothing removed"
    if small.drop <= 0:
        return f"better by {points(-small.drop)}" if small.drop < 0 else "no drop"
    return f"drop {points(small.drop)}"


def _threads(latency: Latency) -> str:
    return f"{latency.threads} {'thread' if latency.threads == 1 else 'threads'}"


def _pairs(latency: tuple[Latency, ...]) -> list[tuple[Latency, Latency]]:
    """(dense, pruned) of each batch size; the first measured model is the dense one."""
    found: dict[int, list[Latency]] = {}
    for entry in latency:
        found.setdefault(entry.batch, []).append(entry)
    return [(entries[0], entries[1]) for _, entries in sorted(found.items()) if len(entries) > 1]


def _path(report: Report) -> dict[str, Any]:
    candidates = report.state.candidates
    dense = candidates[0]
    has_score = all(c.search_correct is not None for c in candidates)
    rows = []
    for i, c in enumerate(candidates):
        low, high = wilson(c.search_correct, report.n_search) if c.search_correct is not None else (0.0, 0.0)
        measured_on = [f"{percent(c.search_correct or 0.0)} ({percent(low)} to {percent(high)})"] if has_score else []
        rows.append(
            {
                "cells": [
                    f"step {c.step}" if c.step else "dense",
                    f"{quantity(c.costs.macs)} ({percent(_kept(c.costs.macs, dense.costs.macs), 0)})",
                    f"{quantity(c.costs.params)} ({percent(_kept(c.costs.params, dense.costs.params), 0)})",
                    number(c.search_loss),
                    *measured_on,
                    "" if c.drop is None or not i else _difference(report, c.drop, sign=True),
                ],
                "kind": "yes" if c.accepted and i else "quiet" if not i else "no",
                "state": "chosen"
                if i == report.chosen
                else "start"
                if not i
                else "accepted"
                if c.accepted
                else "rolled back",
            }
        )
    plot = ""
    if has_score and len(candidates) > 1:
        picture = _plots.path(
            [_kept(c.costs.macs, dense.costs.macs) for c in candidates],
            [c.search_correct or 0.0 for c in candidates],
            [wilson(c.search_correct or 0.0, report.n_search) for c in candidates],
            [c.accepted for c in candidates],
            report.chosen,
            report.state.max_drop,
            "score on the search data, %",
        )
        plot = _plots.uri(picture)
    ended = f" The run ended: {report.state.reason}." if report.state.reason else ""
    return {
        "lead": f"Every step scores the units, removes the least important ones and retrains. Measured on "
        f"{report.n_search} search examples{', with 95 % Wilson intervals' if has_score else ''}.{ended}",
        "plot": plot,
        "alt": "Score on the search data against the share of the multiply-accumulates kept",
        "head": [
            "",
            "MACs",
            "parameters",
            "loss, nats",
            *(["score"] if has_score else []),
            "drop" if has_score else "increase",
            "",
        ],
        "rows": rows,
    }


def _latency(latency: tuple[Latency, ...]) -> dict[str, Any] | None:
    if not latency:
        return None
    fastest = {b: next(e.median for e in latency if e.batch == b) for b in {e.batch for e in latency}}
    first = latency[0]
    return {
        "lead": f"Median of {first.n} interleaved passes on {first.device}, {first.runtime}, {_threads(first)}, with "
        "95 % intervals of the median. MACs say what could be saved; this is what was.",
        "head": ("batch", "model", "median", "95 % interval", "against the first"),
        "rows": [
            (
                e.batch,
                e.label,
                seconds(e.median),
                f"{seconds(e.low)} to {seconds(e.high)}",
                f"{number(fastest[e.batch] / e.median, 3)} ×",
            )
            for e in latency
        ],
        "numeric": (0, 2, 3, 4),
    }


def _widths(report: Report) -> dict[str, Any]:
    removed = sum(w.n_units - w.n_kept for w in report.widths)
    units = sum(w.n_units for w in report.widths)
    check = report.verification
    lines = []
    if check is not None:
        lines.append(
            f"The cut was checked against the dense model with the same units masked ({', '.join(check.checks)}): "
            f"largest relative error {number(check.error, 2)}, allowed {number(check.tolerance, 2)}; the masked model "
            f"itself differs from the dense one by {number(check.distance, 2)}."
        )
    rows = [
        {
            "name": w.name,
            "kind": w.kind.replace("_", " "),
            "kept": w.n_kept,
            "units": w.n_units,
            "percent": f"{100 * w.n_kept / w.n_units:.1f}",
            "exact": "yes" if w.exact else f"no: {w.why}",
        }
        for w in report.widths
    ]
    return {
        "lead": f"{removed} of {units} units in {len(rows)} groups were physically removed. A unit is everything that "
        "must go together: a channel in all layers that it runs through, an attention head, a hidden state.",
        "rows": rows,
        "lines": lines,
    }


def _sensitivity(report: Report) -> dict[str, Any]:
    names = [w.name for w in report.widths]
    scores, curves = report.scores, report.curves
    found: dict[str, Any] = {
        "lead": "",
        "curves": "",
        "heat": "",
        "scores": "",
        "agreement": "",
        "unit": "",
        "correlation": "",
    }
    if scores is not None and 0 < len(names) <= MOST_GROUPS_IN_PLOT:
        found["scores"] = _plots.uri(_plots.scores(names, scores.values))
        unit = (
            "nats: predicted increase of the mean loss if the unit goes" if scores.unit == "nats" else "arbitrary units"
        )
        found["unit"] = (
            f"{scores.criterion} on {scores.n_examples} examples, dense model, in {unit}. Boxes: quartiles; whiskers: "
            "5 % to 95 %. What lies on zero can go at no cost."
        )
    if curves is not None and curves.points:
        lines = measured(curves, scores)
        found["curves"] = _plots.uri(_plots.sensitivity(curves.names, lines))
        found["heat"] = _plots.uri(heat(curves))
        found["lead"] = (
            "Each group alone, the units with the lowest scores removed first, nothing retrained; "
            f"{curves.n_folds} folds together, bars are 95 % intervals of the paired difference."
        )
        if any(p.recovered is not None for line in lines for p in line):
            found["lead"] += " Squares: the same cuts after the cheap recovery (batch norm recalibrated)."
        correlation = rank_correlation(lines)
        if correlation is not None:
            found["agreement"] = _plots.uri(_plots.agreement(lines))
            found["correlation"] = (
                f"Rank correlation (Spearman) of predicted and measured loss, all points: {number(correlation, 2)}. "
                "On the dashed line the prediction is exact."
            )
    elif scores is not None:
        found["lead"] = "No curves were measured in this run; the scores predict what each unit is worth."
    return found


def _validation(report: Report) -> dict[str, Any] | None:
    found = report.validation
    if found is None:
        return None

    def show(value: float, *, sign: bool = False) -> str:
        return points(value, sign=sign) if found.unit == "score" else f"{number(value)} nats"

    chosen = f"Chosen: keep {percent(found.kept)} of the MACs. {found.reason[:1].upper()}{found.reason[1:]}."
    spread = (
        f"{sum(c.within for c in found.choices)} of {len(found.choices)} folds stayed within the allowed drop; the "
        f"choices of the folds have a standard error of {points(found.spread)} of the MACs."
    )
    folds, drop = len(found.choices), f"{show(found.max_drop)} ({found.metric})"
    return {
        "lead": f"No budget was given: {folds}-fold cross-validation on {found.n} search examples chose how much to "
        f"keep for an allowed drop of {drop}, without retraining. Each fold was judged with the amount that the "
        "others had chosen.",
        "head": ("fold left out", "MACs kept, chosen on the others", "drop on this fold", "standard error", "within"),
        "rows": [
            (c.fold + 1, percent(c.kept), show(c.drop, sign=True), show(c.error), "yes" if c.within else "no")
            for c in found.choices
        ],
        "numeric": (1, 2, 3),
        "trials_head": ("MACs asked for", "MACs kept", "drop, all folds", "standard error", ""),
        "trials": [
            (
                percent(t.kept),
                percent(t.macs),
                show(t.drop, sign=True),
                show(t.error),
                "accepted" if t.accepted else "not accepted",
            )
            for t in found.trials
        ],
        "lines": [chosen.replace("..", "."), spread],
    }


def _frozen(report: Report) -> dict[str, Any]:
    rows = frozen_rows(report.frozen)
    return {"lead": "Secateur freezes what it cannot remove exactly, and says why.", "rows": rows}


def frozen_rows(frozen: Sequence[Frozen]) -> list[tuple[str, int, int, str, str]]:
    """(reason, axes, indices, of what, where), one line per reason: whole classes of axes share one."""
    reasons: dict[str, list[Frozen]] = {}
    for f in frozen:
        reasons.setdefault(f.reason, []).append(f)
    return [
        (
            reason,
            len(found),
            sum(f.count for f in found),
            _listed([f"{f.param}, axis {f.axis}" for f in found]),
            _listed([f.source or f.node for f in found if f.source or f.node]),
        )
        for reason, found in reasons.items()
    ]


def _listed(items: list[str], most: int = 4) -> str:
    unique = list(dict.fromkeys(items))
    return "; ".join(unique[:most]) + (f"; and {len(unique) - most} more" if len(unique) > most else "")


def _recipe(report: Report) -> dict[str, Any]:
    return {
        "lead": "Every member that took part, with the source of its method.",
        "rows": [(u.role, u.name, u.settings, u.source) for u in report.used],
        "notes": report.notes,
    }


def verdict_lines(report: Report) -> tuple[str, str, list[str]]:
    """(kind, headline, lines): what a reader has to know if they read nothing else."""
    state, certificate = report.state, report.certificate
    lines = []
    if report.chosen < len(state.candidates) - 1:
        lines.append(
            f"The smallest model within the allowed drop is "
            f"{f'step {report.chosen} of {state.steps}' if report.chosen else 'the dense one'}; {state.reason}."
        )
    if certificate is None:
        why = next((n for n in report.notes if "certif" in n.lower()), "")
        return "open", "No certificate: nothing is promised about new data.", [*lines, *([why] if why else [])]
    lines += certificate_lines(certificate)
    if certificate.certified is None:
        return "no", headline(certificate), lines
    if report.chosen and certificate.certified != f"step {report.chosen}":
        return "open", headline(certificate).replace("Certified:", f"Certified for {certificate.certified}:", 1), lines
    return "yes", headline(certificate), lines


def _verdict(report: Report) -> dict[str, Any]:
    kind, head, lines = verdict_lines(report)
    return {"kind": kind, "headline": head, "lines": lines}
