"""Every trap that would make a claim false is refused, and what is sound is not."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as f

from fedveil.privacy.accounting import Release
from fedveil.privacy.calibration import calibrate_noise_multiplier
from fedveil.privacy.preflight import (
    PreflightError,
    check_client_sampling,
    check_delta,
    check_denominator,
    check_epsilon,
    check_finite,
    check_loss,
    check_model,
    check_noise,
    check_preprocessing,
    check_records_do_not_mix,
    check_sampling,
    check_seed,
    check_sensitivity,
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


def test_shuffled_batches_are_not_called_poisson() -> None:
    check_sampling("poisson")
    with pytest.raises(PreflightError, match="cannot be accounted as Poisson"):
        check_sampling("shuffle")


def test_private_counts_are_no_denominators() -> None:
    check_denominator("t", 60, 6)
    with pytest.raises(PreflightError, match="may be a private count"):
        check_denominator("t", property(len), 6)
    with pytest.raises(PreflightError, match="divided by a private count"):
        check_denominator("t", 60, None)


def test_a_seed_of_the_noise_is_refused() -> None:
    check_seed(None)
    with pytest.raises(PreflightError, match="claims nothing"):
        check_seed(0)


def test_an_epsilon_from_another_delta_is_refused() -> None:
    noise = calibrate_noise_multiplier(2.0, 1e-3, sampling_rate=0.5, count=20)
    plan = [Release(0.5, noise, 20)]
    check_epsilon(plan, 1e-3, 2.0)
    check_epsilon(plan, 1e-5, None)
    with pytest.raises(PreflightError, match=r"delta = 1e-05, more than dp.target_epsilon = 2"):
        check_epsilon(plan, 1e-5, 2.0)


def test_the_sampling_of_clients_is_no_amplification() -> None:
    check_client_sampling([Release(0.5, 1.0, 4), Release(1.0, 20.0, 1)], (0.5, 1.0))
    # A tenth of the clients in each round, counted as if the server did not see which.
    with pytest.raises(PreflightError, match=r"sampling rate 0\.05"):
        check_client_sampling([Release(0.5 * 0.1, 1.0, 4)], (0.5, 1.0))


def test_a_sensitivity_apart_from_the_clip_is_refused() -> None:
    gradients = [[torch.tensor([3.0, 4.0])], [torch.tensor([0.1, 0.0])]]
    clipped = [torch.tensor([0.6 + 0.1, 0.8])]
    check_sensitivity(clipped, gradients, 1.0)
    for wrong in (
        [torch.tensor([3.1, 4.0])],
        [2.0 * clipped[0]],
        [torch.tensor([float("nan")] * 2)],
    ):
        with pytest.raises(PreflightError, match=r"far from what dp.clip_norm = 1"):
            check_sensitivity(wrong, gradients, 1.0)


def test_noise_of_another_size_is_refused() -> None:
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    check_noise(3.0 * noise, 3.0)
    for factor in (0.0, 0.9, 1.1, float("nan")):
        with pytest.raises(PreflightError, match="is accounted"):
            check_noise(factor * 3.0 * noise, 3.0)
