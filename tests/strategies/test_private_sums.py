"""Sums of the privacy modes through the round loop: masked, in clear, with liars and drop-outs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from secure_grid import ListeningGrid, Lost, credentials, nodes, secure_mod

from fedveil.config import ServerOptimizerConfig
from fedveil.envelope import WITHIN
from fedveil.privacy.accounting import Release
from fedveil.privacy.journal import Done, Intent, PrivacyJournal
from fedveil.strategies.factory import make_strategy
from fedveil.strategies.private_sums import Total, flat_difference, moved
from fedveil.strategies.round_loop import RoundError, RoundOutcome, RoundPlan, run_rounds
from fedveil.strategies.secure_rounds import SecureRounds, SecureSettings

CLIENTS = 5
MODEL = ArrayRecord(
    {
        "w": Array(np.ones((2, 2), np.float32)),
        "frozen": Array(np.ones(3, np.float32)),
        "n": Array(np.asarray(7, np.int64)),
    }
)
RELEASE = Release(1.0, 0.5, 1)


class Rule:
    """Divides by the planned cohort and adds no noise: for what happens around it."""

    def __init__(self, integers: int | None = None, clip_norm: float | None = None) -> None:
        self.integers = integers
        self.clip_norm = clip_norm
        self.largest_norm = 2.0
        self.trainable = frozenset({"w"})
        self.totals: list[Total] = []

    def step(self, turn: tuple[int, int], total: Total) -> NDArray[np.float64]:
        self.totals.append(total)
        if self.clip_norm is not None:
            self.clip_norm *= 2.0
        return total.values[:7] / CLIENTS

    def state(self) -> dict[str, NDArray[np.generic]]:
        return {}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None: ...


def play(
    tmp_path: Path,
    rule: Rule,
    answers: Mapping[int, tuple[float, dict[str, object]]] | None = None,
    *,
    secure: bool = True,
    rounds: int = 1,
    lost: Lost = lambda *_: False,
    seen: list[dict[str, object]] | None = None,
) -> tuple[list[RoundOutcome], PrivacyJournal, SecureRounds | None]:
    """Let client i move every coordinate by i + 1, unless `answers` says by what and with what."""
    app = ClientApp(mods=[secure_mod(credentials(CLIENTS))] if secure else [])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        me = int(context.node_config["partition-id"])
        size, more = (answers or {}).get(me, (0.1 * (me + 1), {}))
        if seen is not None:
            seen.append(dict(message.content.config_records["config"]))
        if rule.integers is None:
            arrays = {n: a.numpy() for n, a in message.content.array_records["arrays"].items()}
            arrays["w"] = arrays["w"] + np.float32(size)
        else:
            arrays = {"integers": np.full(rule.integers, round(10 * size), np.int64)}
        record = ArrayRecord({name: Array(np.asarray(v)) for name, v in arrays.items()})
        metrics = MetricRecord({"weight": 1.0, "steps": 1, **more})  # type: ignore[dict-item]
        return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)

    grid = ListeningGrid(app, nodes(CLIENTS), lost)
    sums = SecureRounds(grid, SecureSettings("run", 2.0, 1.0)) if secure else None
    journal = PrivacyJournal(tmp_path / "privacy.jsonl")
    plan = RoundPlan(ConfigRecord(), (RELEASE,), 1.0, 2, 60.0, seed=0, secure=sums, summing=rule)
    strategy = make_strategy(ServerOptimizerConfig())
    known = {f"client-{i}": 2 + i for i in range(CLIENTS)}
    outcomes = list(
        run_rounds(grid, strategy, MODEL, plan, journal, range(1, rounds + 1), lambda: known)
    )
    return outcomes, journal, sums


@pytest.mark.parametrize("secure", [True, False])
def test_updates_are_summed_with_a_fixed_denominator_and_move_the_trainable_alone(
    tmp_path: Path, secure: bool
) -> None:
    (outcome,), journal, _ = play(tmp_path, rule := Rule(), secure=secure)
    after = outcome.arrays
    np.testing.assert_allclose(after["w"].numpy(), 1.3, atol=1e-6)
    np.testing.assert_array_equal(after["frozen"].numpy(), np.ones(3))
    assert after["n"].numpy() == 7
    assert rule.totals[0].clients == CLIENTS
    # Two norms of a coordinate's word over 2^-27 or so of the clip norm.
    assert (rule.totals[0].rounding > 0.0) == secure
    assert rule.totals[0].rounding < 1e-6
    intent, done = journal.entries
    assert isinstance(intent, Intent)
    assert intent.releases == (RELEASE,)
    assert isinstance(done, Done)
    assert set(done.steps.values()) == {1}
    assert outcome.train_loss is None
    assert outcome.clipped == 0


def test_integers_come_as_they_are(tmp_path: Path) -> None:
    (outcome,), _, _ = play(tmp_path, rule := Rule(integers=8))
    np.testing.assert_array_equal(rule.totals[0].values, np.full(8, 1 + 2 + 3 + 4 + 5))
    np.testing.assert_allclose(outcome.arrays["w"].numpy(), 1.0 + 15 / 5)


def test_a_dropped_client_counts_as_nothing_and_not_in_the_denominator(tmp_path: Path) -> None:
    lost = lambda stage, client, _: stage == "input" and client == 4  # noqa: E731
    (outcome,), _, _ = play(tmp_path, Rule(), lost=lost)
    np.testing.assert_allclose(outcome.arrays["w"].numpy(), 1.2, atol=1e-6)
    assert outcome.clients == ("client-0", "client-1", "client-2", "client-3")


def test_in_clear_the_server_holds_a_liar_to_the_clip_norm(tmp_path: Path) -> None:
    (outcome,), _, _ = play(tmp_path, rule := Rule(), {2: (1e6, {})}, secure=False)
    others = 0.1 * (1 + 2 + 4 + 5)
    np.testing.assert_allclose(rule.totals[0].values[:4], others + 2.0 / 2.0, atol=1e-3)
    assert np.isfinite(outcome.arrays["w"].numpy()).all()


@pytest.mark.parametrize("secure", [True, False])
def test_an_update_that_is_no_number_never_gets_into_the_sum(tmp_path: Path, secure: bool) -> None:
    (outcome,), _, _ = play(tmp_path, Rule(), {1: (float("nan"), {})}, secure=secure)
    np.testing.assert_allclose(outcome.arrays["w"].numpy(), 1.0 + 0.1 * 13 / 5, atol=1e-6)
    assert "client-1" in outcome.failures


@pytest.mark.parametrize("secure", [True, False])
def test_the_bits_are_counted(tmp_path: Path, secure: bool) -> None:
    bits = {i: (0.1, {WITHIN: float(i < 3)}) for i in range(CLIENTS)}
    _, _, _ = play(tmp_path, rule := Rule(clip_norm=1.0), bits, secure=secure)
    assert rule.totals[0].within == 3.0


@pytest.mark.parametrize("said", [1e9, -1e9])
def test_a_liars_bit_is_worth_no_more_than_all_bits(tmp_path: Path, said: float) -> None:
    bits = {i: (0.1, {WITHIN: said if i == 0 else 0.5}) for i in range(CLIENTS)}
    play(tmp_path, rule := Rule(clip_norm=1.0), bits)
    assert rule.totals[0].within in (0.0, 5.0)


def test_the_rounds_clip_norm_travels_with_the_request_and_is_told(tmp_path: Path) -> None:
    seen: list[dict[str, object]] = []
    outcomes, _, _ = play(tmp_path, Rule(clip_norm=1.0), rounds=3, seen=seen)
    assert [outcome.clip_norm for outcome in outcomes] == [1.0, 2.0, 4.0]
    assert sorted({float(str(one["clip_norm"])) for one in seen}) == [1.0, 2.0, 4.0]
    seen.clear()
    (tmp_path / "privacy.jsonl").unlink()
    outcomes, _, _ = play(tmp_path, Rule(), seen=seen)
    assert outcomes[0].clip_norm is None
    assert "clip_norm" not in seen[0]


def test_a_client_that_says_that_it_released_more_stops_the_round(tmp_path: Path) -> None:
    with pytest.raises(RoundError, match="the round is not used"):
        play(tmp_path, Rule(integers=8), {0: (0.1, {"steps": 6})})


def test_a_step_moves_the_trainable_arrays_in_the_models_order() -> None:
    step = np.arange(7.0)
    after = moved(MODEL, step, frozenset({"w"}))
    np.testing.assert_array_equal(after["w"].numpy(), 1.0 + np.array([[0, 1], [2, 3]]))
    np.testing.assert_array_equal(flat_difference(after, MODEL), [0, 1, 2, 3, 0, 0, 0])
    both = moved(MODEL, step, frozenset({"w", "frozen"}))
    np.testing.assert_array_equal(flat_difference(both, MODEL), step)
    assert list(after) == list(MODEL)
    assert after["w"].dtype == "float32"
