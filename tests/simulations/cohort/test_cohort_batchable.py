"""What is trained together, what alone, and for what reason."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from cohort_jobs import QUIET, CaseTask, Cohort, assert_same
from gradient_models import Case, Scaled
from numpy.typing import NDArray
from torch import Tensor, nn

from fedveil.client.probing import probing
from fedveil.client.trainer import TrainingResult
from fedveil.config import DpConfig, TrainingConfig, parse_config
from fedveil.privacy.randomness import SecureGenerator
from fedveil.simulations.cohort import training as training_module
from fedveil.simulations.cohort.batchable import unbatchable, why_alone
from fedveil.simulations.cohort.memory import Room, bytes_of
from fedveil.simulations.cohort.training import train_together
from fedveil.simulations.scenarios import built_in_scenarios
from fedveil.tasks.base import Examples
from fedveil.tasks.digits import Digits
from fedveil.tasks.models import small_cnn, tanh_mlp
from fedveil.tasks.partition import PartitionSpec

TRAINING = TrainingConfig(sampling_rate=0.5, local_steps=2, learning_rate=0.1, nominal_records=8)


def cohort_of(model: nn.Module, dp: DpConfig | None = QUIET, **changes: object) -> Cohort:
    torch.manual_seed(1)
    case = Case(model, torch.randn(20, 6), torch.randint(0, 3, (20,)))
    training = TRAINING.model_copy(update=changes)
    return Cohort(CaseTask(case), (4, 7, 0 if dp else 1), training, dp)


def reason(cohort: Cohort) -> str:
    return why_alone(cohort.jobs()[0]) or "none"


class Mixing(nn.Module):
    """Takes the mean of its batch away."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0)


class Noisy(nn.Module):
    """Draws from torch's generator."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


class Direct(nn.Module):
    """Reads a layer's weight without the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.layer(x)) @ self.layer.weight)
        return logits


class Subclass(nn.Linear):
    """Is no linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


class Shaped(nn.Module):
    """Reads the number of rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x / len(x)


def deep(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), *layers, nn.Linear(6, 3))


ALONE: dict[str, tuple[Callable[[], Cohort], str]] = {
    "Opacus' hooks": (lambda: cohort_of(deep(), engine="opacus"), "one client at a time"),
    "an unknown optimiser": (lambda: cohort_of(deep(), optimizer="adafactor"), '"adafactor" may'),
    "open noise": (
        lambda: cohort_of(deep(), QUIET.model_copy(update={"noise_multiplier": None})),
        "is open",
    ),
    "open records": (lambda: cohort_of(deep(), nominal_records=None), "is open"),
    "dropout": (lambda: cohort_of(deep(nn.Dropout(0.2))), "layer 1 is dropout"),
    "a statistic": (lambda: cohort_of(deep(nn.BatchNorm1d(6)), None), "has a buffer, 1.running"),
    "a layer of its own": (lambda: cohort_of(deep(Scaled(6))), "layer 1: layers of type Scaled"),
    "a subclass": (lambda: cohort_of(deep(Subclass(6, 6))), "layer 1: layers of type Subclass"),
    "rows that mix": (lambda: cohort_of(deep(Mixing()), None), "gave other weights"),
    "rows that are counted": (lambda: cohort_of(deep(Shaped()), None), "gave other weights"),
    "draws": (lambda: cohort_of(deep(Noisy()), None), "draws random numbers"),
    "a weight read past its layer": (lambda: cohort_of(Direct(), None), "gave other weights"),
    "circular padding": (
        lambda: cohort_of(
            nn.Sequential(
                nn.Unflatten(1, (1, 6)),
                nn.Conv1d(1, 2, 3, padding=1, padding_mode="circular"),
                nn.Flatten(),
                nn.Linear(12, 3),
            )
        ),
        "padding_mode = 'circular'",
    ),
}


@pytest.mark.parametrize("name", ALONE)
def test_what_cannot_be_batched_is_trained_alone_and_the_reason_told(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, expected = ALONE[name]
    cohort = make()
    assert expected in reason(cohort)
    with caplog.at_level(logging.INFO):
        # Nothing but the order of clients is there to differ in.
        assert_same(cohort, 0.0)


def test_the_reason_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    training_module._told.clear()
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            cohort_of(deep(nn.Dropout(0.2))).together()
    told = [r.message for r in caplog.records if "one after another" in r.message]
    assert told == [
        "clients are trained one after another: layer 1 is dropout, whose draws are each client's "
        "own"
    ]


def test_an_audit_watches_each_client() -> None:
    class Watches:
        def begin(
            self, examples: Examples, dp: DpConfig, generator: SecureGenerator
        ) -> tuple[Examples, DpConfig, SecureGenerator]:
            seen.append(len(examples))
            return examples, dp, generator

        def before_clipping(self, gradients: Sequence[Tensor], records: NDArray[np.int64]) -> None:
            pass

        def after_noise(self, sums: Sequence[Tensor]) -> None:
            pass

    seen: list[int] = []
    cohort = cohort_of(deep())
    assert reason(cohort) == "none"
    with probing(Watches()):
        assert reason(cohort) == "an audit watches each client"
        cohort.together()
    assert seen == [4, 7, 0]


@pytest.mark.parametrize("model", ["linear", "mlp"])
@pytest.mark.parametrize("mode", ["none", "record/local", "client/central", "client/distributed"])
def test_the_digits_scenario_can_be_batched_in_every_mode_but_one(mode: str, model: str) -> None:
    scenario = built_in_scenarios()["digits"]
    task = Digits(seed=0, partition=PartitionSpec(scheme="iid"), options={"model": model})
    assert unbatchable(scenario.config(mode=mode), task) is None
    alone = unbatchable(scenario.config(mode="record/distributed"), task)
    assert alone is not None
    assert "record/distributed" in alone


def test_settings_that_are_open_do_not_matter_before_a_run() -> None:
    config = parse_config({"task": {"name": "digits"}, "dp": {"target_epsilon": 8.0}}, "test")
    assert config.dp.noise_multiplier is None
    assert config.training.nominal_records is None
    assert unbatchable(config, Digits(seed=0, partition=PartitionSpec(scheme="iid"))) is None
    opacus = config.model_copy(
        update={"training": config.training.model_copy(update={"engine": "opacus"})}
    )
    assert unbatchable(opacus, Digits(seed=0, partition=PartitionSpec(scheme="iid")))


def test_jobs_that_are_unlike_go_into_cohorts_of_their_own() -> None:
    one, other = cohort_of(tanh_mlp((6, 4, 3))), cohort_of(tanh_mlp((6, 4, 3)), learning_rate=0.2)
    jobs = [job for pair in zip(one.jobs(), other.jobs(), strict=True) for job in pair]
    mixed = train_together(jobs)
    assert all(isinstance(outcome, TrainingResult) for outcome in mixed)
    for cohort, found in ((one, jobs[::2]), (other, jobs[1::2])):
        expected, _ = cohort.together()
        for a, b in zip(expected, found, strict=True):
            for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("dp", [QUIET, None])
def test_records_that_the_model_cannot_take_fail_for_their_client_alone(
    dp: DpConfig | None, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(client: int, examples: Examples) -> Examples:
        wrong = torch.full_like(examples.y, 99)
        return Examples(examples.x, wrong) if client == 1 else examples

    cohort = cohort_of(deep(), dp, sampling_rate=1.0).but(change=spoil)
    _, outcomes = cohort.together()
    assert [isinstance(o, TrainingResult) for o in outcomes] == [True, False, True]
    assert "each is trained alone" in caplog.text
    _, alone = cohort.alone()
    assert type(outcomes[1]) is type(alone[1])


def test_room_is_full_when_its_bytes_are_taken_or_there_are_many_clients() -> None:
    (job, *_) = cohort_of(deep()).jobs()
    assert bytes_of(job) > sum(p.numel() for p in job.model.parameters()) * 4
    small, large = Room(most_bytes=2 * bytes_of(job)), Room(most_bytes=2**62)
    for expected in (False, True):
        small.take(job)
        assert small.is_full == expected
    for _ in range(512):
        assert not large.is_full
        large.take(job)
    assert large.is_full


@pytest.mark.parametrize("dp", [QUIET, None])
def test_the_estimate_of_memory_is_of_the_size_of_what_is_taken(dp: DpConfig | None) -> None:
    """A convolutional network, against the tensors that live at once, as torch counts them."""
    from torch.profiler import ProfilerActivity, profile

    torch.manual_seed(2)
    case = Case(small_cnn(), torch.rand(64, 1, 28, 28), torch.randint(0, 10, (64,)))
    training = TRAINING.model_copy(update={"nominal_records": 64})
    cohort = Cohort(CaseTask(case), [64] * 6, training, dp)
    cohort.together()
    jobs = cohort.jobs()
    estimate = sum(bytes_of(job) for job in jobs)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        train_together(jobs)
    now = most = 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    assert estimate / 4 <= most <= 2 * estimate
