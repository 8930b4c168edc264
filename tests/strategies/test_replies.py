"""What must not reach the model is refused, one test a way to get there."""

import io

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict

from fedveil.flower import set_identity
from fedveil.strategies.failures import failure_in
from fedveil.strategies.replies import ReplyError, check_training_reply

MODEL = ArrayRecord({"w": Array(np.zeros((2, 3), np.float32)), "n": Array(np.zeros((), np.int64))})


def reply(
    w: np.ndarray | None = None,
    metrics: dict[str, float] | None = None,
    names: tuple[str, ...] = ("w", "n"),
) -> Message:
    set_identity(1, 1)
    request = Message(RecordDict(), dst_node_id=2, message_type="train")
    values = {"w": np.ones((2, 3), np.float32) if w is None else w, "n": np.zeros((), np.int64)}
    arrays = ArrayRecord({name: Array(values.get(name, values["w"])) for name in names})
    told = MetricRecord({"weight": 1.0, "steps": 4} if metrics is None else metrics)  # type: ignore[arg-type]
    return Message(RecordDict({"arrays": arrays, "metrics": told}), reply_to=request)


def test_a_good_reply_tells_its_steps() -> None:
    assert check_training_reply(reply(), MODEL, equal_weights=True).steps == 4


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(poison: float) -> None:
    w = np.ones((2, 3), np.float32)
    w[1, 2] = poison
    with pytest.raises(ReplyError, match="w holds NaN or infinity"):
        check_training_reply(reply(w), MODEL, equal_weights=True)


@pytest.mark.parametrize(
    "w", [np.ones((3, 2), np.float32), np.ones((2, 3), np.float64), np.ones((2, 3), np.int32)]
)
def test_other_shapes_and_dtypes(w: np.ndarray) -> None:
    with pytest.raises(ReplyError, match="the model's is float32"):
        check_training_reply(reply(w), MODEL, equal_weights=True)


@pytest.mark.parametrize("names", [("w",), ("n", "w"), ("w", "n", "extra")])
def test_other_names(names: tuple[str, ...]) -> None:
    with pytest.raises(ReplyError, match="the model's are"):
        check_training_reply(reply(names=names), MODEL, equal_weights=True)


def test_an_array_that_lies_about_itself() -> None:
    lying = reply()
    good = Array(np.ones((2, 3), np.float32))
    other = Array(np.ones((9, 9), np.float32))
    good.data = other.data
    lying.content["arrays"]["w"] = good  # type: ignore[index, call-overload]
    with pytest.raises(ReplyError, match="w holds something else"):
        check_training_reply(lying, MODEL, equal_weights=True)


class _Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("the pickle ran",))


def _pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([_Bomb()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        _pickled(),
        b"",
        b"\x93NUMPY\x01\x00\x36\x00{'descr': '<f4', 'fortran",
        np.lib.format.magic(1, 0) + b"\x10\x00((((((((((((((((",
        b"PK\x03\x04 no zip",
    ],
)
def test_bytes_that_are_no_array_are_refused_and_never_run(data: bytes) -> None:
    evil = reply()
    array = Array(np.ones((2, 3), np.float32))
    array.data = data
    evil.content["arrays"]["w"] = array  # type: ignore[index, call-overload]
    with pytest.raises(ReplyError, match="w "):
        check_training_reply(evil, MODEL, equal_weights=True)


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf, 1e13])
def test_impossible_weights(weight: float) -> None:
    with pytest.raises(ReplyError, match="weight"):
        check_training_reply(
            reply(metrics={"weight": weight, "steps": 4}), MODEL, equal_weights=False
        )


def test_unequal_weights_under_privacy() -> None:
    heavy = reply(metrics={"weight": 143.0, "steps": 4})
    assert check_training_reply(heavy, MODEL, equal_weights=False).weight == 143.0
    with pytest.raises(ReplyError, match="must be 1 for every client"):
        check_training_reply(heavy, MODEL, equal_weights=True)


@pytest.mark.parametrize("steps", [-1, 0.5])
def test_impossible_steps(steps: float) -> None:
    with pytest.raises(ReplyError, match="steps"):
        check_training_reply(
            reply(metrics={"weight": 1.0, "steps": steps}), MODEL, equal_weights=True
        )


def test_an_error_says_why_in_the_clients_words() -> None:
    request = Message(RecordDict(), dst_node_id=2, message_type="train")
    wrapped = "<class 'fedveil.privacy.preflight.PreflightError'>:<'no: x > 3'>"
    failed = Message(Error(code=2, reason=wrapped), reply_to=request)
    with pytest.raises(ReplyError, match=r"^no: x > 3$"):
        check_training_reply(failed, MODEL, equal_weights=True)


def test_only_arrays_and_weight_meet_the_strategy() -> None:
    chatty = reply(metrics={"weight": 1.0, "steps": 4, "train_loss": 0.5, "evil": 1e308})
    checked = check_training_reply(chatty, MODEL, equal_weights=True)
    assert checked.train_loss == 0.5
    assert dict(checked.message.content.metric_records["metrics"]) == {"weight": 1.0}
    assert list(checked.message.content.array_records) == ["arrays"]


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_no_number_is_not_told(loss: float) -> None:
    told = reply(metrics={"weight": 1.0, "steps": 4, "train_loss": loss})
    assert check_training_reply(told, MODEL, equal_weights=True).train_loss is None


def test_a_reason_cannot_paint_the_terminal() -> None:
    request = Message(RecordDict(), dst_node_id=2, message_type="train")
    failed = Message(Error(code=2, reason="a\x1b[2Jb\nc" + "x" * 9000), reply_to=request)
    line = failure_in(failed)
    assert line.isprintable()
    assert line.startswith("a [2Jb cx")
    assert len(line) < 400
