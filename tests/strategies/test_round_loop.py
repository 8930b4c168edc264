"""The round loop against clients that fail, lie, vanish or blow up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedveil.config import ServerOptimizerConfig
from fedveil.errors import FedveilError
from fedveil.privacy.accounting import Release
from fedveil.privacy.journal import Intent, PrivacyJournal
from fedveil.simulations.engines.sequential import SequentialEngine
from fedveil.simulations.grid import InProcessGrid
from fedveil.strategies.factory import make_strategy
from fedveil.strategies.round_loop import RoundError, RoundOutcome, RoundPlan, run_rounds

STEP = Release(0.25, 1.5, 4)
MODEL = ArrayRecord({"w": Array(np.zeros(2, np.float32))})
Behaviour = Callable[[int, dict[str, object]], None]


def play(
    tmp_path: Path,
    behaviour: Mapping[int, Callable[[], tuple[object, float, int]]],
    *,
    clients: int = 4,
    least: int = 2,
    releases: tuple[Release, ...] = (STEP,),
    optimizer: str = "fedavg",
    learning_rate: float = 1.0,
) -> tuple[list[RoundOutcome], PrivacyJournal]:
    """Run two rounds in which client i adds i, unless `behaviour` says what it sends."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        me = int(context.node_config["partition-id"])
        w, weight, steps = (np.full(2, me, np.float32), 1.0, 4)
        if me in behaviour:
            w, weight, steps = behaviour[me]()  # type: ignore[assignment]
        arrays = ArrayRecord({"w": Array(np.asarray(w))})
        told = MetricRecord({"weight": weight, "steps": steps})
        return Message(RecordDict({"arrays": arrays, "metrics": told}), reply_to=message)

    configs = {2 + i: {"partition-id": i} for i in range(clients)}
    grid = InProcessGrid(SequentialEngine(app), configs, run_id=1)
    journal = PrivacyJournal(tmp_path / "privacy.jsonl")
    plan = RoundPlan(ConfigRecord(), releases, 1.0, least, 10.0, seed=0)
    config = ServerOptimizerConfig(name=optimizer, learning_rate=learning_rate)
    nodes = {f"client-{i}": 2 + i for i in range(clients)}
    outcomes = list(
        run_rounds(grid, make_strategy(config), MODEL, plan, journal, [1, 2], lambda: nodes)
    )
    return outcomes, journal


def test_the_mean_of_all(tmp_path: Path) -> None:
    outcomes, journal = play(tmp_path, {})
    assert [o.arrays["w"].numpy().tolist() for o in outcomes] == [[1.5, 1.5]] * 2
    assert journal.steps_by_client() == {f"client-{i}": 8 for i in range(4)}


def refuse() -> tuple[object, float, int]:
    raise FedveilError("not with me")


LIES: dict[str, Callable[[], tuple[object, float, int]]] = {
    "not with me": refuse,
    "NaN or infinity": lambda: (np.array([np.nan, 1], np.float32), 1.0, 4),
    "the model's is float32": lambda: (np.zeros(3, np.float32), 1.0, 4),
    "must be 1 for every client": lambda: (np.zeros(2, np.float32), 1e6, 4),
}


@pytest.mark.parametrize("says", LIES)
def test_a_bad_reply_is_left_out_and_charged_all_the_same(tmp_path: Path, says: str) -> None:
    outcomes, journal = play(tmp_path, {3: LIES[says]})
    for outcome in outcomes:
        assert says in outcome.failures["client-3"]
        assert outcome.clients == ("client-0", "client-1", "client-2")
        assert outcome.arrays["w"].numpy().tolist() == [1.0, 1.0]
    assert journal.releases_by_client()["client-3"] == (Release(0.25, 1.5, 8),)


@pytest.mark.parametrize("name", ["weights", "x"])
def test_a_client_with_names_of_its_own_does_not_stop_the_others(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = RecordDict.__init__

    def rename(self: RecordDict, records: dict[str, object] | None = None) -> None:
        if records and "metrics" in records and len(made) == 0:
            made.append(1)
            records = {name: records["arrays"], "told": records["metrics"]}
        original(self, records)  # type: ignore[arg-type]

    made: list[int] = []
    monkeypatch.setattr(RecordDict, "__init__", rename)
    outcomes, _ = play(tmp_path, {})
    assert made == [1]
    assert len(outcomes[0].clients) == 4


def test_too_few_replies_stop_the_run_and_say_why(tmp_path: Path) -> None:
    with pytest.raises(RoundError, match=r"round 1: 1 usable replies, 2 are needed; .*not with me"):
        play(tmp_path, {1: refuse, 2: refuse, 3: refuse})
    journal = PrivacyJournal(tmp_path / "privacy.jsonl")
    assert journal.steps_by_client()["client-1"] == 4


def test_an_aggregate_that_overflows_never_becomes_the_model(tmp_path: Path) -> None:
    huge = lambda: (np.full(2, 3e38, np.float32), 1.0, 4)  # noqa: E731
    with pytest.raises(RoundError, match="the aggregate of w holds NaN or infinity"):
        play(tmp_path, {0: huge, 1: huge, 2: huge}, optimizer="fedavgm", learning_rate=9.0)


def test_the_intent_is_on_the_disk_when_the_clients_are_asked(tmp_path: Path) -> None:
    seen: list[int] = []

    def look() -> tuple[object, float, int]:
        entries = PrivacyJournal(tmp_path / "privacy.jsonl").entries
        seen.append(sum(isinstance(e, Intent) for e in entries))
        return np.zeros(2, np.float32), 1.0, 4

    play(tmp_path, {0: look})
    assert seen == [1, 2]


def test_nothing_is_asked_when_the_journal_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "privacy.jsonl").mkdir()
    asked: list[int] = []

    def note() -> tuple[object, float, int]:
        asked.append(1)
        return np.zeros(2, np.float32), 1.0, 4

    with pytest.raises(FedveilError, match=r"privacy\.jsonl"):
        play(tmp_path, {0: note})
    assert asked == []


@pytest.mark.parametrize("optimizer", ["fedavg", "fedadam", "fedyogi", "fedadagrad", "fedavgm"])
def test_the_model_keeps_its_dtype(tmp_path: Path, optimizer: str) -> None:
    outcomes, _ = play(tmp_path, {}, optimizer=optimizer, learning_rate=0.1)
    assert {o.arrays["w"].dtype for o in outcomes} == {"float32"}
