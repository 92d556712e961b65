"""The inner tests of the certificate, against brute force and simulation."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, multinomial

from secateur import _betting, _exact
from secateur.certifiers import CERTIFIERS, betting, exact
from secateur.errors import CertificateError
from secateur.schema.certificate import Drops


def outcomes(n: int) -> list[tuple[int, int]]:
    return [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]


def brute_size(n: int, inside: set[tuple[int, int]], margin: float, *, fine: int = 400) -> float:
    """The largest P(inside) over a fine grid of *all* nulls, drop >= margin, not only those on the boundary."""
    worst = 0.0
    cells = np.array([(b, c, n - b - c) for b, c in sorted(inside)])
    if not len(cells):
        return 0.0
    for drop in (margin, margin + 0.02, margin + 0.1, margin + 0.3):
        if drop > 1:
            continue
        low, high = max(0.0, -drop), (1 - drop) / 2
        for gains in np.concatenate([np.linspace(low, high, fine), low + (high - low) * np.geomspace(1e-8, 1e-2, 60)]):
            p = np.clip([gains + drop, gains, 1 - 2 * gains - drop], 0, 1)
            worst = max(worst, float(multinomial.pmf(cells, n, p / p.sum()).sum()))
    return worst


def drops(values: list[float] | np.ndarray, **more: object) -> Drops:
    array = np.asarray(values, dtype=np.float64)
    return Drops(values=array, planned=more.pop("planned", len(array)), **more)  # type: ignore[arg-type]


# The exact test


@settings(max_examples=10)
@given(
    n=st.integers(1, 25), margin=st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.6]), level=st.sampled_from([0.01, 0.05, 0.3])
)
def test_the_region_keeps_its_level_over_all_nulls_by_brute_force(n: int, margin: float, level: float) -> None:
    region = _exact.region(n, margin, level)
    inside = {(b, c) for b, c in outcomes(n) if region.certifies(b, c)}
    size = brute_size(n, inside, margin)
    assert size <= level
    assert size <= region.size <= level


def test_the_region_is_as_large_as_the_order_allows() -> None:
    n, margin, level = 60, 0.05, 0.05
    region = _exact.region(n, margin, level)
    z = 1.6448536269514722
    larger = _exact._most(n, region.limit + 3e-3, z)
    inside = {(b, c) for b, c in outcomes(n) if b <= larger[c]}
    assert inside > {(b, c) for b, c in outcomes(n) if region.certifies(b, c)}
    assert brute_size(n, inside, margin) > level


@settings(max_examples=20)
@given(
    n=st.integers(2, 40),
    margin=st.floats(-0.5, 0.8),
    s=st.floats(0.0, 1.0),
    t=st.floats(-0.5, 0.9),
    width=st.floats(0.05, 0.5),
)
def test_the_bound_between_grid_points_is_above_the_probability_everywhere(
    n: int, margin: float, s: float, t: float, width: float
) -> None:
    most = _exact._most(n, t, 1.645)
    bound, _ = _exact._supremum(most, n, _exact._intervals(n, margin, width), 9.0, 0)
    gains = max(0.0, -margin) + s * (1 - abs(margin)) / 2
    assert _exact._probability(most, n, gains + margin, gains, upper=False) <= bound


def test_the_bound_between_grid_points_is_tight() -> None:
    region = _exact.region(500, 0.01, 0.05)
    line = _exact._points(500, 0.01, 3000)
    true = max(_exact._probability(region.most, 500, b, c) for b, c in line)
    assert 0.985 * region.size <= true <= region.size


@given(n=st.integers(1, 30), b=st.floats(0, 1), share=st.floats(0, 1), t=st.floats(-0.9, 0.9))
def test_probabilities_agree_with_the_multinomial(n: int, b: float, share: float, t: float) -> None:
    c = (1 - b) * share
    most = _exact._most(n, t, 1.0)
    cells = np.array([(i, j, n - i - j) for i, j in outcomes(n) if i <= most[j]]).reshape(-1, 3)
    p = np.clip([b, c, 1 - b - c], 0, 1)
    expected = float(multinomial.pmf(cells, n, p / p.sum()).sum()) if len(cells) else 0.0
    assert _exact._probability(most, n, b, c, upper=False) == pytest.approx(expected, abs=1e-9)
    assert _exact._probability(most, n, b, c) >= expected - 1e-12


@given(n=st.integers(1, 60), t=st.floats(-0.9, 0.8), more=st.floats(0, 0.2), z=st.sampled_from([0.5, 1.645, 3.0]))
def test_regions_are_nested_and_more_gains_or_fewer_losses_never_hurt(n: int, t: float, more: float, z: float) -> None:
    small, large = _exact._most(n, t, z), _exact._most(n, min(t + more, 0.99), z)
    assert (small <= large).all()
    assert (np.diff(small) >= 0).all()


def test_the_limit_covers_by_brute_force() -> None:
    n, level = 12, 0.1
    limits = {x: _exact.upper_limit(n, *x, level) for x in outcomes(n)}
    for drop in np.linspace(-0.9, 0.95, 20):
        missed = {x for x, limit in limits.items() if limit < drop}
        assert brute_size(n, missed, float(drop), fine=60) <= level


@settings(max_examples=15)
@given(n=st.integers(5, 80), b=st.integers(0, 6), c=st.integers(0, 6), margin=st.sampled_from([0.02, 0.1, 0.3]))
def test_certified_if_and_only_if_the_limit_is_within_the_margin(n: int, b: int, c: int, margin: float) -> None:
    if b + c > n:
        return
    region, limit = _exact.region(n, margin, 0.05), _exact.upper_limit(n, b, c, 0.05)
    # The limit is found to a few hundredths of a standard error, from above.
    slack = 0.1 * math.sqrt(max(b + c, 1)) / n
    if region.certifies(b, c):
        assert limit <= margin + slack
    else:
        assert limit >= margin - slack


def test_without_losses_and_gains_the_limit_is_close_to_the_rule_of_three() -> None:
    for n in (100, 1000, 3000):
        limit = _exact.upper_limit(n, 0, 0, 0.05)
        assert 1 - 0.05 ** (1 / n) <= limit <= 5 / n


def test_the_score_statistic_uses_the_maximum_of_the_likelihood_on_the_margin() -> None:
    n, b, c, t = 50, 7, 3, 0.05
    grid = np.linspace(1e-6, (1 - t) / 2 - 1e-6, 200001)
    likelihood = b * np.log(grid + t) + c * np.log(grid) + (n - b - c) * np.log(1 - t - 2 * grid)
    p = grid[likelihood.argmax()]
    expected = (b - c - n * t) / math.sqrt(n * (2 * p + t - t * t))
    found = _exact.statistic(np.array([float(b)]), np.array([float(c)]), n, t)[0]
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("n", "least"), [(2000, 0.90), (5000, 0.99)])
def test_power_at_one_point_and_two_percent_discordance(n: int, least: float) -> None:
    region = _exact.region(n, 0.01, 0.05)
    assert _exact.power(region, 0.0, 0.02) >= least
    generator = np.random.default_rng(0)
    draws = generator.multinomial(n, [0.01, 0.01, 0.98], size=4000)
    share = np.mean([region.certifies(int(b), int(c)) for b, c, _ in draws])
    assert share == pytest.approx(_exact.power(region, 0.0, 0.02), abs=0.02)


def test_the_region_for_ten_thousand_is_built_in_ten_seconds_and_a_test_takes_milliseconds() -> None:
    _exact.region.cache_clear()
    start = time.process_time()
    _exact.region(10_000, 0.01, 0.05)
    assert time.process_time() - start < 10
    values = np.zeros(10_000)
    values[:80], values[80:160] = 1, -1
    start = time.process_time()
    assert exact()(drops(values), margin=0.01, level=0.05).certified
    assert time.process_time() - start < 0.05


@pytest.mark.parametrize(("drop", "discordance"), [(0.0, 0.02), (0.0, 0.1), (0.005, 0.02), (-0.005, 0.03)])
def test_the_examples_needed_give_about_the_power_named(drop: float, discordance: float) -> None:
    n = _exact.required((discordance + drop) / 2, (discordance - drop) / 2, 0.01, 0.05, 0.8)
    assert _exact.power(_exact.region(n, 0.01, 0.05), drop, discordance) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    "bad", [drops([0.5, 0.0]), drops([1.0, 0.0], weights=np.array([1.0, 0.5])), drops([1.0, 0.0], population=2)]
)
def test_the_exact_test_refuses_what_it_is_not_made_for(bad: Drops) -> None:
    with pytest.raises(CertificateError, match="betting"):
        exact()(bad, margin=0.01, level=0.05)


def test_one_example_certifies_nothing_useful() -> None:
    for test in (exact(), betting()):
        assert not test(drops([0.0]), margin=0.1, level=0.05).certified
        assert test.limit(drops([0.0]), margin=0.1, level=0.05) > 0.1


def test_all_lost_and_all_gained() -> None:
    for test in (exact(), betting()):
        assert not test(drops(np.ones(500)), margin=0.1, level=0.05).certified
        assert test.limit(drops(np.ones(500)), margin=0.1, level=0.05) == pytest.approx(1.0, abs=1e-6)
        assert test(drops(-np.ones(500)), margin=0.1, level=0.05).certified
        assert test.limit(drops(-np.ones(500)), margin=0.1, level=0.05) < -0.5


def test_the_exact_test_equals_the_binomial_test_where_nothing_can_be_gained() -> None:
    """With c = 0 always the losses are Bin(n, margin): the region may not be larger than the binomial one."""
    n, margin, level = 400, 0.03, 0.05
    most = int(_exact.region(n, margin, level).most[0])
    assert binom.cdf(most, n, margin) <= level


# Betting


def test_capital_is_a_supermartingale_by_enumeration() -> None:
    """E[W_n] over all 3^n sequences is at most 1 at the margin and below it everywhere worse."""
    n, margin, level = 7, 0.1, 0.05
    grid = np.stack(np.meshgrid(*[np.array([1.0, 0.0, -1.0])] * n, indexing="ij"), -1).reshape(-1, n)
    stakes = _betting.bets(grid, None, margin=margin, level=level, planned=n)
    wealth = np.exp(_betting.log_wealth(grid, None, stakes, margin))
    for p_gain, drop in ((0.0, 0.1), (0.2, 0.1), (0.45, 0.1), (0.1, 0.3), (0.0, 1.0)):
        p = np.where(grid == 1, p_gain + drop, np.where(grid == -1, p_gain, 1 - 2 * p_gain - drop)).prod(-1)
        assert p.sum() == pytest.approx(1)
        for t in range(n):
            assert p @ wealth[:, t] <= 1 + 1e-9
        assert p @ (wealth.max(-1) >= 1 / level) <= level


def test_capital_without_replacement_is_a_supermartingale_by_enumeration() -> None:
    from itertools import permutations

    population = np.array([1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.5])
    mean = float(population.mean())
    orders = np.array(list(permutations(population)))
    stakes = _betting.bets(orders, None, margin=mean, level=0.2, planned=len(population))
    wealth = np.exp(_betting.log_wealth(orders, None, stakes, mean, population=len(population)))
    assert np.isfinite(wealth).all()
    assert (wealth.mean(0) <= 1 + 1e-9).all()
    assert (wealth.max(-1) >= 5).mean() <= 0.2


def test_without_replacement_the_whole_population_leaves_no_doubt() -> None:
    values = np.array([1.0] * 9 + [-1.0] * 3 + [0.0] * 988)
    everything = drops(np.random.default_rng(0).permutation(values), population=1000)
    assert betting()(everything, margin=0.0061, level=0.05).certified
    assert not betting()(everything, margin=0.0059, level=0.05).certified
    assert not betting()(everything, margin=0.006, level=0.05).certified  # the null holds its boundary
    limit = betting().limit(everything, margin=0.01, level=0.05)
    assert limit == pytest.approx(0.006, abs=1e-6)


@given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=40),
    st.floats(0, 0.9),
    st.sampled_from([None, 40]),
    st.floats(0.01, 0.5),
)
def test_capital_grows_with_the_mean_it_bets_against(
    values: list[float], margin: float, population: int | None, level: float
) -> None:
    data = np.array(values)
    stakes = _betting.bets(data, None, margin=margin, level=level, planned=40)
    before = None
    for mean in np.linspace(-0.99, 0.99, 34):
        wealth = _betting.log_wealth(data, None, stakes, float(mean), population=population)
        assert not np.isnan(wealth).any()
        if before is not None:
            assert (wealth >= before - 1e-9).all()
        before = wealth


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=60), st.floats(0.01, 0.5))
def test_bets_look_at_the_past_only(values: list[float], margin: float) -> None:
    data = np.array(values)
    changed = data.copy()
    changed[-1] = 1.0 if data[-1] < 0 else -1.0
    one, two = (_betting.bets(d, None, margin=margin, level=0.05, planned=len(d)) for d in (data, changed))
    assert (one == two).all()


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.0, 0.0, 1.0]), min_size=1, max_size=300), st.floats(0.0, 0.5))
def test_betting_certifies_if_and_only_if_its_limit_is_within_the_margin(values: list[float], margin: float) -> None:
    outcome = betting()(drops(values), margin=margin, level=0.2)
    limit = betting().limit(drops(values), margin=margin, level=0.2)
    assert outcome.certified == (limit <= margin + 1e-6) or abs(limit - margin) < 1e-5
    if outcome.certified:
        again = betting()(drops(values[: outcome.used], planned=len(values)), margin=margin, level=0.2)
        assert again.certified
        assert again.used == outcome.used
        assert outcome.evidence is not None
        assert outcome.evidence >= 5


def test_a_model_that_is_worse_is_never_certified_however_long_one_looks() -> None:
    """The published two-sided capital certified a risk of 0.20 against 0.10 here."""
    generator = np.random.default_rng(1)
    values = (generator.random(20_000) < 0.2).astype(float)
    outcome = betting()(drops(values), margin=0.1, level=0.05)
    assert not outcome.certified
    assert outcome.evidence is not None
    assert outcome.evidence < 20


def test_betting_keeps_its_level_with_weights_that_depend_on_the_drop() -> None:
    generator = np.random.default_rng(2)
    n, margin, hits, runs = 400, 0.05, 0, 600
    for _ in range(runs):
        # Heavy units lose more: the weighted drop is the margin, the plain mean is below it.
        heavy = generator.random(n) < 0.3
        weights = np.where(heavy, 1.0, 0.25)
        p = np.where(heavy, 0.05 * (0.3 + 0.7 * 0.25) / 0.3, 0.0)
        values = (generator.random(n) < p).astype(float)
        hits += betting()(drops(values, weights=weights), margin=margin, level=0.05).certified
    assert hits / runs <= 0.05 + 3.9 * math.sqrt(0.05 * 0.95 / runs)


def test_the_units_needed_by_betting_give_about_the_power_named() -> None:
    generator = np.random.default_rng(3)
    n = _betting.required(0.02, 0.01, 0.05, 0.8)
    runs = [
        betting()(drops(generator.choice([1.0, -1.0, 0.0], n, p=[0.01, 0.01, 0.98])), margin=0.01, level=0.05).certified
        for _ in range(300)
    ]
    assert np.mean(runs) == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize("name", CERTIFIERS)
def test_each_certifier_is_named_sourced_and_equal_to_itself(name: str) -> None:
    made = CERTIFIERS[name]()
    assert made.name == name
    assert made.source
    assert made == CERTIFIERS[name]()


@pytest.mark.parametrize("name", CERTIFIERS)
@pytest.mark.parametrize(("drop", "discordance"), [(0.05, 0.05), (0.05, 0.2), (0.08, 0.1)])
def test_each_certifier_keeps_its_level(name: str, drop: float, discordance: float) -> None:
    generator = np.random.default_rng(4)
    p = [(discordance + drop) / 2, (discordance - drop) / 2, 1 - discordance]
    runs = 800
    wrong = [
        CERTIFIERS[name]()(drops(generator.choice([1.0, -1.0, 0.0], 300, p=p)), margin=0.05, level=0.05).certified
        for _ in range(runs)
    ]
    assert np.mean(wrong) <= 0.05 + 3.9 * math.sqrt(0.05 * 0.95 / runs)
