"""A run among data owners who hold budgets: who refuses is left out, and the others go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ledgers import DELTA, train_charge

from fedveil.client.guard import Guard
from fedveil.errors import FedveilError
from fedveil.privacy.accounting import Release, compose, pld_epsilon
from fedveil.privacy.ledger import Ledger
from fedveil.server.federation import RunSummary
from fedveil.simulations.scenarios import find_scenario
from fedveil.simulations.simulate import simulate

STEPS, NOISE = 2, 2.0
ROUND = Release(0.25, NOISE, STEPS)
SETTINGS = {
    "federation.clients": 5,
    "federation.rounds": 3,
    "training.local_steps": STEPS,
    "training.sampling_rate": ROUND.sampling_rate,
    "dp.noise_multiplier": NOISE,
}
BEARS = 4
"""Rounds of `ROUND` that the budget bears."""


class Listener:
    """Keeps the warnings of a run, and may wish it to stop."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.warnings: list[str] = []
        self.rounds = 0
        self._stop_after = stop_after

    def started(self, *_: object) -> None: ...

    def reply(self, *_: object) -> None: ...

    def round_done(self, *_: object) -> None:
        self.rounds += 1

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def should_stop(self) -> bool:
        return self.rounds == self._stop_after


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    epsilon = pld_epsilon([Release(ROUND.sampling_rate, NOISE, BEARS * STEPS)], DELTA)
    path = tmp_path / "policy.toml"
    path.write_text(
        f'format = "fedveil-policy-1"\nsecure_aggregation = false\n[datasets.wards]\n'
        f'tasks = ["digits"]\nepsilon = {epsilon!r}\ndelta = {DELTA!r}\n'
    )
    path.chmod(0o600)
    return path


def spent_before(ledgers: Path, client: int, rounds: int) -> None:
    """Let a client have taken part in another run, of so many rounds."""
    ledger = Ledger(ledgers / f"client-{client}.db", ledgers / "heads")
    for round_ in range(1, rounds + 1):
        ledger.charge(train_charge("wards", run="another", round_=round_, release=ROUND), None)


def charged(ledgers: Path, client: int, run: str | None = None) -> tuple[Release, ...]:
    entries = Ledger(ledgers / f"client-{client}.db", ledgers / "heads").read().entries
    return compose(r for e in entries if run in (None, e.run) for r in e.releases)


def run(
    out: Path, policy: Path | None, ledgers: Path | None, **changes: object
) -> tuple[RunSummary, Listener]:
    listener = Listener()
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    config = find_scenario("digits").config({**SETTINGS, **dotted}.items())
    return simulate(config, out, listener, policy=policy, ledgers=ledgers), listener


def of_clients(summary: RunSummary) -> list[tuple[int, int]]:
    return [(record.clients, record.failed) for record in summary.folder.records]


@pytest.mark.parametrize("secagg", [True, False])
def test_a_client_whose_budget_ends_is_left_out_and_the_run_says_so_and_goes_on(
    tmp_path: Path, policy: Path, secagg: bool
) -> None:
    ledgers = tmp_path / "ledgers"
    spent_before(ledgers, client=3, rounds=BEARS - 1)
    summary, listener = run(tmp_path / "run", policy, ledgers, secagg__enabled=secagg)
    assert summary.finished
    assert of_clients(summary) == [(5, 0), (4, 1), (4, 1)]
    told = [text for text in listener.warnings if "client-3 is left out" in text]
    assert [text.split(":")[0] for text in told] == ["round 2", "round 3"]
    for text in told:
        assert "refused by the data owner's policy (budget)" in text
        assert "wards" not in text
    assert charged(ledgers, 3) == (Release(0.25, NOISE, BEARS * STEPS),)
    assert charged(ledgers, 0) == (Release(0.25, NOISE, 3 * STEPS),)


def test_a_client_with_nothing_left_is_left_out_from_the_start(
    tmp_path: Path, policy: Path
) -> None:
    ledgers = tmp_path / "ledgers"
    spent_before(ledgers, client=3, rounds=BEARS)
    summary, listener = run(tmp_path / "run", policy, ledgers)
    assert of_clients(summary) == [(4, 0)] * 3
    (told,) = listener.warnings
    assert "is left out: refused by the data owner's policy (budget)" in told
    assert charged(ledgers, 3, run=str(tmp_path / "run")) == ()


def test_a_budget_is_held_over_runs_and_a_run_that_nobody_bears_ends_in_one_line(
    tmp_path: Path, policy: Path
) -> None:
    ledgers = tmp_path / "ledgers"
    first, _ = run(tmp_path / "first", policy, ledgers)
    assert of_clients(first) == [(5, 0)] * 3
    second, listener = run(tmp_path / "second", policy, ledgers, federation__rounds=1)
    assert of_clients(second) == [(5, 0)]
    assert not listener.warnings
    with pytest.raises(FedveilError, match=r"0 of 5 connected .* policy \(budget\)"):
        run(tmp_path / "third", policy, ledgers)
    # Where the noise is calibrated only later, the refusal comes in the round, and says why, too.
    with pytest.raises(FedveilError, match=r"round 1: .* policy \(budget\): .* given up after"):
        run(
            tmp_path / "fourth",
            _wider(policy),
            ledgers,
            dp__target_epsilon=8.0,
            dp__noise_multiplier=None,
            federation__rounds=1,
            secagg__retries=0,
        )
    assert {charged(ledgers, client) for client in range(5)} == {(Release(0.25, NOISE, 8),)}


def _wider(policy: Path) -> Path:
    """Return a policy that has a little left, less than one round costs."""
    wider = policy.with_name("wider.toml")
    lines = policy.read_text().splitlines()
    epsilon = float(next(line for line in lines if line.startswith("epsilon")).split("=")[1])
    wider.write_text(policy.read_text().replace(f"{epsilon!r}", f"{epsilon + 1e-4!r}"))
    wider.chmod(0o600)
    return wider


def test_the_ledgers_say_what_the_servers_journal_says(tmp_path: Path, policy: Path) -> None:
    """Noisy figures of the clients included."""
    ledgers = tmp_path / "run" / "ledgers"
    summary, _ = run(tmp_path / "run", policy, None, federation__rounds=2, dp__metrics="noisy")
    for index, client in enumerate(summary.report.clients):
        assert charged(ledgers, index) == client.releases
    entries = Ledger(ledgers / "client-0.db", ledgers / "heads").read().entries
    assert [(e.round, e.purpose) for e in entries] == [
        *((1, "train"), (1, "evaluate"), (2, "train"), (2, "evaluate")),
    ]


def test_a_resumed_run_remembers_policy_and_ledgers(tmp_path: Path, policy: Path) -> None:
    ledgers = tmp_path / "ledgers"
    spent_before(ledgers, client=3, rounds=BEARS - 2)
    config = find_scenario("digits").config(SETTINGS.items())
    halted = Listener(stop_after=1)
    simulate(
        config,
        tmp_path / "run",
        halted,
        policy=policy,
        ledgers=ledgers,
        should_stop=halted.should_stop,
    )
    policy.unlink()
    summary = simulate(None, tmp_path / "run", Listener())
    assert of_clients(summary) == [(5, 0), (5, 0), (4, 1)]
    assert (tmp_path / "run" / "ledgers").resolve() == ledgers


def test_a_round_that_is_tried_again_is_charged_again(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of five clients refuse once they have paid: too few are left, and all pay anew."""
    original, calls = Guard.charge, iter(range(100))

    def charge(self: Guard, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        if next(calls) in (0, 1, 2):
            raise FedveilError("a defect after the charge")

    monkeypatch.setattr(Guard, "charge", charge)
    ledgers = tmp_path / "run" / "ledgers"
    summary, _ = run(tmp_path / "run", policy, None, federation__rounds=1)
    assert [record.attempt for record in summary.folder.records] == [2]
    assert charged(ledgers, 4) == (Release(0.25, NOISE, 2 * STEPS),)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["clients"][4]["steps"] == 2 * STEPS


def test_a_policy_that_refuses_the_settings_ends_the_run_before_it_begins(
    tmp_path: Path, policy: Path
) -> None:
    with pytest.raises(FedveilError, match=r"0 of 5 .* policy \(mode\): no privacy is not allowed"):
        run(tmp_path / "run", policy, None, dp__unit="none")
    assert not (tmp_path / "run").exists()
    with pytest.raises(FedveilError, match="ledgers are kept under a policy"):
        run(tmp_path / "run", None, tmp_path / "ledgers")


def test_without_a_policy_nothing_is_kept(tmp_path: Path) -> None:
    summary, _ = run(tmp_path / "run", None, None, federation__rounds=1)
    assert not {"policy.toml", "ledgers"} & {path.name for path in summary.folder.path.iterdir()}
