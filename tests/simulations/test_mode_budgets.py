"""In each mode a data owner's budget holds: who has none left refuses, and the others go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from ledgers import DELTA
from mode_runs import MODES, NOISE, ROUNDS, Listener, run_in, settings_of

from fedveil.client.shared_noise import training_release
from fedveil.config import Config
from fedveil.errors import FedveilError
from fedveil.privacy.accounting import Release, compose, epsilon
from fedveil.privacy.ledger import Ledger
from fedveil.privacy.ledger_entries import Charge
from fedveil.server.federation import prepare
from fedveil.server.preflight import model_dimension

BEARS = 4
"""Rounds that the budget bears."""


def release_of(config: Config) -> Release:
    prepared, task = prepare(config, None)
    return training_release(prepared, NOISE, model_dimension(task))


def policy_in(folder: Path, config: Config) -> Path:
    whole = [release_of(config)] * BEARS
    path = folder / "policy.toml"
    path.write_text(
        f'format = "fedveil-policy-1"\n[datasets.wards]\ntasks = ["digits"]\n'
        f'modes = ["{config.dp.mode}"]\nepsilon = {epsilon(whole, DELTA)!r}\ndelta = {DELTA!r}\n'
    )
    path.chmod(0o600)
    return path


def ledger_of(ledgers: Path, client: int) -> Ledger:
    return Ledger(ledgers / f"client-{client}.db", ledgers / "heads")


def spent_before(ledgers: Path, client: int, config: Config, rounds: int) -> None:
    """Let a client have taken part in another run, of so many rounds."""
    for round_ in range(1, rounds + 1):
        charge = Charge(
            dataset="wards",
            task="digits",
            run="another",
            round=round_,
            attempt=1,
            purpose="train",
            unit="record" if config.dp.unit == "record" else "client",
            neighbours="add-or-remove-one",
            releases=(release_of(config),),
        )
        ledger_of(ledgers, client).charge(charge, None)


def charged(ledgers: Path, client: int) -> tuple[Release, ...]:
    entries = ledger_of(ledgers, client).read().entries
    return compose(release for entry in entries for release in entry.releases)


@pytest.mark.parametrize("mode", MODES)
def test_a_client_whose_ledger_lacks_budget_refuses_and_the_run_says_so_and_finishes(
    tmp_path: Path, mode: str
) -> None:
    config, ledgers, listener = settings_of(mode), tmp_path / "ledgers", Listener()
    spent_before(ledgers, 3, config, BEARS - 1)
    summary = run_in(
        config, tmp_path / "run", listener, policy=policy_in(tmp_path, config), ledgers=ledgers
    )
    assert summary.finished
    found = [(record.clients, record.failed) for record in summary.folder.records]
    assert found == [(5, 0), (4, 1), (4, 1)]
    told = [text for text in listener.warnings if "client-3 is left out" in text]
    assert [text.split(":")[0] for text in told] == ["round 2", "round 3"]
    for text in told:
        assert "refused by the data owner's policy (budget)" in text
        assert "wards" not in text
    # The client's own account is the coordinator's, to the last bit.
    one = release_of(config)
    assert charged(ledgers, 3) == compose([one] * BEARS)
    assert charged(ledgers, 0) == compose([one] * ROUNDS)
    report = {c.client: c.releases for c in summary.report.clients}
    assert report["client-0"] == charged(ledgers, 0)


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_that_the_owner_does_not_list_is_refused_before_any_charge(
    tmp_path: Path, mode: str
) -> None:
    other = "client/distributed" if mode.startswith("record/") else "record/local"
    policy = policy_in(tmp_path, settings_of(other))
    with pytest.raises(FedveilError, match=rf"mode {mode} is not allowed"):
        run_in(settings_of(mode), tmp_path / "run", Listener(), policy=policy)
    assert not list(tmp_path.glob("run/ledgers/*.db"))
