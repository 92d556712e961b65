"""A certificate in words."""

from __future__ import annotations

from secateur.schema.certificate import Certificate, Tested


def explain(certificate: Certificate) -> str:
    """The certificate in a paragraph that needs no statistics."""
    c = certificate
    unit = c.held_out.unit
    what = (
        f"the mean score falls by more than {_points(c.margin)}"
        if c.claim == "score"
        else f"the mean loss (clipped to {_span(c.clip)} nats) rises by more than {c.margin:g} nats"
    )
    scope = "on exactly these held-out data" if c.population else "on new data like the held-out data"
    lines = []
    chosen, failed = c.chosen, c.failed
    if chosen is not None:
        lines.append(
            f"Certified: {chosen.name!r}. The chance that this procedure names a model for which {what} {scope} "
            f"is at most {_percent(1 - c.confidence)}."
        )
        lines.append(_seen(chosen, c, unit))
        if c.bound is not None and c.bound < c.margin:
            lines.append(f"Since the whole path passed, the stronger bound {_amount(c.bound, c)} holds as surely.")
    else:
        lines.append(f"Not certifiable: for no candidate could it be ruled out that {what} {scope}.")
    if failed is not None:
        lines.append(_why(failed, c, unit))
    if c.strata is not None:
        worst = c.strata.worst
        lines.append(
            f"Of {len(c.strata.items)} classes, {worst.key!r} is the least certain for {c.strata.candidate!r}: "
            f"{_word(c)} of "
            f"{_amount(worst.drop, c)} on {worst.n} {unit}s, at most {_amount(worst.limit, c)} with confidence "
            f"{_percent(1 - c.level)} for all classes together."
        )
    if c.n_saved:
        lines.append(f"Stopping early saved {c.n_saved} evaluations.")
    if c.attempt > 1:
        lines.append(
            f"This was try {c.attempt}; it spent {_percent(c.level)} of the {_percent(1 - c.confidence)} error "
            f"probability, earlier tries {_percent(c.spent)}. The confidence above holds for all tries together."
        )
    return " ".join([*lines, *c.notes])


def _seen(t: Tested, c: Certificate, unit: str) -> str:
    counts = (
        ""
        if t.losses is None
        else f" ({t.losses} examples right for the dense model only, {t.gains} for the pruned one only)"
    )
    return (
        f"On {t.n} held-out {unit}s it went from {_level_of(t.dense, c)} to {_level_of(t.pruned, c)}; {_word(c)} of "
        f"{_amount(t.drop, c)}{counts}; with confidence {_percent(1 - c.level)} for this candidate alone "
        f"the truth is at most {_amount(t.limit, c)}."
    )


def _why(t: Tested, c: Certificate, unit: str) -> str:
    lines = (
        f"{t.name!r} was not certified: on {t.n} {unit}s it showed {_word(c)} of {_amount(t.drop, c)}, "
        f"and it could be as large as {_amount(t.limit, c)}."
    )
    if t.needed is None:
        return lines
    if t.needed.n is None:
        return f"{lines} More data would not help as things look: {t.needed.calculation}."
    return (
        f"{lines} Not certifiable with this much data: about {t.needed.more:,} more {unit}s, that is a fresh held-out "
        f"set of about {t.needed.n:,}, would certify it with probability {t.needed.power:g} if what was seen is the "
        "truth "
        f"({t.needed.calculation})."
    )


def _word(c: Certificate) -> str:
    return "a drop" if c.claim == "score" else "an increase of the loss"


def _level_of(value: float, c: Certificate) -> str:
    return f"{100 * value:.2f} %" if c.claim == "score" else f"{value:.4g} nats"


def _amount(value: float, c: Certificate) -> str:
    return _points(value) if c.claim == "score" else f"{value:.4g} nats"


def _points(value: float) -> str:
    text = f"{100 * value:.3g}"
    return f"{text} percentage point" + ("" if text == "1" else "s")


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _span(clip: tuple[float, float] | None) -> str:
    return "" if clip is None else f"[{clip[0]:g}, {clip[1]:g}]"
