"""Rounds of integers through the mod: what the app is told, and what it may answer with."""

from __future__ import annotations

from collections.abc import Callable

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
from numpy.typing import NDArray
from secure_grid import FIRST, ListeningGrid, credentials, nodes, secure_mod

from fedveil.client.credentials import Credentials
from fedveil.client.secure_aggregation import AppDefectError, make_secure_aggregation_mod
from fedveil.envelope import ROUND_FACTS
from fedveil.secagg.errors import BelowThresholdError
from fedveil.strategies.secure_rounds import SecureRounds, SecureSettings, SecureSum

CLIENTS, LENGTH = 5, 7
MODEL = ArrayRecord({"w": Array(np.zeros((2, 3), np.float32))})
Answer = Callable[[int], RecordDict]
FORGED = ConfigRecord({"participants": 99, "quorum": 99, "colluding": 0})


def integers_of(me: int) -> NDArray[np.int64]:
    return np.arange(LENGTH, dtype=np.int64) * (-1) ** me * (me + 1)


def answer(me: int) -> RecordDict:
    return RecordDict(
        {
            "arrays": ArrayRecord({"integers": Array(integers_of(me))}),
            "metrics": MetricRecord({"weight": 1.0, "steps": 1}),
        }
    )


class Seen(list[RecordDict]):
    """The contents that the app was given."""


def app_of(answers: Answer, seen: Seen, known: dict[int, Credentials] | None = None) -> ClientApp:
    mod = secure_mod(known) if known else make_secure_aggregation_mod(_none, lambda _: False)
    app = ClientApp(mods=[mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        seen.append(RecordDict(dict(message.content)))
        return Message(answers(int(context.node_config["partition-id"])), reply_to=message)

    return app


def _none(context: Context) -> Credentials:
    pytest.fail("no credentials are needed in clear")


def attempt(
    answers: Answer = answer,
    *,
    seen: Seen | None = None,
    integers: int | None = LENGTH,
    more: dict[str, ConfigRecord] | None = None,
    min_survivors: int = 0,
) -> tuple[SecureSum | None, SecureRounds]:
    grid = ListeningGrid(
        app_of(answers, Seen() if seen is None else seen, credentials(CLIENTS)), nodes(CLIENTS)
    )
    settings = SecureSettings("run", 10.0, 1.0, min_survivors=min_survivors)
    rounds = SecureRounds(grid, settings)
    content = RecordDict({"arrays": MODEL, "config": ConfigRecord({"x": 1}), **(more or {})})
    messages = [Message(content, node, "train") for node in nodes(CLIENTS)]
    try:
        found = rounds.attempt(1, 1, messages, weight_key="weight", timeout=60.0, integers=integers)
    except BelowThresholdError:
        found = None
    return found, rounds


def test_the_sum_of_the_integers_is_exact() -> None:
    found, _ = attempt()
    assert found is not None
    expected = sum(integers_of(me) for me in range(CLIENTS))
    np.testing.assert_array_equal(found.decoded.integers, expected)
    assert found.decoded.weight == CLIENTS
    assert found.decoded.figures == {"steps": CLIENTS}
    assert found.decoded.clipped == 0


@pytest.mark.parametrize("min_survivors", [0, 5])
def test_the_app_is_told_the_facts_that_its_own_client_checked(min_survivors: int) -> None:
    seen = Seen()
    found, _ = attempt(seen=seen, min_survivors=min_survivors)
    assert found is not None
    assert len(seen) == CLIENTS
    quorum = min_survivors or SecureSettings("run", 1.0, 1.0).plan(CLIENTS).quorum
    for content in seen:
        facts = {"participants": CLIENTS, "quorum": quorum, "colluding": 1}
        assert dict(content.config_records[ROUND_FACTS]) == facts


def test_attack_facts_of_the_server_stop_the_round() -> None:
    """They are taken out before the content is hashed, which is then not what all were told."""
    seen = Seen()
    found, rounds = attempt(seen=seen, more={ROUND_FACTS: FORGED})
    assert found is None
    assert not seen
    assert all("what came with the request" in why for why in rounds.failures.values())


def test_attack_facts_of_the_server_do_not_reach_the_app_in_clear() -> None:
    seen = Seen()
    grid = ListeningGrid(app_of(answer, seen), nodes(1))
    content = RecordDict({"arrays": MODEL, ROUND_FACTS: FORGED})
    list(grid.send_and_receive([Message(content, FIRST, "train")]))
    assert [ROUND_FACTS in content for content in seen] == [False]


def test_attack_words_of_a_library_on_a_record_do_not_leave_in_clear() -> None:
    def fails(_: int) -> RecordDict:
        raise IndexError("Target 7 is out of bounds.")

    grid = ListeningGrid(app_of(fails, Seen()), nodes(1))
    content = RecordDict({"arrays": MODEL})
    # Flower sends the words of what is raised here.
    with pytest.raises(AppDefectError, match="its app failed") as caught:
        list(grid.send_and_receive([Message(content, FIRST, "train")]))
    assert "7" not in str(caught.value)


def with_arrays(arrays: dict[str, NDArray[np.generic]], weight: float = 1.0) -> Answer:
    record = ArrayRecord({name: Array(values) for name, values in arrays.items()})
    metrics = MetricRecord({"weight": weight})
    return lambda _: RecordDict({"arrays": record, "metrics": metrics})


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        (with_arrays({"w": np.zeros((2, 3), np.float32)}), "one array of int64"),
        (with_arrays({"a": np.zeros(7, np.int64), "b": np.zeros(7, np.int64)}), "one array of"),
        (with_arrays({"integers": np.zeros(7, np.int32)}), "one array of int64"),
        (with_arrays({"integers": np.zeros(8, np.int64)}), "the session is for int64"),
        (with_arrays({"integers": np.zeros(7, np.int64)}, weight=2.0), "every client weighs 1"),
    ],
)
def test_what_is_no_vector_of_integers_does_not_leave_the_client(answers: Answer, why: str) -> None:
    found, rounds = attempt(answers)
    assert found is None
    assert all(why in said for said in rounds.failures.values())
    assert rounds.failures


def test_integers_do_not_leave_where_an_update_is_asked_for() -> None:
    found, rounds = attempt(integers=None)
    assert found is None
    assert all("the app's arrays are ['integers']" in why for why in rounds.failures.values())


def test_fewer_clients_than_the_noise_needs_are_not_summed() -> None:
    found, _ = attempt(min_survivors=6)
    assert found is None
    with pytest.raises(BelowThresholdError, match="5 clients can be summed, 6 are needed"):
        SecureSettings("run", 1.0, 1.0, min_survivors=6).plan(5)
