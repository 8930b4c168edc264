"""Any app of Flower's Message API gets secure aggregation by two lines, and loses nothing by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.grid import Grid
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedXgbBagging,
    FedXgbCyclic,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)
from secure_grid import FIRST, ListeningGrid, Lost, credentials, nodes, secure_mod, stage_of

from fedveil.client.secure_aggregation import secure_aggregation_mod
from fedveil.errors import FedveilError, PublicError
from fedveil.rosters import create_identity, write_roster
from fedveil.secagg.encoding import Encoding
from fedveil.secagg.identity import Roster
from fedveil.secagg.messages import SharesReply
from fedveil.strategies.grid_view import GridView
from fedveil.strategies.secure_aggregation import SecureAggregation
from fedveil.strategies.secure_rounds import SecureRounds, SecureSettings

CLIENTS = 5
ROUNDS = 3
START = ArrayRecord(
    {
        "w": Array(np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)),
        "b": Array(np.zeros((), np.float64)),
        "n": Array(np.asarray(7, np.int64)),
        "none": Array(np.zeros((0, 2), np.float16)),
    }
)
Behaviour = Callable[[int, dict[str, np.ndarray], dict[str, object]], None]


def quickstart_app(
    mods: list[object], behave: Behaviour = lambda *_: None, total: list[int] | None = None
) -> ClientApp:
    """Return an app in the shape of Flower's own quickstart."""
    app = ClientApp(mods=mods)  # type: ignore[arg-type]

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        me = int(context.node_config["partition-id"])
        arrays = {k: a.numpy().copy() for k, a in msg.content["arrays"].items()}  # type: ignore[union-attr]
        arrays["w"] += np.float32(0.01) * (me + 1)
        arrays["b"] -= 0.5 * me
        metrics: dict[str, object] = {"train_loss": 1.0 / (me + 1), "num-examples": 10 + me}
        behave(me, arrays, metrics)
        model = ArrayRecord({k: Array(np.asarray(v)) for k, v in arrays.items()})
        content = RecordDict({"arrays": model, "metrics": MetricRecord(metrics)})  # type: ignore[arg-type]
        return Message(content=content, reply_to=msg)

    @app.evaluate()
    def evaluate(msg: Message, context: Context) -> Message:
        me = int(context.node_config["partition-id"])
        metrics = MetricRecord({"eval_acc": me / 10, "num-examples": 20 + me})
        return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)

    @app.query()
    def query(msg: Message, context: Context) -> Message:
        return Message(content=RecordDict({"hello": MetricRecord({"x": 1})}), reply_to=msg)

    return app


def play(
    strategy: Strategy,
    grid: Grid,
    rounds: int = ROUNDS,
):  # type: ignore[no-untyped-def]  # Flower's Result
    """Run a strategy the way a quickstart's server does."""
    found = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        found.append(strategy.start(grid=grid, initial_arrays=START, num_rounds=rounds))

    server(grid, Context(1, 1, {}, RecordDict(), {}))
    return found[0]


def secure_grid(
    behave: Behaviour = lambda *_: None,
    lost: Lost = lambda *_: False,
    clients: int = CLIENTS,
    *,
    shows_defects: bool = True,
) -> ListeningGrid:
    app = quickstart_app([secure_mod(credentials(clients))], behave)
    return ListeningGrid(app, nodes(clients), lost, shows_defects=shows_defects)


def options() -> dict[str, int]:
    return {"min_train_nodes": 2, "min_evaluate_nodes": 2, "min_available_nodes": 2}


def test_a_quickstart_with_identities_in_files_gets_it_by_two_lines(tmp_path: Path) -> None:
    identities = [create_identity(tmp_path / f"{i}.json", f"site-{i}") for i in range(CLIENTS)]
    write_roster(tmp_path / "roster", Roster({i.name: i.public_key for i in identities}))
    configs = {
        node: {
            **config,
            "identity": str(tmp_path / f"{i}.json"),
            "roster": str(tmp_path / "roster"),
        }
        for i, (node, config) in enumerate(nodes(CLIENTS).items())
    }
    grid = ListeningGrid(quickstart_app([secure_aggregation_mod]), configs)
    result = play(SecureAggregation(FedAvg(**options())), grid)
    plain = play(FedAvg(**options()), ListeningGrid(quickstart_app([]), nodes(CLIENTS)))
    bound = ROUNDS * Encoding(13, 10.0, 1e4, CLIENTS).error_bound(CLIENTS, 60)
    for name in ("w", "b"):
        np.testing.assert_allclose(
            result.arrays[name].numpy(), plain.arrays[name].numpy(), atol=bound + 1e-6
        )
    for round_ in range(1, ROUNDS + 1):
        for of in ("train_metrics_clientapp", "evaluate_metrics_clientapp"):
            ours, theirs = getattr(result, of)[round_], getattr(plain, of)[round_]
            assert set(ours) == set(theirs)
            for name in ours:
                assert ours[name] == pytest.approx(theirs[name], abs=1e-5)


@pytest.mark.parametrize("kind", [FedAvg, FedAvgM, FedAdam, FedYogi, FedAdagrad, FedProx])
def test_every_strategy_that_needs_the_mean_gives_the_same_model(kind: type[FedAvg]) -> None:
    more = {"proximal_mu": 0.1} if kind is FedProx else {}
    more |= {"server_momentum": 0.5} if kind is FedAvgM else {}
    ours = play(SecureAggregation(kind(**options(), **more), max_weight=30), secure_grid())  # type: ignore[arg-type]
    plain_grid = ListeningGrid(quickstart_app([]), nodes(CLIENTS))
    theirs = play(kind(**options(), **more), plain_grid)  # type: ignore[arg-type]
    for name in ("w", "b"):
        # The adaptive ones divide by the root of small squares, which magnifies the rounding.
        np.testing.assert_allclose(
            ours.arrays[name].numpy(), theirs.arrays[name].numpy(), atol=2e-4
        )


def test_nothing_about_one_client_is_in_any_reply() -> None:
    grid = secure_grid()
    play(SecureAggregation(FedAvg(**options())), grid)
    assert grid.replies
    for reply in grid.replies:
        assert not reply.content.metric_records
        assert set(reply.content) <= {"fedveil.secagg", "fedveil.secagg.vector"}
        for record in reply.content.array_records.values():
            words = np.frombuffer(record["vector"].data, np.uint8)
            # A masked vector looks uniform: no byte value is far more frequent than others.
            counts = np.bincount(words, minlength=256)
            assert counts.max() < len(words) / 256 + 12 * math.sqrt(len(words) / 256) + 12


def test_integers_stay_as_they_are() -> None:
    def count(me: int, arrays: dict[str, np.ndarray], metrics: dict[str, object]) -> None:
        arrays["n"] = np.asarray(arrays["n"] + 1000, np.int64)

    result = play(SecureAggregation(FedAvg(**options())), secure_grid(count))
    assert result.arrays["n"].numpy() == 7
    assert result.arrays["n"].dtype == "int64"


def test_keys_are_exchanged_once_for_many_rounds() -> None:
    grid = secure_grid()
    play(SecureAggregation(FedAvg(**options()), setup_rounds=4), grid, rounds=4)
    # Four rounds with evaluation are eight sums, so two set-ups.
    assert grid.asked.count(("advertise", 0)) == 2
    assert grid.asked.count(("input", 0)) == grid.asked.count(("unmask", 0)) == 8


@pytest.mark.parametrize("stage", ["advertise", "share", "input", "confirm", "unmask"])
def test_a_client_lost_at_any_stage_is_back_in_the_next_round(stage: str) -> None:
    def lost(at: str, client: int, time: int) -> bool:
        return at == stage and client == 4 and time == 1

    grid = secure_grid(lost=lost)
    result = play(SecureAggregation(FedAvg(**options(), fraction_evaluate=0.0)), grid, rounds=2)
    counted = 10 * 4 + 0 + 1 + 2 + 3
    losses = sum((10 + me) / (me + 1) for me in range(4))
    first = result.train_metrics_clientapp[1]["train_loss"]
    if stage in ("advertise", "share", "input"):
        assert first == pytest.approx(losses / counted, abs=1e-5)
    else:
        # Its vector was there already, and the others' shares take its mask off.
        assert first == pytest.approx((losses + 14 / 5) / (counted + 14), abs=1e-5)
    assert result.train_metrics_clientapp[2]["train_loss"] == pytest.approx(
        (losses + 14 / 5) / (counted + 14), abs=1e-5
    )


def test_a_client_that_lost_its_state_is_in_again_after_one_round() -> None:
    grid: ListeningGrid

    def lost(at: str, client: int, time: int) -> bool:
        if at == "input" and client == 2 and time == 2:
            grid.forget(2)
        return False

    grid = secure_grid(lost=lost)
    result = play(SecureAggregation(FedAvg(**options(), fraction_evaluate=0.0)), grid, rounds=3)
    losses = [result.train_metrics_clientapp[r]["train_loss"] for r in (1, 2, 3)]
    assert losses[0] == losses[2] != losses[1]
    assert grid.asked.count(("advertise", 2)) == 2


def test_too_few_are_tried_again_with_fresh_keys() -> None:
    vectors: list[bytes] = []

    def lost(at: str, client: int, time: int) -> bool:
        return at == "confirm" and time == 1 and client > 1

    grid = secure_grid(lost=lost)
    play(SecureAggregation(FedAvg(**options(), fraction_evaluate=0.0)), grid, rounds=1)
    assert grid.asked.count(("input", 0)) == 2
    assert grid.asked.count(("advertise", 0)) == 1
    for reply in grid.replies:
        if reply.metadata.src_node_id == FIRST and reply.content.array_records:
            vectors.append(reply.content["fedveil.secagg.vector"]["vector"].data)  # type: ignore[union-attr, index]
    assert len(vectors) == 2
    assert vectors[0][:16] != vectors[1][:16]


def test_too_few_for_good_end_the_run_with_one_line() -> None:
    grid = secure_grid(lost=lambda at, client, _: at == "input" and client > 1)
    with pytest.raises(FedveilError, match="round 1: too few clients were left in 2 attempts"):
        play(SecureAggregation(FedAvg(**options()), retries=1), grid)


REFUSED = [
    Krum,
    MultiKrum,
    Bulyan,
    FedMedian,
    FedTrimmedAvg,
    QFedAvg,
    FedXgbBagging,
    FedXgbCyclic,
]


@pytest.mark.parametrize("kind", REFUSED)
def test_strategies_that_need_single_updates_are_refused_with_the_reason(kind: type) -> None:
    more = {"num_malicious_nodes": 1} if kind in (Krum, MultiKrum, Bulyan) else {}
    more |= {"client_learning_rate": 0.1} if kind is QFedAvg else {}
    with pytest.raises(FedveilError, match=f"{kind.__name__} does not work under secure .*: "):
        SecureAggregation(kind(**more))


def test_a_wrapper_that_clips_single_updates_is_refused() -> None:
    wrapped = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 1.0, 2)
    with pytest.raises(FedveilError, match="clips each client's update"):
        SecureAggregation(wrapped)  # type: ignore[arg-type]


def test_a_strategy_of_another_family_is_refused() -> None:
    secure = SecureAggregation(FedAvg())
    with pytest.raises(FedveilError, match="not of the FedAvg family"):
        SecureAggregation(secure)  # type: ignore[arg-type]


def bad(name: str, value: object) -> Behaviour:
    def behave(me: int, arrays: dict[str, np.ndarray], metrics: dict[str, object]) -> None:
        if me == 3:
            (arrays if name in arrays else metrics)[name] = value  # type: ignore[index]

    return behave


NAN = np.full((3, 4), np.nan, np.float32)


@pytest.mark.parametrize(
    ("behave", "says"),
    [
        (bad("w", NAN), "NaN or infinity"),
        (bad("w", np.zeros((4, 3), np.float32)), "the model's is float32"),
        (bad("w", np.zeros((3, 4), np.float64)), "the model's is float32"),
        (bad("num-examples", 0), "the weight must be above 0"),
        (bad("num-examples", -1), "the weight must be above 0"),
        (bad("num-examples", 10**7), "at most max_weight = 10000"),
        (bad("train_loss", math.nan), "the figure train_loss must be finite"),
        (bad("train_loss", [1.0, 2.0]), "is a list"),
        (bad("surprise", 1.0), "its figures are"),
    ],
)
def test_what_cannot_be_summed_is_left_out_and_named(
    behave: Behaviour, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = SecureAggregation(FedAvg(**options(), fraction_evaluate=0.0))
    result = play(strategy, secure_grid(behave), rounds=1)
    assert f"client-3 (node {FIRST + 3}) is left out" in caplog.text
    assert says in caplog.text
    expected = 0.01 * np.average([1, 2, 3, 5], weights=[10, 11, 12, 14])
    moved = result.arrays["w"].numpy() - START["w"].numpy()
    np.testing.assert_allclose(moved, expected, atol=1e-4)


def test_updates_beyond_the_clip_norm_are_scaled_down_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    strategy = SecureAggregation(FedAvg(**options(), fraction_evaluate=0.0), clip_norm=1.0)
    result = play(strategy, secure_grid(), rounds=1)
    # Clients 2, 3 and 4 move b by 1, 1.5 and 2, and w a little.
    assert "3 of 5 updates were scaled down to clip_norm = 1" in caplog.text
    assert abs(float(result.arrays["b"].numpy())) < 1.0


def test_a_reply_in_clear_is_never_aggregated() -> None:
    strategy = SecureAggregation(FedAvg(**options()))
    clear = Message(RecordDict(), dst_node_id=3, message_type="train")
    with pytest.raises(FedveilError, match="came in clear"):
        strategy.aggregate_train(1, [clear])


def test_the_server_cannot_get_a_result_by_leaving_the_protocol_out() -> None:
    with pytest.raises(FedveilError, match="under secure aggregation only"):
        ask_in_clear("train")
    with pytest.raises(FedveilError, match="under secure aggregation only"):
        ask_in_clear("evaluate")
    assert ask_in_clear("query").has_content()


def ask_in_clear(kind: str) -> Message:
    grid = secure_grid()
    content = RecordDict({"arrays": START, "config": ConfigRecord()})
    (reply,) = grid.send_and_receive([Message(content, dst_node_id=FIRST, message_type=kind)])
    if reply.has_error():
        raise FedveilError(reply.error.reason)
    return reply


def test_after_a_session_no_context_holds_a_secret() -> None:
    seen: set[bytes] = set()
    grid: ListeningGrid

    def note(at: str, client: int, time: int) -> bool:
        seen.update(secrets_in(grid))
        return False

    grid = secure_grid(lost=note)
    strategy = SecureAggregation(FedAvg(**options(), fraction_evaluate=0.0), setup_rounds=1)
    play(strategy, grid, rounds=1)
    assert len(seen) == 4 * CLIENTS
    assert secrets_in(grid) == set()
    left = repr(list(grid.contexts.values()))
    for secret in seen:
        assert repr(secret)[2:-1] not in left


def secrets_in(grid: ListeningGrid) -> set[bytes]:
    found = set()
    for context in grid.contexts.values():
        record = context.state.get("fedveil.secagg.1", ConfigRecord())
        for name, value in record.items():
            if name.startswith(("slot", "held", "pending", "openings")):
                found.add(bytes(value))  # type: ignore[arg-type]
    return found


def test_a_client_whose_app_has_no_mod_is_told_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    # As a SuperNode does, it answers for an app that raised.
    grid = ListeningGrid(quickstart_app([]), nodes(CLIENTS), shows_defects=False)
    with pytest.raises(FedveilError, match=r"ClientApp's mods\?"):
        play(SecureAggregation(FedAvg(**options())), grid)
    assert f"node {FIRST} is left out" in caplog.text


PRIVATE = "717 of the records say 0.4471"


@pytest.mark.parametrize("error", [FedveilError(PRIVATE), ValueError(PRIVATE)])
def test_the_words_of_an_app_that_fails_stay_on_the_client(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(me: int, arrays: dict[str, np.ndarray], metrics: dict[str, object]) -> None:
        if me == 3:
            raise error

    grid = secure_grid(fail, shows_defects=False)
    play(SecureAggregation(FedAvg(**options(), fraction_evaluate=0.0)), grid, rounds=1)
    told = [record.message for record in caplog.records if record.name == "flwr"]
    assert any("client-3" in line and "its app failed" in line for line in told)
    assert not any(PRIVATE in line for line in told)
    assert not any(PRIVATE in str(reply.error) for reply in grid.replies if reply.has_error())


def test_a_public_error_is_told_in_its_own_words(caplog: pytest.LogCaptureFixture) -> None:
    def fail(me: int, arrays: dict[str, np.ndarray], metrics: dict[str, object]) -> None:
        if me == 3:
            raise PublicError("this node has no partition")

    play(SecureAggregation(FedAvg(**options(), fraction_evaluate=0.0)), secure_grid(fail), rounds=1)
    assert "client-3 (node 5) is left out: this node has no partition" in caplog.text


SECRET_FIGURES = {"num-examples": 717_717.0, "train_loss": math.inf}


@pytest.mark.parametrize("name", SECRET_FIGURES)
def test_a_refusal_tells_no_value(name: str) -> None:
    grid = secure_grid(bad(name, SECRET_FIGURES[name]))
    play(SecureAggregation(FedAvg(**options(), fraction_evaluate=0.0)), grid, rounds=1)
    refusals = [sent for sent in grid.sent if b"EncodingError" in sent]
    assert len(refusals) == 1
    assert b"717" not in refusals[0]
    assert b"inf" not in refusals[0]


class _LyingGrid(GridView):
    """A server that gives one client's requests another type than everybody else's."""

    def __init__(self, grid: Grid, victim: int, lie: str) -> None:
        super().__init__(grid)
        self._victim, self._lie = victim, lie

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        changed = []
        for message in messages:
            if stage_of(message) == "input" and message.metadata.dst_node_id != self._victim:
                message = Message(
                    message.content, message.metadata.dst_node_id, message_type=self._lie
                )
            changed.append(message)
        return self._grid.push_messages(changed)


@pytest.mark.parametrize("lie", ["query", "evaluate", "train.other"])
def test_a_server_that_asks_clients_for_different_things_gets_nothing(lie: str) -> None:
    """All but the victim are asked for something whose figures are known, or for nothing new."""
    grid = _LyingGrid(secure_grid(shows_defects=False), FIRST + 1, lie)
    with pytest.raises(FedveilError, match="1 vectors came, 4 are needed"):
        play(SecureAggregation(FedAvg(**options()), retries=0), grid, rounds=1)


def test_a_query_is_never_summed() -> None:
    rounds = SecureRounds(secure_grid(), SecureSettings("r", 1.0, 1.0))
    asked = [
        Message(RecordDict({"config": ConfigRecord()}), dst_node_id=node, message_type="query")
        for node in nodes(CLIENTS)
    ]
    with pytest.raises(FedveilError, match="0 vectors came"):
        rounds.attempt(1, 1, asked, weight_key="", timeout=5.0)
    assert "must ask to evaluate, not for 'query'" in str(rounds.failures)


def test_clients_whose_apps_are_run_with_other_settings_are_not_summed() -> None:
    """A SuperLink that gives all but one client a learning rate of zero would see that one."""
    grid = secure_grid()
    grid.contexts[FIRST + 2].run_config = {"lr": 0.1}
    with pytest.raises(FedveilError, match="run with another configuration"):
        play(SecureAggregation(FedAvg(**options()), retries=0), grid, rounds=1)


def test_a_stranger_is_shut_out_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    known, other = credentials(CLIENTS), credentials(CLIENTS)
    known[FIRST + 4] = other[FIRST + 4]
    grid = ListeningGrid(quickstart_app([secure_mod(known)]), nodes(CLIENTS))
    play(SecureAggregation(FedAvg(**options(), fraction_evaluate=0.0)), grid, rounds=2)
    assert "node 6 is left out: it says that it is client-4, which most other" in caplog.text
    assert grid.asked.count(("unmask", 0)) == 2
    assert grid.asked.count(("advertise", 0)) == 2, "one with the stranger, one without"


def test_whoever_loses_the_others_a_round_sits_out_and_then_is_out() -> None:
    """It deals nonsense and vanishes: nobody can put its mask key together."""

    def lost(at: str, client: int, time: int) -> bool:
        return at == "input" and client == 4

    grid = secure_grid(lost=lost)
    spoil_shares(grid, FIRST + 4)
    strategy = SecureAggregation(FedAvg(**options(), fraction_evaluate=0.0))
    result = play(strategy, grid, rounds=3)
    assert set(result.train_metrics_clientapp) == {1, 2, 3}
    # Twice it cost an attempt; after that it is not asked.
    assert grid.asked.count(("input", 0)) == 5
    assert grid.asked.count(("input", 4)) == 2


def spoil_shares(grid: ListeningGrid, node: int) -> None:
    """Let a client seal nonsense for everybody."""
    original = grid.engine.answer

    def spoilt(message: Message, context: Context) -> Message:
        stage = stage_of(message)
        reply = original(message, context)
        if message.metadata.dst_node_id == node and stage == "share":
            record = reply.content.config_records["fedveil.secagg"]
            shares = SharesReply.decode(bytes(record["message"]))  # type: ignore[arg-type]
            packets = tuple(replace(p, sealed=bytes(len(p.sealed))) for p in shares.packets)
            record["message"] = replace(shares, packets=packets).encode()
        return reply

    grid.engine.answer = spoilt  # type: ignore[method-assign]
