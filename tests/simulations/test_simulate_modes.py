"""Runs in the modes whose noise is shared among the clients, or added by the server."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_taps import Answer, tap
from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from scipy import stats
from secure_grid import stage_of

from fedveil.client import local_training, private_updates
from fedveil.client.shared_noise import noise_shares, skellam_mechanism, training_release
from fedveil.config import parse_config
from fedveil.privacy.accounting import epsilon
from fedveil.privacy.journal import Intent, PrivacyJournal
from fedveil.secagg.parameters import Plan, plan_for
from fedveil.server.federation import RunSummary
from fedveil.settings import Tree, apply_override
from fedveil.simulations.clients import SimulatedClients
from fedveil.strategies.round_loop import RoundError
from fedveil.strategies.secure_rounds import SecureSettings

Play = Callable[..., tuple[RunSummary, Any]]
Setting = tuple[str, object]
D = 650
"""Numbers in the model of digits: 64 x 10 weights and 10 biases."""

RECORD: Tree = {
    "dp": {"unit": "record", "noise": "distributed"},
    "training": {"local_steps": 1, "learning_rate": 4.0, "nominal_records": 143},
}
CLIENT: Tree = {
    "dp": {"unit": "client", "noise": "distributed"},
    "training": {"local_steps": 10, "learning_rate": 1.5, "nominal_records": 143},
}
CENTRAL: Tree = {**CLIENT, "dp": {"unit": "client", "noise": "central"}}
ADAPTIVE: Setting = ("dp.adaptive.bit_noise", 0.5)
IN_CLEAR: Setting = ("secagg.enabled", False)
MODES = pytest.mark.parametrize(
    "mode", [RECORD, CLIENT, CENTRAL], ids=["record", "client", "central"]
)
SHARED = pytest.mark.parametrize("mode", [RECORD, CLIENT], ids=["record", "client"])


@pytest.fixture
def play(run: Callable[..., tuple[RunSummary, Any]]) -> Play:
    """Return a function that runs ten clients on digits in a mode; None resumes."""

    def played(
        mode: Tree | None,
        *settings: Setting,
        rounds: int = 1,
        noise: float | None = None,
        out: str = "run",
        stop_after: int | None = None,
        engine: str = "auto",
    ) -> tuple[RunSummary, Any]:
        if mode is None:
            return run(out=out, resume=True)
        tree: Tree = {
            "task": {"name": "digits"},
            "partition": {"scheme": "dirichlet"},
            "federation": {"clients": 10, "rounds": rounds},
            **mode,
        }
        if noise is not None:
            settings = (*settings, ("dp.noise_multiplier", noise))
        for key, value in settings:
            tree = apply_override(tree, key, value)
        return run(
            settings=parse_config(tree, "test"), out=out, stop_after=stop_after, engine=engine
        )

    return played


def intents(summary: RunSummary) -> list[Intent]:
    return [entry for entry in summary.folder.journal.entries if isinstance(entry, Intent)]


def flat(summary: RunSummary, round_: int) -> np.ndarray:
    tensors = summary.folder.store.load(round_).tensors
    return np.concatenate([np.asarray(t, np.float64).ravel() for t in tensors.values()])


@pytest.mark.parametrize(
    ("mode", "settings", "sigma", "least"),
    [
        (RECORD, [], 0.6, 0.8),
        (CLIENT, [], 0.2, 0.75),
        (CENTRAL, [], 0.2, 0.75),
        (CENTRAL, [IN_CLEAR], 0.2, 0.75),
        (CLIENT, [ADAPTIVE], 0.2, 0.75),
        (CENTRAL, [ADAPTIVE], 0.2, 0.75),
    ],
    ids=["record", "client", "central", "central-clear", "client-adaptive", "central-adaptive"],
)
def test_it_learns_and_the_journal_has_every_release(
    play: Play, mode: Tree, settings: list[Setting], sigma: float, least: float
) -> None:
    rounds = 12
    summary, watcher = play(mode, *settings, rounds=rounds, noise=sigma)
    config, records = summary.folder.config, summary.folder.records
    assert records[-1].test["accuracy"] > least > records[0].test["accuracy"]
    one = training_release(config, sigma, D)
    assert [intent.releases for intent in intents(summary)] == [(one,)] * rounds
    assert one.noise_multiplier == sigma
    assert one.count == 1
    assert one.sampling_rate == (0.25 if config.dp.unit == "record" else 1.0)
    assert (one.integers is None) == (config.dp.noise == "central")
    assert records[-1].epsilon == pytest.approx(epsilon([one] * rounds, config.dp.delta))
    assert set(summary.folder.journal.steps_by_client().values()) == {rounds}
    assert all(record.train_loss is None for record in records)
    assert not watcher.warnings
    norms = [record.clip_norm for record in records]
    if config.dp.adaptive is None:
        assert norms == [None] * rounds
    else:
        assert norms[0] == config.dp.clip_norm
        assert len(set(norms)) == rounds


@MODES
def test_a_target_is_met_and_not_passed(play: Play, mode: Tree) -> None:
    summary, watcher = play(mode, ("dp.target_epsilon", 9.0), rounds=2)
    spent = summary.folder.records[-1].epsilon
    assert spent is not None
    assert 8.9 < spent <= 9.0
    assert intents(summary)[0].releases[0].noise_multiplier == watcher.noise


@pytest.mark.parametrize(
    ("mode", "settings"),
    [(RECORD, []), (CLIENT, [ADAPTIVE]), (CENTRAL, [ADAPTIVE])],
    ids=["record", "client-adaptive", "central-adaptive"],
)
@pytest.mark.parametrize("server", ["fedavg", "fedavgm"])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(
    play: Play, mode: Tree, settings: list[Setting], server: str
) -> None:
    """With repeatable noise: the same models, and the clip norm that had adapted until then."""
    settings = [*settings, ("dp.insecure_seed", 3), ("server_optimizer.name", server)]
    whole, _ = play(mode, *settings, rounds=4, noise=0.5, out="whole")
    play(mode, *settings, rounds=4, noise=0.5, out="parts", stop_after=2)
    parts, _ = play(None, out="parts")
    norms = [record.clip_norm for record in whole.folder.records]
    assert [record.clip_norm for record in parts.folder.records] == norms
    for round_ in range(1, 5):
        np.testing.assert_array_equal(flat(parts, round_), flat(whole, round_))
    state = parts.folder.store.load_state(4).tensors
    assert ("clip_norm" in state) == (norms[0] is not None)


def claimed(summary: RunSummary) -> float:
    """Return the std of the honest noise in one step of the model, as the journal has it."""
    config, release = summary.folder.config, intents(summary)[0].releases[0]
    if release.integers is None:
        return release.noise_multiplier * config.dp.clip_norm / 10
    scale = skellam_mechanism(config, D, release.noise_multiplier).scale
    in_the_sum = release.noise_multiplier * release.integers.l2 / scale
    training = config.training
    if config.dp.unit == "client":
        return in_the_sum / 10
    assert training.nominal_records is not None
    expected = training.sampling_rate * training.nominal_records * 10
    return training.learning_rate * in_the_sum / expected


@MODES
def test_the_noise_in_the_model_has_the_variance_that_the_journal_claims(
    play: Play, mode: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody's records say anything, the model moves by noise alone."""
    monkeypatch.setattr(
        private_updates, "sum_of_clipped_gradients", lambda *_: np.zeros(D, dtype=np.float64)
    )
    monkeypatch.setattr(local_training, "train_plain", lambda *_: 0.0)
    rounds = 5
    # One client after another: a whole cohort is trained by other functions than these.
    summary, _ = play(mode, rounds=rounds, noise=0.7, engine="sequential")
    shared = summary.folder.config.dp.noise == "distributed"
    # All ten bring a share; the claim rests on those of the honest among the fewest survivors.
    more = math.sqrt(10 / noise_shares(summary.folder.config).honest) if shared else 1.0
    steps = np.concatenate([flat(summary, r + 1) - flat(summary, r) for r in range(1, rounds)])
    low, high = stats.chi2.interval(1.0 - 1e-7, len(steps))
    found = float(steps @ steps)
    # On its grid the noise is larger by up to a hundredth, for what rounding adds.
    assert low < found / (claimed(summary) * more) ** 2 < 1.03 * high
    assert not low < found / (claimed(summary) * more * 1.2) ** 2 < high
    assert not low < found / (claimed(summary) * more * 0.83) ** 2 < high


# A server that asks for too little noise -----------------------------------------------------


@SHARED
def test_attack_a_session_whose_quorum_is_below_the_survivors_that_are_claimed(
    play: Play, mode: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(self: SecureSettings, clients: int) -> Plan:
        return plan_for(clients)

    monkeypatch.setattr(SecureSettings, "plan", plan)
    with pytest.raises(RoundError, match=r"a sum of 7 clients could be unmasked.*at least 10"):
        play(mode, ("dp.min_survivors", 10), noise=1.0)


@SHARED
def test_attack_a_server_that_takes_nobody_to_collude(play: Play, mode: Tree) -> None:
    with pytest.raises(RoundError, match="this client 3"):
        play(mode, ("dp.colluding", 0), noise=1.0)


@SHARED
def test_attack_asking_in_clear_for_shares_of_the_noise(
    play: Play, mode: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the client would answer other requests in clear."""
    monkeypatch.setattr("fedveil.server.federation.secure_rounds", lambda *_: None)
    monkeypatch.setattr(SimulatedClients, "_made_up_credentials", lambda _: {})
    monkeypatch.setattr("fedveil.client.app.join", _joined)
    with pytest.raises(RoundError, match="asks in clear for a share"):
        play(mode, noise=1.0)


def _joined(message: Message, context: Context, *_: object) -> Message:
    partition = int(context.node_config["partition-id"])
    return Message(RecordDict({"join": MetricRecord({"partition": partition})}), reply_to=message)


@SHARED
def test_clients_that_drop_out_leave_a_sum_with_the_noise_whole(
    play: Play, mode: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(answer: Answer, app: ClientApp, message: Message, context: Context) -> Message:
        if stage_of(message) == "input" and message.metadata.dst_node_id in (4, 7, 9):
            return Message(Error(code=5, reason="killed"), reply_to=message)
        return answer(app, message, context)

    tap(monkeypatch, execute)
    summary, _ = play(mode, rounds=2, noise=1.0)
    assert [record.clients for record in summary.folder.records] == [7, 7]
    # One more survivor is wanted than there are: no sum at all, and the attempts are charged.
    with pytest.raises(RoundError, match="given up after 3 attempts"):
        play(mode, ("dp.min_survivors", 8), noise=1.0, out="fewer")
    journal = PrivacyJournal(tmp_path / "fewer" / "privacy.jsonl")
    assert [entry.attempt for entry in journal.entries] == [1, 2, 3]
