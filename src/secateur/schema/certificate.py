"""Certificate: the claim, the evidence, the bound; and all that is needed to derive it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from numpy import float64
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drops:
    """What a certifier sees: one number per independent unit, in the order in which it may look at them.

    Attributes:
        values: [n] in [-1, 1]: dense score minus pruned score, averaged over the unit.
        weights: [n] in [0, 1], the weight of each unit; None = all units count the same.
        planned: how many units there are in all; more than n where evaluation goes on.
        population: N, if the units are drawn without replacement from N that are all that matters; else None.
    """

    values: NDArray[float64]
    weights: NDArray[float64] | None = None
    planned: int
    population: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a certifier decided.

    Attributes:
        certified: whether "drop > margin" is rejected at the level.
        used: units that were needed for it: all, unless the test may stop early.
        evidence: e-value, the largest capital won from 1; None for a test that only decides.
    """

    certified: bool
    used: int
    evidence: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """How much data a candidate that failed would have needed, if what was observed were the truth.

    Attributes:
        n: units of one held-out set that certifies with probability `power`; None where no number would do.
        more: n minus the units of this set.
        calculation: the formula with its numbers.
    """

    n: int | None
    more: int | None
    power: float
    calculation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stratum:
    """One class or slice of the data.

    Attributes:
        key: its name.  n: units in it.  drop: observed.
        limit: upper confidence limit of the drop; all limits of a certificate hold together (`Strata.level`).
        losses, gains: discordant examples; None where scores are not 0/1.
    """

    key: str
    n: int
    drop: float
    limit: float
    losses: int | None = None
    gains: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Strata:
    """Drops per class of one candidate.

    Attributes:
        candidate: which one: the certified one, or the first if none was.
        level: error probability of each limit = delta / (strata x candidates on the path) (Bonferroni), so that all
            limits hold together whichever candidate was chosen.
        items: the strata, largest limit first: the first is the worst group.
    """

    candidate: str
    level: float
    items: tuple[Stratum, ...]

    @property
    def worst(self) -> Stratum:
        """The stratum with the largest limit."""
        return self.items[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """One candidate that was tested.

    Attributes:
        name: of the candidate.  index: on the path.
        certified: whether the drop was shown to be within the margin.
        n: independent units used.  n_saved: units that needed no evaluation.  n_examples: examples used.
        dense, pruned: mean score (or clipped loss, nats) of the two models on the units used.
        drop: observed drop (or increase of the clipped loss, nats).
        limit: its upper confidence limit at the level of the test, for this candidate alone.
        evidence: e-value of the betting test, certified from 1/level on; None for the exact test, which decides.
        losses, gains: examples right for the dense model only, for the pruned one only; None unless scores are 0/1.
        lost, gained: positions of these examples in the held-out data (`HeldOut.positions` says how they count).
        churn: share of examples whose score differs between the models; agreement is 1 - churn.
        mcnemar: exact two-sided McNemar p-value, for information: it tests equality, not the margin.
        clipped: share of dense and pruned losses that were clipped; None for scores.
        needed: where the candidate failed.
    """

    name: str
    index: int
    certified: bool
    n: int
    n_saved: int
    n_examples: int
    dense: float
    pruned: float
    drop: float
    limit: float
    evidence: float | None
    churn: float
    losses: int | None = None
    gains: int | None = None
    lost: tuple[int, ...] = ()
    gained: tuple[int, ...] = ()
    mcnemar: float | None = None
    clipped: tuple[float, float] | None = None
    needed: Needed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One candidate of the path, tested or not, as it was before held-out data was read."""

    name: str
    weights: str
    n_params: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """One other split against the held-out data.

    Attributes:
        n: its examples.  shared: held-out examples that stand in it too.
        checkable: False where its examples change at every pass, so that nothing can be said.
    """

    n: int
    shared: int
    checkable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The held-out data, as used.

    Attributes:
        fingerprint: of all examples, whatever their order.
        n_examples: in the data.  n_units: independent units after the removals.
        n_shared: dropped since they stand in another split, too.  n_duplicates: dropped since they came twice.
        checkable: False where examples change at every pass: then nothing was dropped, since nothing could be found.
        unit: `example` or `group`.
        positions: what the indices of examples count: `order of the data`, or `order of content hashes` where the
            loader shuffles.
        sketch: the smallest content hashes (16 hexadecimal digits each, at most 1,024), by which a later try on
            the same or overlapping data is recognised.
        overlaps: the other splits.
    """

    fingerprint: str
    n_examples: int
    n_units: int
    n_shared: int
    n_duplicates: int
    checkable: bool
    unit: Literal["example", "group"]
    positions: str
    sketch: tuple[str, ...]
    overlaps: tuple[Overlap, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """An earlier try of the same series: what it spent, and by what its held-out data is recognised."""

    level: float
    fingerprint: str
    sketch: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """With confidence 1 - delta over the draw of the held-out data, the certified candidate loses at most `margin`.

    Attributes:
        claim: `score`: the mean score falls by at most margin. `loss`: the mean clipped loss, nats, rises by no more.
        margin: the allowed drop or increase.  confidence: 1 - delta, over all tries in the history together.
        level: error probability spent on this try.  attempt: 1 for the first.  spent: by the tries before.
        earlier: these tries, in order, so that the last certificate of a series remembers all of it.
        certified: name of the sparsest certified candidate; None if not even the first was.
        index: its place on the path.
        bound: drop that, with confidence 1 - level, none of the certified candidates exceeds: the margin, or less
            where the whole path was certified (Hsu and Berger 1999); None without a certified candidate.
        test, settings, source: the inner test, its arguments, its reference.
        path: all candidates, dense to sparse.  tested: those tested, in order; the last one may have failed.
        dense: fingerprint of the dense model's weights.
        held_out: the data.  strata: drops per class, None where no classes were named.
        clip: bounds of the clipped loss, nats; None for scores.
        max_weight: the largest weight a unit can have; None where all units count the same.
        population: whether the held-out data was taken to be all that matters, not a sample.
        early: whether evaluation could stop early.  seed: of the order in which units were looked at.
        versions: of what computed this.  notes: what a reader has to know, in sentences.
    """

    claim: Literal["score", "loss"]
    margin: float
    confidence: float
    level: float
    attempt: int
    spent: float
    certified: str | None
    index: int | None
    bound: float | None
    test: str
    settings: str
    source: str
    path: tuple[Entry, ...]
    tested: tuple[Tested, ...]
    dense: str
    held_out: HeldOut
    task: str
    strata: Strata | None = None
    clip: tuple[float, float] | None = None
    max_weight: float | None = None
    earlier: tuple[Try, ...] = ()
    population: bool = False
    early: bool = False
    duplicates: Literal["refuse", "merge", "keep"] = "refuse"
    seed: int = 0
    versions: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def n_saved(self) -> int:
        """Evaluations of units saved by stopping early, over all candidates tested."""
        return sum(t.n_saved for t in self.tested)

    @property
    def failed(self) -> Tested | None:
        """The candidate at which the path stopped; None where all were certified."""
        return next((t for t in self.tested if not t.certified), None)

    @property
    def chosen(self) -> Tested | None:
        """The sparsest certified candidate."""
        return None if self.index is None else next(t for t in self.tested if t.index == self.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was derived again: what, whether it agrees, and what was found."""

    name: str
    holds: bool
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateCheck:
    """The outcome of deriving a certificate again."""

    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Whether everything agrees."""
        return all(c.holds for c in self.checks)


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapInterval:
    """An interval for the drop of a corpus metric (F1, mAP, BLEU). Not a certificate: right only as n grows.

    Attributes:
        metric: its name.  name: of the candidate.
        dense, pruned: the metric on all held-out units.  drop: dense minus pruned.
        low, high: percentiles of the drop over paired resamples of whole units.
        confidence: nominal, of the two-sided interval.  resamples, n_units, seed: how it was made.
    """

    metric: str
    name: str
    dense: float
    pruned: float
    drop: float
    low: float
    high: float
    confidence: float
    resamples: int
    n_units: int
    seed: int
