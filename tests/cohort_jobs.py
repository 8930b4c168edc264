"""Jobs of several clients to train together and alone, and what came of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from gradient_models import Case, Loss
from torch import Tensor, nn

from fedveil.client.trainer import Alone, TrainingJob
from fedveil.config import DpConfig, TrainingConfig
from fedveil.privacy.randomness import SecureGenerator
from fedveil.simulations.cohort.training import Outcome, train_together
from fedveil.tasks.base import Examples, Task

QUIET = DpConfig(noise_multiplier=1.0, clip_norm=0.5).model_copy(update={"noise_multiplier": 0.0})


class CaseTask(Task):
    """A model and records that a test made up."""

    name: ClassVar[str] = "case"
    nominal_records: ClassVar[int] = 6

    def __init__(self, case: Case) -> None:
        self._case = case

    def model(self) -> nn.Module:
        return copy.deepcopy(self._case.model)

    def load(self, partition: int, num_partitions: int) -> tuple[Examples, Examples]:
        mine = Examples(self._case.inputs, self._case.targets)
        return mine, mine

    def public_test(self) -> Examples | None:
        return None

    @property
    def loss(self) -> Loss:
        return self._case.loss

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Cohort:
    """Clients of one task; each call makes their jobs anew, with the same batches and noise."""

    task: Task
    counts: Sequence[int]
    training: TrainingConfig
    dp: DpConfig | None
    mu: float = 0.0
    generator: Callable[[int], SecureGenerator] = lambda i: SecureGenerator.from_seed("client", i)
    change: Callable[[int, Examples], Examples] = lambda _, examples: examples
    begin: Callable[[int, nn.Module], None] = lambda *_: None

    def jobs(self) -> list[TrainingJob]:
        """Return the jobs: weights and records of each client are its own."""
        everything, _ = self.task.load(0, 1)
        torch.manual_seed(11)
        start, jobs = self.task.model(), []
        for client, count in enumerate(self.counts):
            model = copy.deepcopy(start)
            for p in model.parameters():
                p.data += 0.1 * torch.randn_like(p)
            self.begin(client, model)
            chosen = torch.randint(0, len(everything), (count,))
            examples = Examples(everything.x[chosen], everything.y[chosen])
            jobs.append(
                TrainingJob(
                    model,
                    self.task,
                    self.change(client, examples),
                    self.training,
                    self.dp,
                    self.generator(client),
                    self.mu,
                )
            )
        return jobs

    def together(self) -> tuple[list[TrainingJob], list[Outcome]]:
        """Train in one call."""
        jobs = self.jobs()
        return jobs, train_together(jobs)

    def alone(self) -> tuple[list[TrainingJob], list[Outcome]]:
        """Train one after another."""
        jobs, outcomes = self.jobs(), list[Outcome]()
        for job in jobs:
            try:
                outcomes.append(Alone().train(job))
            except Exception as error:  # noqa: BLE001  # compared
                outcomes.append(error)
        return jobs, outcomes

    def but(self, **changes: object) -> Cohort:
        """Return the same with other values."""
        return replace(self, **changes)  # type: ignore[arg-type]  # names of fields


def weights(job: TrainingJob) -> Tensor:
    """Return all weights of a job's model, (parameters,)."""
    return torch.cat([p.detach().flatten() for p in job.model.parameters()])


def assert_same(cohort: Cohort, tolerance: float = 2e-5) -> None:
    """Hold each client's weights, steps and loss against those of training alone."""
    together, found = cohort.together()
    alone, expected = cohort.alone()
    for client, (one, other) in enumerate(zip(together, alone, strict=True)):
        a, b = found[client], expected[client]
        if isinstance(b, Exception):
            assert type(a) is type(b)
            assert str(a) == str(b)
            continue
        assert not isinstance(a, Exception), a
        assert a.steps == b.steps
        assert (a.loss is None) == (b.loss is None)
        if a.loss is not None and b.loss is not None:
            assert abs(a.loss - b.loss) <= tolerance * (1.0 + abs(b.loss))
        gap = (weights(one) - weights(other)).abs() / (1.0 + weights(other).abs())
        assert float(gap.max()) <= tolerance, f"client {client}: {float(gap.max())}"
