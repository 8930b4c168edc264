"""Every trap that would make a claim false is refused, and what is sound is not."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as f

from fedveil.privacy.preflight import (
    PreflightError,
    check_delta,
    check_finite,
    check_loss,
    check_model,
    check_preprocessing,
    check_records_do_not_mix,
)

INPUTS = torch.randn(6, 5)
TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])


def test_batch_norm_is_refused() -> None:
    with pytest.raises(PreflightError, match="per-record gradients"):
        check_model(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)))


def test_ordinary_layers_pass() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.GroupNorm(2, 4), nn.Tanh(), nn.Linear(4, 3))
    check_model(model)
    check_records_do_not_mix(model, INPUTS)
    check_loss(f.cross_entropy, model, INPUTS, TARGETS)


class _Centres(nn.Module):
    """Subtracts the batch's mean: no layer that a validator knows, and records mix."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0)


def test_a_model_that_mixes_records_is_refused() -> None:
    with pytest.raises(PreflightError, match="depends on the other records"):
        check_records_do_not_mix(nn.Sequential(_Centres(), nn.Linear(5, 3)), INPUTS)


def test_a_loss_that_sums_or_compares_records_is_refused() -> None:
    model = nn.Linear(5, 3)
    with pytest.raises(PreflightError, match="is not the mean"):
        check_loss(lambda o, t: f.cross_entropy(o, t, reduction="sum"), model, INPUTS, TARGETS)
    with pytest.raises(PreflightError, match="is not the mean"):
        check_loss(lambda o, t: o.std() + 0.0 * t.sum(), model, INPUTS, TARGETS)


def test_checks_leave_the_model_in_its_mode() -> None:
    model = nn.Linear(5, 3).train()
    check_records_do_not_mix(model, INPUTS)
    assert model.training


@pytest.mark.parametrize(("delta", "records"), [(0.01, 100), (0.5, 100), (0.01, 1000)])
def test_a_meaningless_delta_is_refused(delta: float, records: int) -> None:
    with pytest.raises(PreflightError, match=f"below 1/{records}"):
        check_delta(delta, records)


def test_a_small_delta_passes() -> None:
    check_delta(1e-5, 143)


def test_private_statistics_in_the_preprocessing_are_refused() -> None:
    check_preprocessing("t", is_independent=True)
    with pytest.raises(PreflightError, match="statistics of private records"):
        check_preprocessing("t", is_independent=False)


def test_non_finite_records_are_refused_without_telling_how_many() -> None:
    check_finite(0)
    with pytest.raises(PreflightError) as caught:
        check_finite(17)
    assert "17" not in str(caught.value)
