"""The cohort engine: handlers run as always, and all that train do so in one call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from ledgers import train_charge
from tiny_task import TinyTask

from fedveil.client.guard import Guard
from fedveil.client.trainer import TrainingJob, current_trainer
from fedveil.config import TrainingConfig
from fedveil.errors import FedveilError
from fedveil.privacy.accounting import Release, pld_epsilon
from fedveil.privacy.ledger import Ledger
from fedveil.privacy.randomness import SecureGenerator
from fedveil.server.federation import RunSummary
from fedveil.simulations.cohort.training import Outcome
from fedveil.simulations.engines import cohort as engine_module
from fedveil.simulations.engines.cohort import CohortEngine
from fedveil.simulations.engines.errors import EngineError
from fedveil.simulations.engines.sequential import SequentialEngine
from fedveil.simulations.grid import InProcessGrid
from fedveil.simulations.scenarios import find_scenario
from fedveil.simulations.simulate import simulate
from fedveil.strategies.failures import failure_in

Run = Callable[..., tuple[RunSummary, object]]
SEEDED = ("dp.insecure_seed", 7)
ROUNDS = ("federation.rounds", 2)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each call of the trainer adds how many jobs it had."""
    found: list[int] = []
    original = engine_module.train_together

    def watched(jobs: list[TrainingJob]) -> list[Outcome]:
        found.append(len(jobs))
        return original(jobs)

    monkeypatch.setattr(engine_module, "train_together", watched)
    return found


def weights(summary: RunSummary) -> np.ndarray:
    tensors = summary.folder.store.load(summary.folder.committed).tensors
    return np.concatenate([np.array(t).ravel() for t in tensors.values()])


class Quiet:
    """Listens to a run and says nothing."""

    def started(self, *_: object) -> None: ...

    def reply(self, *_: object) -> None: ...

    def round_done(self, *_: object) -> None: ...

    def warning(self, text: str) -> None: ...


@pytest.mark.parametrize(
    "settings",
    [
        [SEEDED],
        [SEEDED, ("secagg.enabled", False)],
        [("dp.unit", "none")],
        [("dp.unit", "none"), ("training.sampling", "shuffle"), ("secagg.enabled", False)],
        [SEEDED, ("server_optimizer.name", "fedprox"), ("secagg.enabled", False)],
        [SEEDED, ("dp.unit", "client"), ("dp.noise", "central"), ("secagg.enabled", False)],
    ],
    ids=["default", "in clear", "no privacy", "shuffled", "fedprox", "client/central"],
)
def test_a_run_has_the_same_model(
    run: Run,
    calls: list[int],
    settings: list[tuple[str, object]],
) -> None:
    one_by_one, _ = run(ROUNDS, *settings, out="sequential", engine="sequential")
    together, _ = run(ROUNDS, *settings, out="cohort", engine="cohort")
    assert max(calls) >= 10
    scale = float(np.abs(weights(one_by_one)).max())
    assert np.abs(weights(one_by_one) - weights(together)).max() <= 1e-4 * (1.0 + scale)
    # The records differ by the time alone.
    for a, b in zip(one_by_one.folder.records, together.folder.records, strict=True):
        assert a.round == b.round


def test_the_mode_that_takes_each_record_alone_is_trained_alone(run: Run, calls: list[int]) -> None:
    settings = [SEEDED, ("dp.noise", "distributed"), ("training.local_steps", 1)]
    with pytest.raises(EngineError, match="each record's gradient is computed alone"):
        run(*settings, engine="cohort", out="refused")
    one_by_one, _ = run(ROUNDS, *settings, out="sequential", engine="sequential")
    together, _ = run(ROUNDS, *settings, out="auto")
    assert not calls
    assert np.array_equal(weights(one_by_one), weights(together))


def test_each_data_owner_is_asked_and_charged_before_anybody_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    charge, together = Guard.charge, engine_module.train_together

    def charged(self: Guard, *args: object, **options: object) -> None:
        charge(self, *args, **options)  # type: ignore[arg-type]  # as they came
        order.append("charged")

    def trained(jobs: list[TrainingJob]) -> list[Outcome]:
        order.append(f"trained {len(jobs)}")
        return together(jobs)

    monkeypatch.setattr(Guard, "charge", charged)
    monkeypatch.setattr(engine_module, "train_together", trained)
    before = Release(0.5, 0.9, 40)
    policy, budget = tmp_path / "policy.toml", pld_epsilon([before], 1e-5) + 0.1
    policy.write_text(
        'format = "fedveil-policy-1"\nsecure_aggregation = false\n[datasets.wards]\n'
        f'tasks = ["digits"]\nepsilon = {budget!r}\ndelta = 1e-5\n'
    )
    policy.chmod(0o600)
    ledgers = tmp_path / "ledgers"
    # Of one client's budget too little is left, which shows when it is asked to train.
    spent = Ledger(ledgers / "client-3.db", ledgers / "heads")
    spent.charge(train_charge("wards", run="another", release=before), None)
    config = find_scenario("digits").config([("federation.rounds", 1), ("secagg.enabled", False)])
    simulate(config, tmp_path / "run", Quiet(), policy=policy, ledgers=ledgers, engine="cohort")
    assert budget > config.dp.target_epsilon
    assert order == ["charged"] * 9 + ["trained 9"]
    for client in range(10):
        entries = Ledger(ledgers / f"client-{client}.db", ledgers / "heads").read().entries
        assert [e.run for e in entries] == (["another"] if client == 3 else [str(tmp_path / "run")])


# The engine alone --------------------------------------------------------------------------------


def train_once(partition: int, records: int = 20) -> float:
    task = TinyTask(records)
    model = task.model()
    training = TrainingConfig(sampling_rate=0.5, local_steps=2, learning_rate=0.1)
    examples, _ = task.load(0, 1)
    generator = SecureGenerator.from_seed("engine", partition)
    job = TrainingJob(model, TASKS.setdefault(records, task), examples, training, None, generator)
    loss = current_trainer().train(job).loss
    assert loss is not None
    return loss


TASKS: dict[int, TinyTask] = {}


def make_app(handler: Callable[[Context], float]) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        told = MetricRecord({"figure": handler(context)})
        return Message(RecordDict({"metrics": told}), reply_to=message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    return app


def work(nodes: int, kind: str = "train") -> list[tuple[Message, Context]]:
    configs = {2 + i: {"partition-id": i} for i in range(nodes)}
    grid = InProcessGrid(SequentialEngine(ClientApp()), configs, run_id=3)
    content = RecordDict({"config": ConfigRecord(), "arrays": ArrayRecord()})
    messages = [
        Message(content, dst_node_id=node, message_type=kind) for node in grid.get_node_ids()
    ]
    grid.push_messages(messages)
    return [(m, grid._contexts[m.metadata.dst_node_id]) for m in messages]


def partition(context: Context) -> int:
    return int(context.node_config["partition-id"])  # type: ignore[arg-type]


def test_a_handler_that_refuses_stops_nobody_else(calls: list[int]) -> None:
    def handler(context: Context) -> float:
        if partition(context) == 1:
            raise FedveilError("no, before")
        loss = train_once(partition(context))
        if partition(context) == 2:
            raise FedveilError("no, after")
        return loss

    replies = list(CohortEngine(make_app(handler)).run(work(5)))
    by_node = {reply.metadata.src_node_id: reply for reply in replies}
    assert sorted(by_node) == [2, 3, 4, 5, 6]
    assert str(failure_in(by_node[3])) == "no, before"
    assert str(failure_in(by_node[4])) == "no, after"
    assert not any(by_node[node].has_error() for node in (2, 5, 6))
    assert calls == [4]


def test_training_that_fails_fails_where_it_was_asked_for(calls: list[int]) -> None:
    def handler(context: Context) -> float:
        return train_once(partition(context), 0 if partition(context) == 1 else 20)

    replies = list(CohortEngine(make_app(handler)).run(work(3)))
    reasons = {r.metadata.src_node_id: str(failure_in(r)) for r in replies if r.has_error()}
    assert reasons == {3: "there are no training records"}


def test_a_handler_may_train_several_times(calls: list[int]) -> None:
    replies = list(
        CohortEngine(
            make_app(lambda context: sum(train_once(partition(context)) for _ in range(3)))
        ).run(work(3))
    )
    assert len(replies) == 3
    assert calls == [3, *[1] * 6]


def test_only_one_handler_runs_at_a_time() -> None:
    inside, most = [0], [0]

    def handler(context: Context) -> float:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        inside[0] -= 1
        loss = train_once(partition(context))
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        inside[0] -= 1
        return loss

    assert len(list(CohortEngine(make_app(handler)).run(work(20)))) == 20
    assert most == [1]


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    # One of an earlier test may have ended meanwhile.
    assert set(threading.enumerate()) <= before


@pytest.mark.usefixtures("no_thread_left")
def test_a_defect_is_raised_and_leaves_no_handler_waiting() -> None:
    def handler(context: Context) -> float:
        loss = train_once(partition(context))
        return loss / (partition(context) - 1)

    engine = CohortEngine(make_app(handler))
    replies = engine.run(work(4))
    assert not next(replies).has_error()
    with pytest.raises(ZeroDivisionError):
        next(replies)
    engine.close()


@pytest.mark.usefixtures("no_thread_left")
def test_whoever_stops_asking_leaves_no_handler_waiting() -> None:
    ended: list[int] = []

    def handler(context: Context) -> float:
        try:
            return train_once(partition(context))
        except Exception:  # noqa: BLE001  # as an app that tells nobody why training failed
            return 0.0
        finally:
            ended.append(partition(context))

    engine = CohortEngine(make_app(handler))
    replies = engine.run(work(4))
    next(replies)
    replies.close()  # type: ignore[attr-defined]  # it is a generator
    engine.close()
    assert sorted(ended) == [0, 1, 2, 3]


@pytest.mark.usefixtures("no_thread_left")
def test_threads_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def handler(context: Context) -> float:
        seen.append(threading.get_ident())
        if partition(context) == 2:
            raise FedveilError("no")
        return train_once(partition(context))

    engine = CohortEngine(make_app(handler))
    for _ in range(3):
        assert len(list(engine.run(work(6)))) == 6
    assert len(set(seen)) == 5
    engine.close()


@pytest.mark.usefixtures("no_thread_left")
def test_an_interrupt_while_a_handler_runs_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import _thread

    ended: list[int] = []

    def handler(context: Context) -> float:
        try:
            if partition(context) == 2:
                _thread.interrupt_main()
            return train_once(partition(context))
        finally:
            ended.append(partition(context))

    engine = CohortEngine(make_app(handler))
    with pytest.raises(KeyboardInterrupt):
        list(engine.run(work(4)))
    assert sorted(ended) == [0, 1, 2]
    engine.close()


def test_handlers_wait_no_longer_than_there_is_memory(
    monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    monkeypatch.setattr(engine_module.Room, "is_full", property(lambda room: room._clients >= 3))
    replies = CohortEngine(make_app(lambda context: train_once(partition(context)))).run(work(8))
    assert len(list(replies)) == 8
    assert calls == [3, 3, 2]


def test_other_messages_are_answered_at_once(calls: list[int]) -> None:
    replies = list(CohortEngine(make_app(lambda _: 0.0)).run(work(3, "query")))
    assert len(replies) == 3
    assert not calls
