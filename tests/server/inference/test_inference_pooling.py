"""Pools that were put in another's place give the very same outputs."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedveil.server.inference.oip import TensorSpec
from fedveil.server.inference.pooling import PairwiseMaxPool2d, with_pairwise_pools
from fedveil.server.inference.replica import Replica, forward
from fedveil.tasks.models import small_cnn

CHANNELS_LAST = torch.channels_last


def images(shape: tuple[int, ...], seed: int) -> Tensor:
    found = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return found.contiguous(memory_format=CHANNELS_LAST)


@given(
    rows=st.sampled_from([1, 2, 16, 200]),
    channels=st.sampled_from([1, 3, 16]),
    height=st.integers(2, 17),
    width=st.integers(2, 17),
    wild=st.lists(st.sampled_from([float("nan"), float("inf"), -float("inf"), 0.0]), max_size=40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 9),
)
def test_it_is_the_pool_that_it_stands_for(
    rows: int,
    channels: int,
    height: int,
    width: int,
    wild: list[float],
    dtype: torch.dtype,
    seed: int,
) -> None:
    inputs = images((rows, channels, height, width), seed)
    places = torch.randint(inputs.numel(), (len(wild),))
    flat = inputs.permute(0, 2, 3, 1).reshape(-1)
    flat[places] = torch.tensor(wild)
    inputs = flat.reshape(rows, height, width, channels).permute(0, 3, 1, 2).to(dtype)
    found, wanted = PairwiseMaxPool2d()(inputs), nn.MaxPool2d(2, stride=1)(inputs)
    assert found.dtype == wanted.dtype
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.nan_to_num(), wanted.nan_to_num())
    assert found.is_contiguous(memory_format=CHANNELS_LAST)


def test_a_row_is_answered_alike_in_batches_of_either_way() -> None:
    # Alone it is below the size from which two passes are taken, among others above it.
    inputs = images((300, 16, 14, 14), 0)
    pool = PairwiseMaxPool2d()
    assert torch.equal(pool(inputs)[:1], pool(inputs[:1]))


def test_a_served_model_answers_as_the_model_it_was() -> None:
    torch.manual_seed(0)
    model = small_cnn().eval()
    spec = TensorSpec("input", "FP32", (1, 28, 28))
    replica = Replica(torch.device("cpu"), spec, 1024)
    placed = replica.place(copy.deepcopy(model))
    assert sum(isinstance(each, PairwiseMaxPool2d) for each in placed.modules()) == 2
    inputs = torch.rand(64, 1, 28, 28)
    with torch.inference_mode():
        wanted = model.to(memory_format=CHANNELS_LAST)(inputs).numpy()  # type: ignore[call-overload]
    assert (replica.answer(placed, inputs.numpy()) == wanted).all()


class Other(nn.MaxPool2d):
    """Its outputs are its own."""

    def forward(self, inputs: Tensor) -> Tensor:
        return -super().forward(inputs)


def hooked() -> nn.Module:
    pool = nn.MaxPool2d(2, 1)
    pool.register_forward_hook(lambda _, __, output: output + 1)
    return pool


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 1),
        nn.MaxPool2d((2, 3), 1),
        nn.MaxPool2d(2, 1, padding=1),
        nn.MaxPool2d(2, 1, dilation=2),
        nn.MaxPool2d(2, 1, return_indices=True),
        nn.AvgPool2d(2, 1),
        Other(2, 1),
        hooked(),
    ],
    ids=lambda pool: str(pool) if isinstance(pool, nn.Module) else None,
)
def test_any_other_pool_stays(pool: nn.Module) -> None:
    assert with_pairwise_pools(pool) is pool
    model = nn.Sequential(nn.Identity(), pool)
    assert with_pairwise_pools(model)[1] is pool  # type: ignore[index]


def test_a_pool_that_stands_at_several_places_is_found_at_each() -> None:
    pool = nn.MaxPool2d((2, 2), (1, 1))
    model = nn.Sequential(pool, nn.Sequential(nn.Tanh(), pool))
    inputs = images((64, 16, 14, 14), 1)
    wanted = model(inputs)
    changed = with_pairwise_pools(model)
    assert not any(type(each) is nn.MaxPool2d for each in changed.modules())
    assert torch.equal(changed(inputs), wanted)
    assert isinstance(with_pairwise_pools(pool), PairwiseMaxPool2d)


def test_a_compiler_gets_the_model_as_it_is() -> None:
    spec = TensorSpec("input", "FP32", (1, 28, 28))
    placed = Replica(torch.device("cpu"), spec, 8, padded=forward).place(small_cnn())
    assert not any(isinstance(each, PairwiseMaxPool2d) for each in placed.modules())
