"""No record bears on another client's sum, nor on its own client's by more than the clip norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from gradient_models import crafted
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedveil.client.gradients.layers import trained_layers
from fedveil.client.gradients.taps import Taps
from fedveil.simulations.cohort.private import sums_of_batches
from fedveil.simulations.cohort.rows import Records
from fedveil.simulations.cohort.stack import Stack
from fedveil.tasks.base import Examples
from fedveil.tasks.models import small_cnn, tanh_mlp

CLIP, ROWS = 1.0, 16
COUNTS = (2, 16, 17, 0, 33, 16, 1, 40, 5)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sums(model: nn.Module, examples: Sequence[Examples], gone: tuple[int, int] | None) -> Tensor:
    """Return each client's sum over all its records but one that is gone: (clients, d)."""
    stack = Stack([model] * len(examples))
    records = Records(examples)
    batches = [
        first + np.arange(len(own)) for first, own in zip(records.first, examples, strict=True)
    ]
    if gone is not None:
        client, record = gone
        batches[client] = np.delete(batches[client], record)
    taps = Taps(trained_layers(stack.model))
    found = sums_of_batches(stack, taps, cross_entropy, CLIP, records, batches, ROWS)
    return torch.cat([one.double().flatten(1) for one in found.values()], dim=1)


@pytest.mark.parametrize("model", ["1e8", "1e12", "cnn"])
@pytest.mark.parametrize("client", [0, 1, 2, 4, 7])
def test_attack_a_record_that_leaves_moves_its_own_clients_sum_by_the_clip_norm_and_no_others(
    model: str, client: int
) -> None:
    torch.manual_seed(0)
    net = small_cnn() if model == "cnn" else crafted(float(model))
    examples = [
        Examples(torch.rand(count, 1, 28, 28), torch.randint(0, 10, (count,))) for count in COUNTS
    ]
    whole = sums(net, examples, None)
    for record in {0, COUNTS[client] - 1}:
        rest = sums(net, examples, (client, record))
        moved = (whole - rest).norm(dim=1)
        assert 0.0 < float(moved[client]) <= CLIP * (1.0 + 1e-4)
        # Not by a bit: passes, slots and rows are as many as before.
        moved[client] = 0.0
        assert not moved.any()


def test_a_record_that_is_no_number_moves_no_other_clients_sum() -> None:
    torch.manual_seed(1)
    net = tanh_mlp((784, 16, 10))
    examples = [
        Examples(torch.rand(count, 1, 28, 28), torch.randint(0, 10, (count,))) for count in COUNTS
    ]
    without = sums(net, examples, (4, 20))
    examples[4].x[20] = torch.nan
    gap = (sums(net, examples, None) - without).abs().amax(dim=1)
    # Its neighbours in the batch stand in other rows.
    assert float(gap[4]) <= 1e-6
    gap[4] = 0.0
    assert not gap.any()
