"""What leaves a client in the modes whose noise is shared or the server's, and when it refuses."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_task import TinyTask
from torch import Tensor, nn

from fedveil.client import app, gradient_sums, private_updates
from fedveil.client.guard import Guard
from fedveil.client.local_training import TrainingError
from fedveil.client.private_updates import answer_privately
from fedveil.client.requests import RequestError
from fedveil.client.shared_noise import dimension_of, noise_shares, skellam_mechanism
from fedveil.client.sum_check import check_sum, rotation_seed
from fedveil.client.vectors import clipped, difference, trainable_names
from fedveil.config import Config, parse_config
from fedveil.envelope import ROUND_FACTS, WITHIN
from fedveil.flower import set_identity
from fedveil.privacy.randomness import SecureGenerator
from fedveil.settings import Tree, apply_override
from fedveil.tasks.base import Examples

TASK = TinyTask()
D = 18
TURN = (3, 1)


def config(mode: str, **changes: object) -> Config:
    unit, noise = mode.split("/")
    tree: Tree = {
        "task": {"name": "tiny"},
        "dp": {"unit": unit, "noise": noise, "noise_multiplier": 0.5},
        "training": {"local_steps": 1 if unit == "record" else 3, "nominal_records": 60},
    }
    for key, value in changes.items():
        tree = apply_override(tree, key.replace("__", "."), value)
    return parse_config(tree, "test")


def answered(
    settings_: Config,
    *,
    examples: Examples = TASK.examples,
    clip_norm: float = 1.0,
    key: bytes = bytes(32),
    model: nn.Module | None = None,
) -> RecordDict:
    torch.manual_seed(0)
    model = model or TASK.model()
    return answer_privately(model, TASK, examples, settings_, TURN, clip_norm, SecureGenerator(key))


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: value.clone() for name, value in TASK.model().state_dict().items()}


def arrays_in(answer: RecordDict) -> dict[str, NDArray[np.generic]]:
    return {name: a.numpy() for name, a in answer.array_records["arrays"].items()}


# The facts of a sum --------------------------------------------------------------------------


def request(**facts: int) -> RecordDict:
    known = {"participants": 10, "quorum": 7, "colluding": 3, **facts}
    return RecordDict({"arrays": ArrayRecord(), ROUND_FACTS: ConfigRecord(known)})


MODES = pytest.mark.parametrize("mode", ["record/distributed", "client/distributed"])


@MODES
def test_a_sum_that_bears_the_shares_is_accepted(mode: str) -> None:
    check_sum(request(), config(mode))
    check_sum(request(quorum=10, colluding=0), config(mode, dp__min_survivors=10))


@MODES
def test_attack_a_request_in_clear_for_a_share_of_the_noise(mode: str) -> None:
    """Alone, a share of the noise protects nobody."""
    with pytest.raises(RequestError, match="asks in clear for a share"):
        check_sum(RecordDict({"arrays": ArrayRecord()}), config(mode))


@MODES
def test_attack_a_quorum_below_the_survivors_that_the_noise_needs(mode: str) -> None:
    with pytest.raises(RequestError, match=r"a sum of 7 clients could be unmasked.*at least 9"):
        check_sum(request(), config(mode, dp__min_survivors=9))


@MODES
def test_attack_a_server_that_says_that_nobody_colludes(mode: str) -> None:
    with pytest.raises(RequestError, match=r"takes 0 clients.*this client 3"):
        check_sum(request(), config(mode, dp__colluding=0))


class Untouched(Guard):
    """A guard that must not be asked to charge anything."""

    def __init__(self) -> None: ...

    def charge(self, *_: object, **__: object) -> None:
        pytest.fail("a refused request was charged")


@MODES
def test_a_refused_sum_is_not_charged_and_reads_no_record(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "create_task", lambda *_, **__: pytest.fail("a record was read"))
    set_identity(1, 1)
    asked = ConfigRecord({"config": config(mode).model_dump_json(), "round": 1, "attempt": 1})
    content = request(quorum=6)
    content["config"] = asked
    node = Context(1, 2, {"partition-id": 0, "num-partitions": 10}, RecordDict(), {})
    with pytest.raises(RequestError, match="a sum of 6 clients"):
        app.train(Message(content, 2, "train"), node, Untouched())


@given(st.integers(2, 10), st.integers(0, 9), st.integers(2, 10), st.integers(0, 4))
@settings(max_examples=200)
def test_whatever_is_accepted_has_the_noise_that_is_claimed(
    quorum: int, colluding: int, least: int, assumed: int
) -> None:
    """The honest survivors of any sum that may be unmasked bring at least the whole noise."""
    if colluding >= least:
        return
    asked = config("client/distributed", dp__min_survivors=least, dp__colluding=colluding)
    mechanism = skellam_mechanism(asked, D, 0.5)
    try:
        check_sum(request(quorum=quorum, colluding=assumed), asked)
    except RequestError:
        return
    honest = quorum - assumed
    assert honest * mechanism.share_variance >= mechanism.variance * (1.0 - 1e-12)


# The model that comes --------------------------------------------------------------------------


def renamed(array: Array, **said: object) -> Array:
    of = {"dtype": array.dtype, "shape": array.shape, "stype": array.stype, "data": array.data}
    return Array(**{**of, **said})  # type: ignore[arg-type]  # as a server may write it


@pytest.mark.parametrize(
    "said",
    [
        # More numbers than there are: rounded more finely, they would cost less.
        {"shape": (2**20, 2**10)},
        # Fewer than there are.
        {"dtype": "int64"},
        {"shape": (1,)},
    ],
)
def test_attack_a_model_that_says_another_size_than_it_has(
    said: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The charge is reckoned from what the arrays say; the noise is added to what they hold."""
    monkeypatch.setattr(app, "create_task", lambda *_, **__: TASK)
    app._cached_task.cache_clear()
    set_identity(1, 1)
    asked = config("client/distributed")
    turn = ConfigRecord({"config": asked.model_dump_json(), "round": 1, "attempt": 1})
    node = Context(1, 2, {"partition-id": 0, "num-partitions": 10}, RecordDict(), {})

    def answer(arrays: ArrayRecord) -> RecordDict:
        content = request()
        content["arrays"], content["config"] = arrays, turn
        return app.train(Message(content, 2, "train"), node, None).content

    honest = ArrayRecord(weights())
    assert len(arrays_in(answer(honest))["integers"]) == D
    false = ArrayRecord({**honest, "weight": renamed(honest["weight"], **said)})
    assert dimension_of(false) != dimension_of(honest)
    with pytest.raises(RequestError, match="do not fit this client's model"):
        answer(false)
    app._cached_task.cache_clear()


# What leaves ---------------------------------------------------------------------------------


@MODES
def test_integers_and_nothing_else_leave_the_client(mode: str) -> None:
    answer = answered(config(mode))
    assert {name: a.dtype for name, a in arrays_in(answer).items()} == {"integers": np.int64}
    assert dict(answer.metric_records["metrics"]) == {"weight": 1.0, "steps": 1}
    assert set(answer) == {"arrays", "metrics"}


def noise_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "fedveil.privacy.skellam.mechanism.draw_skellam",
        lambda count, *_: np.zeros(count, dtype=np.int64),
    )


def test_the_integers_of_a_record_round_are_the_sum_of_clipped_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noise_free(monkeypatch)
    asked = config("record/distributed", training__sampling_rate=1.0)
    (integers,) = arrays_in(answered(asked, clip_norm=0.5, key=bytes(32))).values()
    mechanism = skellam_mechanism(asked, D, 0.5, 0.5)
    found = mechanism.decode(cast(NDArray[np.int64], integers), rotation_seed(asked, *TURN))
    torch.manual_seed(0)
    expected = gradient_sums.sum_of_clipped_gradients(
        TASK.model(), TASK, TASK.examples, np.arange(60), 0.5, np.zeros(60, np.uint64)
    )
    assert np.linalg.norm(expected) > 1.0
    np.testing.assert_allclose(found, expected, atol=3.0 / mechanism.scale * math.sqrt(D))


def test_the_integers_of_a_client_round_are_its_clipped_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noise_free(monkeypatch)
    asked = config("client/distributed")
    (integers,) = arrays_in(answered(asked, clip_norm=0.25)).values()
    mechanism = skellam_mechanism(asked, D, 0.5, 0.25)
    found = mechanism.decode(cast(NDArray[np.int64], integers), rotation_seed(asked, *TURN))
    assert np.linalg.norm(found) == pytest.approx(0.25, rel=0.02)
    square = sum(int(x) ** 2 for x in integers.tolist())
    assert square <= mechanism.sensitivity.l2**2 * (1.0 + 1e-12)


@MODES
def test_the_noise_is_fresh_for_each_message(mode: str) -> None:
    (one,) = arrays_in(answered(config(mode), key=bytes(32))).values()
    (other,) = arrays_in(answered(config(mode), key=b"\1" * 32)).values()
    assert (one != other).mean() > 0.5


def test_the_bit_of_an_adaptive_clip_norm_tells_whether_the_update_was_within(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noise_free(monkeypatch)
    asked = config("client/distributed", dp__adaptive={"bit_noise": 0.5})
    for clip_norm, bit in ((100.0, 0.5), (1e-3, -0.5)):
        (integers,) = arrays_in(answered(asked, clip_norm=clip_norm)).values()
        mechanism = skellam_mechanism(asked, D, 0.5, clip_norm)
        assert len(integers) == D + 1
        assert mechanism.decode_bits(cast(NDArray[np.int64], integers)) == bit


def test_for_noise_of_the_server_new_weights_leave_within_the_clip_norm() -> None:
    before = weights()
    for clip_norm, within in ((100.0, True), (0.05, False)):
        answer = answered(config("client/central", dp__adaptive={}), clip_norm=clip_norm)
        metrics = dict(answer.metric_records["metrics"])
        assert metrics == {"weight": 1.0, "steps": 1, WITHIN: float(within)}
        update = np.concatenate(
            [
                (values.astype(np.float64) - before[name].double().numpy()).ravel()
                for name, values in arrays_in(answer).items()
            ]
        )
        assert 0.0 < np.linalg.norm(update) <= clip_norm
    assert WITHIN not in answered(config("client/central")).metric_records["metrics"]


@given(st.floats(1e-6, 1e6), st.floats(-1e4, 1e4), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_rounding_to_the_weights_type_never_lengthens_a_step(
    size: float, weight: float, seed: int
) -> None:
    model = nn.Linear(5, 3)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(weight)
    before = dict(model.state_dict())
    step = np.random.default_rng(seed).normal(0.0, size, D)
    moved = private_updates._moved(model, ("weight", "bias"), before, step)
    at = 0
    for name, old in before.items():
        new = moved[name].numpy().astype(np.float64).ravel()
        part = step[at : at + old.numel()]
        taken = new - old.double().numpy().ravel()
        assert (np.abs(taken) <= np.abs(part)).all()
        gap = np.spacing(np.float32(abs(weight) + abs(part).max()))
        assert np.abs(taken - part).max() <= 2.0 * gap
        at += old.numel()


# Records and models that do not behave -------------------------------------------------------


def test_a_diverged_update_becomes_zero_and_the_failure_is_not_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That it failed depends on the client's data; dropping out would tell it."""
    x = TASK.examples.x.clone()
    x[:] = 3e38
    bad = Examples(x, TASK.examples.y)
    answer = answered(config("client/central"), examples=bad)
    assert dict(answer.metric_records["metrics"]) == {"weight": 1.0, "steps": 1}
    for name, values in arrays_in(answer).items():
        np.testing.assert_array_equal(values, weights()[name].numpy())
    assert "contributes nothing" in caplog.text
    noise_free(monkeypatch)
    (integers,) = arrays_in(answered(config("client/distributed"), examples=bad)).values()
    # Stochastic rounding of zero is zero.
    assert not integers.any()


class Failing(nn.Linear):
    """A model that refuses some records, as a lookup beyond its table does."""

    def forward(self, x: Tensor) -> Tensor:
        if bool((x[:, 0] > 2.0).any()):
            raise IndexError("index out of range in self")
        return super().forward(x)


@pytest.mark.parametrize("mode", ["record/distributed", "client/distributed", "client/central"])
def test_attack_records_on_which_training_fails_are_not_told_by_an_error(
    mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that chooses the weights could choose on which records it fails."""
    assert bool((TASK.examples.x[:, 0] > 2.0).any())
    changes: dict[str, object] = {"training__sampling_rate": 1.0}
    if mode.startswith("client/"):
        changes["dp__adaptive"] = {}
    answer = answered(config(mode, **changes), model=Failing(5, 3))
    assert "index out of range" in caplog.text
    metrics = dict(answer.metric_records["metrics"])
    # An update that failed was not within the clip norm, as one that diverged.
    central = {WITHIN: 0.0} if mode == "client/central" else {}
    assert metrics == {"weight": 1.0, "steps": 1, **central}


def test_settings_that_make_no_training_are_told() -> None:
    with pytest.raises(TrainingError, match="is unknown"):
        answered(config("client/distributed", training__optimizer="none-such"))


@pytest.mark.parametrize("mode", ["record/distributed", "client/distributed", "client/central"])
def test_a_client_without_records_answers_as_any_other(mode: str) -> None:
    nobody = Examples(TASK.examples.x[:0], TASK.examples.y[:0])
    answer = answered(config(mode), examples=nobody)
    assert dict(answer.metric_records["metrics"]) == {"weight": 1.0, "steps": 1}


def test_open_constants_are_refused() -> None:
    for key in ("noise_multiplier", "nominal_records"):
        asked = config("client/distributed")
        if key == "noise_multiplier":
            dp = asked.dp.model_copy(update={key: None, "target_epsilon": 1.0})
            asked = asked.model_copy(update={"dp": dp})
        else:
            training = asked.training.model_copy(update={key: None})
            asked = asked.model_copy(update={"training": training})
        with pytest.raises(TrainingError, match="open"):
            answered(asked)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.linear(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", ["record/distributed", "client/distributed", "client/central"])
def test_a_statistic_of_records_in_a_buffer_is_refused(mode: str) -> None:
    with pytest.raises(TrainingError, match="changed the buffer seen"):
        answered(config(mode, training__sampling_rate=1.0), model=Counting())


def test_an_array_of_two_names_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(TrainingError, match=r"1\.weight has another name"):
        trainable_names(model)


def test_a_frozen_array_takes_no_part() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    model[0].requires_grad_(False)
    assert trainable_names(model) == ("1.weight", "1.bias")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model[1].bias += 1.0
    assert difference(model, before).sum() == pytest.approx(3.0)


# Clipping ------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=8), st.floats(1e-100, 1e100))
@example([3e209, 2e209, -7e208], 1e-100)
@settings(max_examples=200)
def test_no_vector_passes_the_clip_norm(values: list[float], clip_norm: float) -> None:
    found, within = clipped(np.array(values), clip_norm)
    peak = max(map(abs, values)) or 1.0
    norm = peak * math.sqrt(math.fsum((v / peak) ** 2 for v in values))
    assert within == (norm <= clip_norm) or norm == pytest.approx(clip_norm, rel=1e-8)
    # Compared in units of the clip norm: squares would underflow or overflow.
    assert math.fsum((float(v) / clip_norm) ** 2 for v in found) <= 1.0
    if within:
        assert (found == values).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_becomes_zero(value: float) -> None:
    found, within = clipped(np.array([1.0, value]), 1.0)
    assert not found.any()
    assert not within


def test_the_rotation_turns_anew_each_round_and_alike_for_all() -> None:
    asked = config("client/distributed")
    seeds = {rotation_seed(asked, r, a) for r in (1, 2) for a in (1, 2)}
    assert len(seeds) == 4
    assert all(len(seed) == 32 for seed in seeds)
    assert rotation_seed(asked, 1, 1) == rotation_seed(asked, 1, 1)
    assert noise_shares(asked).honest == 4
