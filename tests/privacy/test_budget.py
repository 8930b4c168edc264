"""What a ledger comes to, by data set and by run; and its plot."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from ledgers import DELTA, ledger_at, train_charge

from fedveil.privacy.accounting import Release, pld_epsilon, rdp_epsilon
from fedveil.privacy.budget import spend_plot, view_of
from fedveil.privacy.ledger import Snapshot
from fedveil.privacy.ledger_entries import Charge
from fedveil.privacy.policy import Policy

POLICY = Policy.model_validate(
    {
        "format": "fedveil-policy-1",
        "datasets": {
            "wards": {"tasks": ["a"], "epsilon": 8, "delta": DELTA, "epsilon_per_run": 3},
            "unused": {"tasks": ["b"], "epsilon": 1, "delta": 1e-6},
        },
    }
)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    kept = ledger_at(tmp_path_factory.mktemp("ledger"))
    for charge in (
        train_charge("wards", "1"),
        train_charge("wards", "1", 2),
        train_charge("wards", "2"),
        train_charge("old", "1"),
    ):
        kept.charge(charge, None)
    return kept.read()


def test_every_figure_is_computed_from_the_entries(snapshot: Snapshot) -> None:
    view = view_of(snapshot, POLICY, None)
    wards, unused, old = view.datasets
    assert (wards.dataset, unused.dataset, old.dataset) == ("wards", "unused", "old")
    whole = [Release(0.25, 2.0, 12)]
    assert (wards.budget, wards.budget_per_run, wards.delta) == (8, 3, DELTA)
    assert wards.epsilon == pytest.approx(pld_epsilon(whole, DELTA), abs=1e-9)
    assert wards.epsilon_rdp == pytest.approx(rdp_epsilon(whole, DELTA), abs=1e-9)
    assert [(r.run, r.charges, r.epsilon) for r in wards.runs] == [
        ("1", 2, pytest.approx(pld_epsilon([Release(0.25, 2.0, 8)], DELTA), abs=1e-9)),
        ("2", 1, pytest.approx(pld_epsilon([Release(0.25, 2.0, 4)], DELTA), abs=1e-9)),
    ]
    assert (unused.charges, unused.epsilon) == (0, 0.0)
    # No delta, no epsilon: it is not made up.
    assert (old.delta, old.epsilon, old.charges) == (None, None, 1)
    assert view_of(snapshot, None, 1e-6).datasets[1].epsilon == pytest.approx(
        pld_epsilon([Release(0.25, 2.0, 4)], 1e-6), abs=1e-9
    )
    number, hash_ = view.head.split(":")
    assert (int(number), bytes.fromhex(hash_)) == (4, snapshot.hashes[-1])


def test_an_exact_release_has_no_epsilon(tmp_path: Path) -> None:
    kept = ledger_at(tmp_path)
    exact = {"unit": "none", "neighbours": "none", "releases": ()}
    kept.charge(Charge.model_validate({**train_charge("wards").model_dump(), **exact}), None)
    (wards, _) = view_of(kept.read(), POLICY, None).datasets
    assert (wards.exact, wards.epsilon, wards.runs[0].epsilon) == (True, None, None)
    ET.fromstring(spend_plot(kept.read(), view_of(kept.read(), POLICY, None)))  # noqa: S314  # ours


def test_the_plot_is_svg_and_follows_the_spend(snapshot: Snapshot) -> None:
    view = view_of(snapshot, POLICY, None)
    first = spend_plot(snapshot, view)
    assert ET.fromstring(first).tag.endswith("svg")  # noqa: S314  # made here
    assert spend_plot(snapshot, view) == first
    earlier = Snapshot(
        snapshot.name, snapshot.entries[:2], snapshot.bodies[:2], snapshot.hashes[:3], True
    )
    assert spend_plot(earlier, view_of(earlier, POLICY, None)) != first


def test_an_epsilon_too_large_for_a_distribution_is_the_one_of_renyi(tmp_path: Path) -> None:
    kept = ledger_at(tmp_path)
    kept.charge(train_charge("wards", release=Release(1.0, 0.1, 10**6)), None)
    (wards, _) = view_of(kept.read(), POLICY, None).datasets
    assert wards.epsilon == wards.epsilon_rdp
    assert math.isfinite(wards.epsilon or math.inf)
