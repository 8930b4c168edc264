"""A round is run as it was trained, on every replica, or refused; and leaves nothing behind."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from served_follower import Follower
from served_run import (
    CLASSES,
    FEATURES,
    Floats,
    answer,
    commit,
    new_run,
    run_of,
    some_rows,
    weights,
)
from torch import Tensor, nn
from torch._dynamo.utils import counters

from fedveil.errors import FedveilError
from fedveil.server.inference.buckets import ladder
from fedveil.server.inference.devices import Acceleration, tensors_of
from fedveil.server.inference.errors import RoundRefusedError, ServeError
from fedveil.server.inference.oip import Limits
from fedveil.tasks.digits import Digits
from fedveil.tasks.models import linear, tanh_mlp
from fedveil.tasks.partition import PartitionSpec
from fedveil.tasks.registry import create_task

BUILT_IN = ["adult", "breast-cancer", "digits", "fashion-mnist", "mnist", "shakespeare"]


def test_a_round_answers_as_it_was_trained(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1, 2)
    follower = Follower(tmp_path / "run")
    assert follower.answers_as(2)
    current = follower.holder.current
    assert (current.run, current.version, current.epsilon) == ("digits-run", "2", 0.5)
    assert follower.engine.input.shape == [-1, 64]
    assert follower.engine.output.shape == [-1, 10]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_round_that_diverged_is_refused(value: float, tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 1)
    follower = Follower(tmp_path / "run")
    broken = weights(2)
    broken["1.weight"][3, 7] = value
    commit(folder, 2, broken)
    assert not follower.watcher.look()
    assert follower.refusals == 1
    assert follower.answers_as(1)
    with pytest.raises(RoundRefusedError, match="answers a golden input with NaN or infinity"):
        follower.engine.load_newest()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 1)
    follower = Follower(tmp_path / "run")
    wide = {name: np.concatenate([array, array]) for name, array in weights(2).items()}
    commit(folder, 2, wide)
    assert not follower.watcher.look()
    assert follower.answers_as(1)
    with pytest.raises(FedveilError, match="has float32 of shape"):
        follower.engine.load_newest()


@pytest.mark.parametrize("name", [*BUILT_IN, "heart-disease"])
def test_every_task_says_what_its_model_takes_without_data(name: str) -> None:
    scheme = "natural" if name == "heart-disease" else "iid"
    task = create_task(name, seed=0, partition=PartitionSpec(scheme))
    inputs = task.model_inputs()
    blank = torch.zeros((3, *inputs.row_shape), dtype=inputs.dtype)
    assert len(task.model()(blank)) == 3


@pytest.mark.parametrize("name", ["breast-cancer", "digits"])
def test_what_a_task_says_is_what_its_data_is(name: str) -> None:
    task = create_task(name, seed=0, partition=PartitionSpec("iid"))
    public = task.public_test()
    assert public is not None
    inputs = task.model_inputs()
    assert (tuple(public.x.shape[1:]), public.x.dtype) == (inputs.row_shape, inputs.dtype)


def test_every_replica_has_weights_of_its_own_and_all_are_swapped_at_once(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 1)
    follower = Follower(tmp_path / "run", Acceleration(replicas=3))
    assert follower.answers_as(1)
    commit(folder, 2)
    assert follower.watcher.look()
    assert follower.answers_as(2)
    places = {
        tensor.data_ptr()
        for module in follower.holder.current.modules
        for tensor in tensors_of(module)
    }
    assert len(places) == 3 * len(weights(1))
    assert follower.engine.place.startswith(follower.engine.devices[0].type)
    assert follower.engine.place.endswith(" (3 replicas)")


def test_bf16_answers_are_near_and_come_as_fp32(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1)
    follower = Follower(tmp_path / "run", Acceleration("bf16"))
    rows = some_rows(9)
    found, wanted = follower.engine.run(follower.holder.current, rows), answer(1, rows)
    assert found.dtype == np.float32
    # A bfloat16 has 8 bits, and whole numbers up to 256 are exact.
    assert np.allclose(found, wanted, rtol=2**-8, atol=0)
    assert not np.array_equal(found, wanted)


def test_a_replaced_round_is_overwritten_once_no_batch_uses_it(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 1)
    follower = Follower(tmp_path / "run", Acceleration(replicas=2))
    first = follower.holder.current
    memory = [tensor for module in first.modules for tensor in tensors_of(module)]
    for round_ in (2, 3):
        commit(folder, round_)
        assert follower.watcher.look()
    kept = [
        tensor
        for served in follower.holder.kept
        for module in served.modules
        for tensor in tensors_of(module)
    ]
    # A batch that was begun with it ends with it.
    rows = some_rows(5)
    assert np.array_equal(follower.engine.run(first, rows), answer(1, rows))
    assert all(tensor.any() for tensor in memory)
    del first
    gc.collect()
    assert not any(tensor.any() for tensor in memory)
    assert all(tensor.any() for tensor in kept)
    assert follower.holder.roll_back()
    assert follower.answers_as(2)


def test_the_weights_of_a_refused_round_are_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_of(tmp_path / "run", 1)
    follower = Follower(tmp_path / "run")
    made: list[nn.Module] = []
    blank = follower.engine._blank

    def noted() -> nn.Module:
        made.append(blank())
        return made[-1]

    monkeypatch.setattr(follower.engine, "_blank", noted)
    broken = weights(2)
    broken["1.weight"][3, 7] = np.nan
    commit(folder, 2, broken)
    assert not follower.watcher.look()
    assert not any(tensor.any() for tensor in tensors_of(made[0]))


class Shared(nn.Module):
    """Has a buffer that a task has made once, for all its models."""

    ONES = torch.ones(FEATURES)

    def __init__(self) -> None:
        super().__init__()
        self.model = linear(FEATURES, CLASSES, 5 / 16)
        self.register_buffer("ones", self.ONES, persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        answers: Tensor = self.model(rows * self.ones)
        return answers


def test_overwriting_a_round_spares_what_models_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Digits, "model", lambda _: Shared())
    folder = new_run(tmp_path / "run")
    for round_ in (1, 2, 3):
        commit(folder, round_, {f"model.{name}": array for name, array in weights(round_).items()})
        if round_ == 1:
            follower = Follower(tmp_path / "run")
        else:
            assert follower.watcher.look()
    gc.collect()
    assert Shared.ONES.all()
    assert follower.answers_as(3)


class Centred(nn.Module):
    """Answers with what a row has more than the others of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.model = linear(FEATURES, CLASSES)

    def forward(self, rows: Tensor) -> Tensor:
        answers: Tensor = self.model(rows - rows.mean(0))
        return answers


class Failing(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        raise ValueError("of no use")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Centred, "the model of task digits answers a row otherwise in a batch of"),
        (Failing, "the model of task digits cannot be run on .* ValueError: of no use"),
    ],
)
def test_a_model_that_cannot_be_served_is_said_in_one_line(
    model: type[nn.Module], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_of(tmp_path / "run", 1)
    monkeypatch.setattr(Digits, "model", lambda _: model())
    with pytest.raises(ServeError, match=says) as caught:
        Follower(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_compiler_that_fails_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: object, **__: object) -> Callable[..., Tensor]:
        def fail(*_: object) -> Tensor:
            raise RuntimeError("no C++ compiler\nlong story")

        return fail

    run_of(tmp_path / "run", 1)
    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(ServeError, match=r"--compile: .* no C.. compiler; it takes a C") as caught:
        Follower(tmp_path / "run", Acceleration(compile=True))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_compiled_rounds_answer_the_same_and_are_compiled_once(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled for every bucket at the start; then neither a batch nor a round compiles again."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr(Digits, "model", lambda _: tanh_mlp([FEATURES, 8, CLASSES], 5 / 16))
    layers = {"1": (8, FEATURES), "3": (CLASSES, 8)}

    def trained(seed: int) -> dict[str, Floats]:
        random = np.random.default_rng(seed)
        return {
            f"{layer}.{name}": random.standard_normal(shape[:axes]).astype(np.float32)
            for layer, shape in layers.items()
            for name, axes in (("weight", 2), ("bias", 1))
        }

    folder = new_run(tmp_path / "run")
    commit(folder, 1, trained(1))
    follower = Follower(tmp_path / "run", Acceleration(compile=True), Limits(batch_rows=8))
    assert follower.engine.devices[0].type == device
    compiled = counters["stats"]["unique_graphs"]
    assert compiled >= len(ladder(8))
    for round_ in (1, 2, 3):
        if round_ > 1:
            commit(folder, round_, trained(round_))
            assert follower.watcher.look()
        model = tanh_mlp([FEATURES, 8, CLASSES], 5 / 16)
        model.load_state_dict({k: torch.from_numpy(v) for k, v in trained(round_).items()})
        for count in (1, 2, 3, 4, 5, 7, 8, 9, 21):
            rows = some_rows(count)
            with torch.no_grad():
                wanted = model(torch.from_numpy(rows)).numpy()
            found = follower.engine.run(follower.holder.current, rows)
            assert np.allclose(found, wanted, rtol=0, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == compiled
    # What the compiler leaves on the disk is code, and no weights.
    left = [path.read_bytes() for path in (tmp_path / "inductor").rglob("*") if path.is_file()]
    assert left
    for array in trained(1).values():
        assert not any(array.tobytes()[:32] in content for content in left)
