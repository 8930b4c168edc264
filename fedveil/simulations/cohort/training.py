"""Jobs in, trained models out: those that are alike together, all others one after another."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fedveil.client.local_training import TrainingError, place
from fedveil.client.trainer import Alone, TrainingJob, TrainingResult
from fedveil.simulations.cohort.batchable import why_alone
from fedveil.simulations.cohort.plain import train_plainly
from fedveil.simulations.cohort.private import train_privately
from fedveil.simulations.cohort.stack import Stack

__all__ = ["Outcome", "train_together"]

Outcome = TrainingResult | Exception

_log = logging.getLogger(__name__)
_told: set[str] = set()


def train_together(jobs: Sequence[TrainingJob]) -> list[Outcome]:
    """Train each job's model in place, as `Alone` does, the jobs that are alike in one call.

    Returns
    -------
    list of TrainingResult or Exception
        For each job what `Alone` would return or raise. With the same generators the weights are
        the same but for rounding.
    """
    outcomes: dict[int, Outcome] = {}
    for alike in _alike(jobs):
        group = [jobs[i] for i in alike]
        reason = why_alone(group[0])
        if reason is None:
            found = _batched(group)
        else:
            _tell_once(f"clients are trained one after another: {reason}")
            found = [_alone(job) for job in group]
        outcomes.update(zip(alike, found, strict=True))
    return [outcomes[i] for i in range(len(jobs))]


def _alike(jobs: Sequence[TrainingJob]) -> Iterator[list[int]]:
    """Yield which jobs may go into one stack."""
    groups: list[list[int]] = []
    for i, job in enumerate(jobs):
        group = next((g for g in groups if _are_alike(jobs[g[0]], job)), None)
        if group is None:
            groups.append([i])
        else:
            group.append(i)
    yield from groups


def _are_alike(one: TrainingJob, other: TrainingJob) -> bool:
    same = (
        one.task is other.task
        and one.training == other.training
        and one.dp == other.dp
        and one.proximal_mu == other.proximal_mu
    )
    # Without privacy somebody who has no records is an error of its own.
    has_records = bool(len(one.examples)) == bool(len(other.examples)) or one.dp is not None
    return same and has_records and _shapes(one) == _shapes(other)


def _shapes(job: TrainingJob) -> list[tuple[torch.Size, torch.dtype]]:
    return [(part.shape[1:], part.dtype) for part in (job.examples.x, job.examples.y)]


def _batched(jobs: Sequence[TrainingJob]) -> list[Outcome]:
    if jobs[0].dp is None and not len(jobs[0].examples):
        return [_alone(job) for job in jobs]
    stack = Stack([job.model for job in jobs])
    place(nn.ParameterList(stack.weights.values()), jobs[0].training.device)
    losses: Sequence[float | None] = [None] * len(jobs)
    for job in jobs:
        # The seed of dropout and the like, which a client draws when it trains alone.
        job.generator.words(1)
    try:
        if jobs[0].dp is None:
            losses = train_plainly(jobs, stack)
        else:
            train_privately(jobs, stack)
    except Exception as error:  # noqa: BLE001  # one client's records must not stop the others
        _log.warning(
            "training %d clients at once failed (%s); each is trained alone, with batches and "
            "noise drawn anew",
            *(len(jobs), error),
        )
        return [_alone(job) for job in jobs]
    return _taken_home(jobs, stack, losses)


def _taken_home(
    jobs: Sequence[TrainingJob], stack: Stack, losses: Sequence[float | None]
) -> list[Outcome]:
    """Give each client its weights, unless they are not to leave it."""
    stacked = [own.detach() for own in stack.weights.values()]
    broken = _broken(stack) if jobs[0].dp is not None else [None] * len(jobs)
    outcomes: list[Outcome] = []
    for client, (job, loss, name) in enumerate(zip(jobs, losses, broken, strict=True)):
        if name is not None:
            outcomes.append(
                TrainingError(
                    f"training left NaN or infinity in {name}; lower training.learning_rate"
                )
            )
            continue
        for p, own in zip(job.model.parameters(), stacked, strict=True):
            p.data = own[client]
        outcomes.append(TrainingResult(job.training.local_steps, loss))
    return outcomes


def _broken(stack: Stack) -> list[str | None]:
    """Return the first of each client's parameters that is not finite, None where all are."""
    names = [name for name, _ in stack.model.named_parameters()]
    largest = torch.stack([_largest(own.detach()) for own in stack.weights.values()], dim=1)
    return [
        None if all(finite) else names[finite.index(False)]
        for finite in torch.isfinite(largest).tolist()
    ]


def _largest(own: Tensor) -> Tensor:
    """Return each client's largest magnitude, NaN where there is one."""
    largest: Tensor = torch.linalg.vector_norm(own.flatten(1), ord=torch.inf, dim=1)
    return largest


def _alone(job: TrainingJob) -> Outcome:
    try:
        return Alone().train(job)
    except Exception as error:  # noqa: BLE001  # raised again where the client waits for it
        return error


def _tell_once(words: str) -> None:
    if words not in _told:
        _told.add(words)
        _log.info(words)
