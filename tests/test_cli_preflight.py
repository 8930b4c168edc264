"""`fedveil preflight` as a user types it: ticks, refusals, exit codes."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner, Result

from fedveil.cli import app
from fedveil.privacy.accounting import Release
from fedveil.privacy.preflight import PreflightError
from fedveil.server import preflight as server_preflight
from fedveil.server.federation import prepare
from fedveil.server.preflight import settings_checks
from fedveil.simulations.scenarios import find_scenario


def preflight(*arguments: str) -> Result:
    # A fixed noise: to calibrate it takes longer than all checks.
    few = ["--set", "dp.noise_multiplier=5", "--set", "federation.clients=3"]
    return CliRunner().invoke(app, ["preflight", "digits", *few, *arguments])


def test_a_sound_scenario_gets_a_tick_a_check() -> None:
    done = preflight()
    assert done.exit_code == 0, done.output
    assert done.output.count("✓") == 15
    assert "✗" not in done.output
    for section in ("Checked in every round", "Assumed", "Not covered"):
        assert section in done.output


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("dp.delta=0.1", "must be below 1/479"),
        ("dp.insecure_seed=1", "claims nothing"),
        ("dp.target_epsilon=0.0001", "not reachable"),
        ("training.optimizer=nope", 'training.optimizer = "nope" is unknown'),
    ],
)
def test_a_refusal_is_one_line_and_the_exit_code(setting: str, says: str) -> None:
    done = preflight("--set", setting)
    assert done.exit_code == 1
    refusals = [line for line in done.output.splitlines() if "✗" in line]
    assert len(refusals) == 1
    assert says in refusals[0]


def test_metrics_in_clear_are_told_and_not_called_checked() -> None:
    done = preflight("--set", "dp.metrics=clear", "--json")
    found = json.loads(done.stdout)
    assert found["passed"] is True
    assert "exact metrics on private test records" in found["warnings"][0]
    assert any("released exactly" in line for line in found["not_covered"])


def test_without_privacy_nothing_is_claimed() -> None:
    found = json.loads(preflight("--set", "dp.unit=none", "--json").stdout)
    assert (found["passed"], found["noise"], found["assumptions"]) == (True, None, [])
    assert "no privacy is claimed" in found["warnings"][0]


def test_a_noise_that_does_not_fit_the_delta_is_refused_before_a_run() -> None:
    config, task = prepare(find_scenario("digits").config([("dp.target_epsilon", 2.0)]), None)
    for noise, passes in ((50.0, True), (1.0, False)):
        checks = settings_checks(config, task, noise, rounds=20)
        refused = []
        for check in checks:
            try:
                check.run()
            except PreflightError as error:
                refused.append(str(error))
        assert refused == [] if passes else "dp.target_epsilon = 2" in refused[0]


def in_mode(mode: str, *arguments: str) -> Result:
    fixed = ["--set", "dp.noise_multiplier=5", "--set", "federation.clients=4"]
    return CliRunner().invoke(app, ["preflight", "--mode", mode, *fixed, *arguments])


@pytest.mark.parametrize(
    ("mode", "checks"),
    [("record/distributed", 17), ("client/distributed", 13), ("client/central", 10)],
)
def test_each_mode_gets_its_ticks(mode: str, checks: int) -> None:
    done = in_mode(mode)
    assert done.exit_code == 0, done.output
    assert done.output.count("\u2713") == checks
    assert "\u2717" not in done.output
    assert ("the server is trusted to add the noise" in done.output) == (mode == "client/central")


@pytest.mark.parametrize(
    ("mode", "setting", "says"),
    [
        ("record/distributed", "dp.delta=0.001", "1436 records of all clients"),
        ("client/distributed", "dp.delta=0.25", "for 4 clients: it must be below 1/4"),
        ("client/central", "dp.delta=0.25", "for 4 clients: it must be below 1/4"),
        ("record/distributed", "secagg.ring_bits=16", "does not fit into 16 bits"),
        ("client/central", "dp.adaptive.bit_noise=2.6", ""),
        ("client/distributed", "dp.adaptive.bit_noise=2.6", "leaves too little of the budget"),
        ("record/distributed", "dp.target_epsilon=0.0001", "not reachable"),
        ("client/central", "dp.insecure_seed=1", "claims nothing"),
    ],
)
def test_each_mode_refuses_what_would_make_its_claim_false(
    mode: str, setting: str, says: str
) -> None:
    done = in_mode(mode, "--set", setting)
    refusals = [line for line in done.output.splitlines() if "\u2717" in line]
    if not says:
        assert (done.exit_code, refusals) == (0, [])
        return
    assert done.exit_code == 1
    assert any(says in line for line in refusals), done.output


def test_shares_that_nobody_honest_brings_are_one_line() -> None:
    done = in_mode("client/distributed", "--set", "dp.colluding=3")
    assert done.exit_code != 0
    assert "dp.min_survivors = 3 must be more than dp.colluding = 3" in str(done.exception)


def test_a_mode_that_is_none_is_one_line() -> None:
    done = CliRunner().invoke(app, ["preflight", "--mode", "client/local"])
    assert done.exit_code != 0
    assert "there is no mode 'client/local'" in str(done.exception)


def test_the_sampling_of_clients_amplifies_nothing_in_a_client_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, task = prepare(find_scenario("digits").config([], "client/central"), None)
    sampled = Release(config.training.sampling_rate, 5.0, 1)
    monkeypatch.setattr(server_preflight, "round_releases", lambda *_: (sampled,))
    (check,) = (
        check
        for check in settings_checks(config, task, 5.0, rounds=1)
        if "sampling of clients" in check.title
    )
    with pytest.raises(PreflightError, match="the sampling of clients must not be counted"):
        check.run()
