"""The noise of a cohort: of the law that is claimed, each client's its own, as if trained alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cohort_jobs import QUIET, CaseTask, Cohort, weights
from gradient_models import Case
from numpy.typing import NDArray
from scipy import stats

from fedveil.client.trainer import TrainingJob
from fedveil.config import DpConfig, TrainingConfig
from fedveil.privacy.randomness import SecureGenerator
from fedveil.tasks.models import tanh_mlp

CLIENTS, NOISE, CLIP, STEPS, RATE, NOMINAL, LEARNING_RATE = 60, 1.5, 0.4, 3, 0.5, 8, 0.2
DP = DpConfig(noise_multiplier=NOISE, clip_norm=CLIP)
TRAINING = TrainingConfig(
    sampling_rate=RATE, local_steps=STEPS, learning_rate=LEARNING_RATE, nominal_records=NOMINAL
)
FALSE_ALARM = 1e-7


def task() -> CaseTask:
    torch.manual_seed(2)
    inputs, targets = torch.randn(40, 9), torch.randint(0, 4, (40,))
    return CaseTask(Case(tanh_mlp((9, 16, 4)), inputs, targets))


def noise_alone(jobs: list[TrainingJob], cohort: Cohort) -> NDArray[np.float64]:
    """Return how far each client's weights moved, (clients, d), in units of the noise's claim."""
    moved = [weights(new) - weights(old) for new, old in zip(jobs, cohort.jobs(), strict=True)]
    std = LEARNING_RATE * NOISE * CLIP / (RATE * NOMINAL) * math.sqrt(STEPS)
    return torch.stack(moved).double().numpy() / std


@pytest.fixture(scope="module")
def noise() -> NDArray[np.float64]:
    # Nobody has records, and every generator is fresh from the operating system.
    cohort = Cohort(task(), [0] * CLIENTS, TRAINING, DP, generator=lambda _: SecureGenerator())
    return noise_alone(cohort.together()[0], cohort)


def test_each_clients_noise_has_the_claimed_law(noise: NDArray[np.float64]) -> None:
    low, high = stats.chi2.interval(1.0 - FALSE_ALARM / CLIENTS, noise.shape[1])
    for own in noise:
        assert low < float(own @ own) < high
        assert not low < float(own @ own) / 4 < high
    assert stats.kstest(noise.ravel(), stats.norm.cdf).pvalue > FALSE_ALARM


def test_no_two_clients_share_noise(noise: NDArray[np.float64]) -> None:
    correlation = np.corrcoef(noise)
    np.fill_diagonal(correlation, 0.0)
    pairs = CLIENTS * (CLIENTS - 1) / 2
    most = math.sqrt(2.0 * math.log(2.0 * pairs / FALSE_ALARM) / noise.shape[1])
    assert most < 0.6
    assert float(np.abs(correlation).max()) < most


def test_no_two_parameters_of_a_client_share_noise(noise: NDArray[np.float64]) -> None:
    # The largest arrays of two layers, as long as the shorter.
    first, second = noise[:, :64], noise[:, 160:224]
    length = first.size
    assert abs(float((first * second).mean())) < stats.norm.isf(FALSE_ALARM / 2) / math.sqrt(length)


def test_two_trainings_of_the_same_clients_share_no_noise(noise: NDArray[np.float64]) -> None:
    cohort = Cohort(task(), [0] * CLIENTS, TRAINING, DP, generator=lambda _: SecureGenerator())
    again = noise_alone(cohort.together()[0], cohort)
    mean = float((noise * again).mean())
    assert abs(mean) < stats.norm.isf(FALSE_ALARM / 2) / math.sqrt(noise.size)


def test_batches_and_noise_together_are_distributed_as_alone() -> None:
    """Other streams of the same law: projections of the weights are samples of one law."""
    made, clients = task(), 800
    samples = []
    for label in ("together", "alone"):
        cohort = Cohort(
            made,
            [12] * clients,
            TRAINING,
            DP,
            generator=lambda i, label=label: SecureGenerator.from_seed(label, i),  # type: ignore[misc]  # no default is inferred
        )
        jobs, _ = cohort.together() if label == "together" else cohort.alone()
        start = torch.stack([weights(job) for job in cohort.jobs()])
        samples.append((torch.stack([weights(job) for job in jobs]) - start).double().numpy())
    directions = np.random.default_rng(5).normal(size=(samples[0].shape[1], 12))
    together, alone = (sample @ directions for sample in samples)
    # Streams are fixed, so that the outcome is; the level is what a false alarm had cost.
    assert least_p(together, alone) > 1e-4 / 24
    assert least_p(together, 1.4 * alone) < 1e-4 / 24
    assert least_p(together, alone + 0.4 * alone.std(axis=0)) < 1e-4 / 24


def least_p(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the least p-value over the columns, of values and of distances from the median."""
    return min(
        float(stats.ks_2samp(a, b).pvalue)
        for x, y in zip(one.T, other.T, strict=True)
        for a, b in ((x, y), (abs(x - np.median(x)), abs(y - np.median(y))))
    )


def test_without_noise_the_same_batches_are_drawn() -> None:
    made = task()
    cohort = Cohort(made, [12] * 5, TRAINING, QUIET)
    loud = cohort.but(dp=DP)
    moved = [
        torch.stack([weights(job) for job in each.together()[0]]) for each in (cohort, cohort, loud)
    ]
    assert torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[0], moved[2])
