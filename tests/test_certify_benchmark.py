"""The simulation of the certificate judges what the library does, not something like it."""

from __future__ import annotations

import numpy as np
import pytest

import certificate
from secateur.certifiers import betting, exact
from secateur.schema.certificate import Drops


def test_the_simulated_tests_are_those_of_the_library() -> None:
    rng = np.random.default_rng(0)
    for drop, discordance in ((0.01, 0.02), (0.0, 0.02), (-0.01, 0.05)):
        drops = certificate.trinomial(rng, 40, 600, drop, discordance)
        used = certificate.bet(drops)
        counts = certificate.exactly((drops == 1).sum(-1), (drops == -1).sum(-1), 600)
        for row, stop, decided in zip(drops, used, counts, strict=True):
            given = Drops(values=row, planned=600)
            outcome = betting()(given, margin=certificate.ALPHA, level=certificate.DELTA)
            assert (stop > 0) == outcome.certified
            assert stop in (0, outcome.used)
            assert decided == exact()(given, margin=certificate.ALPHA, level=certificate.DELTA).certified


def test_draws_have_the_drop_and_the_discordance_named() -> None:
    drops = certificate.trinomial(np.random.default_rng(1), 200, 5000, 0.01, 0.05)
    assert drops.mean() == pytest.approx(0.01, abs=0.001)
    assert np.abs(drops).mean() == pytest.approx(0.05, abs=0.001)


def test_the_bar_is_that_of_the_issue() -> None:
    cell = certificate.Cell(kind="", test="", n=1, drop=0.01, discordance=0.02, runs=2000, wrong=138)
    assert cell.bar == pytest.approx(0.069, abs=5e-4)
    assert cell.rate == 0.069


def test_random_splits_count_certificates_that_the_rest_belies() -> None:
    rng = np.random.default_rng(2)
    dense = (rng.random(3000) < 0.9).astype(np.int64)
    good, bad = dense.copy(), np.where(rng.random(3000) < 0.2, 0, dense)
    made = list(
        certificate.random_splits("x", dense, np.stack([good, bad]), n_held_out=500, margin=0.05, splits=20, seed=0)
    )
    assert [(s.test, s.certified, s.wrong_on_rest, s.mean_index) for s in made] == [
        ("exact", 20, 0, 1.0),
        ("betting", 20, 0, 1.0),
    ]


def test_one_family_of_cells_stays_under_its_bar() -> None:
    cells = list(certificate.populations(np.random.default_rng(3), 300, True))
    assert cells
    assert all(c.rate <= c.bar for c in cells)
