"""Whether a run would be accepted, and what it would cost, is what comes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from ledgers import DELTA, ledger_at, train_charge

from fedveil.config import Config
from fedveil.privacy.accounting import AccountingError, Release, pld_epsilon
from fedveil.privacy.ledger import Snapshot
from fedveil.privacy.policy import Policy
from fedveil.privacy.report_words import rounded_up
from fedveil.server.policy_preview import preview


def policy(**rules: object) -> Policy:
    data = {"tasks": ["digits"], "epsilon": 8, "delta": DELTA, **rules}
    return Policy.model_validate({"format": "fedveil-policy-1", "datasets": {"wards": data}})


def run(rounds: int = 4, **dp: object) -> Config:
    return Config.model_validate(
        {
            "task": {"name": "digits"},
            "federation": {"rounds": rounds},
            "dp": {"noise_multiplier": 2.0, **dp},
        }
    )


def test_an_accepted_run_tells_its_cost_alone_and_with_what_is_spent(tmp_path: Path) -> None:
    kept = ledger_at(tmp_path)
    kept.charge(train_charge("wards"), None)
    found = preview(policy(), run(metrics="noisy"), kept.read())
    assert found.refused == ()
    noisy = Release(1.0, 20.0, 4)
    alone = pld_epsilon([Release(0.25, 2.0, 16), noisy], DELTA)
    total = pld_epsilon([Release(0.25, 2.0, 20), noisy], DELTA)
    assert f"4 rounds cost epsilon {rounded_up(alone)} at" in found.accepted
    assert f"makes {rounded_up(total)} of 8" in found.accepted


def test_a_run_that_the_budget_does_not_bear_tells_how_far_it_would_come() -> None:
    bears = policy(epsilon=pld_epsilon([Release(0.25, 2.0, 12)], DELTA))
    (why,) = preview(bears, run(rounds=9), Snapshot()).refused
    assert why.startswith("(budget) after 3 of 9 rounds: data set wards: the budget for all runs")


def test_every_rule_that_refuses_is_told_also_of_noise_that_is_calibrated() -> None:
    asked = run(noise_multiplier=None, target_epsilon=8.0)
    (why,) = preview(policy(min_noise_multiplier=50), asked, Snapshot()).refused
    assert why.startswith("(noise) dp.noise_multiplier = ")
    refused = preview(policy(max_rounds=1, max_local_steps=1), run(), Snapshot()).refused
    assert len(refused) == 2


def test_without_a_budget_nothing_is_promised() -> None:
    exact = Policy.model_validate(
        {
            "format": "fedveil-policy-1",
            "datasets": {"wards": {"tasks": ["digits"], "modes": ["none"]}},
        }
    )
    found = preview(exact, run(noise_multiplier=None, unit="none"), Snapshot())
    assert "no budget" in found.accepted


def test_a_target_out_of_reach_is_one_line() -> None:
    asked = run(noise_multiplier=None, target_epsilon=0.001, metrics="noisy")
    with pytest.raises(AccountingError, match="not reachable"):
        preview(policy(), asked, Snapshot())
