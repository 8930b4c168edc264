"""Checks that refuse, before any training, what would make a privacy claim false."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from fedveil.errors import FedveilError
from fedveil.privacy.accounting import Release, epsilon

__all__ = [
    "PROBE_RECORDS",
    "PreflightError",
    "check_client_sampling",
    "check_delta",
    "check_denominator",
    "check_epsilon",
    "check_finite",
    "check_loss",
    "check_model",
    "check_noise",
    "check_preprocessing",
    "check_records_do_not_mix",
    "check_sampling",
    "check_seed",
    "check_sensitivity",
]

PROBE_RECORDS = 4
"""Records that a model is tried with."""

_MOST_DEVIATIONS = 7.0
"""Of a measured noise: sound noise is farther off once in 10^11 checks."""


class PreflightError(FedveilError):
    """A setting under which the privacy claim would be false."""


def check_delta(delta: float, count: int, units: str = "records a client") -> None:
    """Refuse a delta that publishing one unit outright would satisfy.

    Releasing one of n, drawn at random, is (0, 1/n)-differentially private.

    Parameters
    ----------
    delta : float
        As claimed.
    count : int
        Public number of units that a sum is over.
    units : str
        What they are.
    """
    if delta >= 1.0 / count:
        raise PreflightError(
            f"dp.delta = {delta:g} is no protection for {count} {units}: it must be below "
            f"1/{count} = {1.0 / count:.3g}"
        )


def check_preprocessing(task: str, *, is_independent: bool) -> None:
    """Refuse data in which one record has changed the others."""
    if not is_independent:
        raise PreflightError(
            f"task {task}: its examples are computed with statistics of private records, so one "
            "record changes the others and clipping does not bound it; use public constants, or "
            'ask for no privacy with dp.unit = "none"'
        )


def check_finite(non_finite: int) -> None:
    """Refuse data with NaN or infinity.

    The message tells no count: it may leave the client, and counts of records are private.
    """
    if non_finite:
        raise PreflightError(
            "training records hold NaN or infinity (the client's own log says how many); repair "
            "or drop them"
        )


def check_model(model: nn.Module) -> None:
    """Refuse layers that mix records (BatchNorm) or have no per-record gradient.

    The rules are those of Opacus' `ModuleValidator`.
    """
    errors = ModuleValidator.validate(model, strict=False)
    if errors:
        first = " ".join(str(errors[0]).split())
        raise PreflightError(f"the model cannot be trained with per-record gradients: {first}")


def check_records_do_not_mix(model: nn.Module, inputs: Tensor) -> None:
    """Refuse a model whose output for one record depends on the others in the batch.

    Parameters
    ----------
    model : nn.Module
        The model.
    inputs : Tensor
        Some records, shape (n, ...); a few are enough.
    """
    probe = inputs[:PROBE_RECORDS]
    if len(probe) < 2:
        return
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            together = model(probe)
            apart = torch.cat([model(row[None]) for row in probe])
    finally:
        model.train(training)
    if together.shape != apart.shape or not torch.allclose(together, apart, rtol=1e-3, atol=1e-4):
        raise PreflightError(
            "the model's output for a record depends on the other records of the batch, so that "
            "clipping a record's gradient does not bound what the record can change"
        )


def check_loss(
    loss: Callable[[Tensor, Tensor], Tensor], model: nn.Module, inputs: Tensor, targets: Tensor
) -> None:
    """Refuse a loss that is not the mean of one term a record."""
    x, y = inputs[:PROBE_RECORDS], targets[:PROBE_RECORDS]
    if len(x) < 2:
        return
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            together = float(loss(model(x), y))
            apart = [float(loss(model(a[None]), b[None])) for a, b in zip(x, y, strict=True)]
    finally:
        model.train(training)
    mean = sum(apart) / len(apart)
    if not math.isclose(together, mean, rel_tol=1e-3, abs_tol=1e-4):
        raise PreflightError(
            "the loss of a batch is not the mean of its records' losses, so that per-record "
            "gradients do not add up to its gradient"
        )


def check_sampling(sampling: str) -> None:
    """Refuse batches whose accounting as Poisson samples would be wrong."""
    if sampling != "poisson":
        raise PreflightError(
            f'training.sampling = "{sampling}" cannot be accounted as Poisson sampling; use '
            '"poisson"'
        )


def check_denominator(task: str, published: object, nominal_records: int | None) -> None:
    """Refuse to divide by what may be counted from private records.

    Parameters
    ----------
    task : str
        Name of the task.
    published : object
        `nominal_records` of its class: a number written there, nothing that is computed.
    nominal_records : int, optional
        As configured; None where it is still open.
    """
    if not isinstance(published, int):
        raise PreflightError(
            f"task {task}: its nominal_records is computed, so that it may be a private count; "
            "write the published number into the class"
        )
    if nominal_records is None:
        raise PreflightError(
            "training.nominal_records is open: noisy sums would be divided by a private count"
        )


def check_seed(insecure_seed: int | None) -> None:
    """Refuse noise that can be repeated, and with that subtracted."""
    if insecure_seed is not None:
        raise PreflightError(
            f"dp.insecure_seed = {insecure_seed} makes the noise repeatable: a run with it claims "
            "nothing; leave it out"
        )


def check_epsilon(releases: Iterable[Release], delta: float, target: float | None) -> None:
    """Refuse a plan whose epsilon, at the delta of the claim itself, passes the budget."""
    planned = epsilon(releases, delta)
    if target is not None and planned > target:
        raise PreflightError(
            f"the planned rounds cost epsilon = {planned:.4g} at delta = {delta:g}, more than "
            f"dp.target_epsilon = {target:g}: the noise was calibrated for something else, such "
            "as another delta"
        )


def check_client_sampling(releases: Iterable[Release], sampling_rates: Sequence[float]) -> None:
    """Refuse releases accounted at a rate at which no record is sampled.

    That a client is drawn into a cohort amplifies nothing: the server sees who takes part.

    Parameters
    ----------
    releases : iterable of Release
        The plan.
    sampling_rates : sequence of float
        Rates at which records are sampled, by clients who take part.
    """
    for release in releases:
        if release.sampling_rate not in sampling_rates:
            raise PreflightError(
                f"a release is accounted at sampling rate {release.sampling_rate:g}, and records "
                f"are sampled at {', '.join(f'{rate:g}' for rate in sampling_rates)}: the "
                "sampling of clients must not be counted, since the server sees who takes part"
            )


def check_sensitivity(
    clipped: Sequence[Tensor], gradients: Sequence[Sequence[Tensor]], clip_norm: float
) -> None:
    """Refuse training in which a record can change the sum by more than the clip norm.

    Parameters
    ----------
    clipped : sequence of Tensor
        What training adds up for some records, one tensor a parameter.
    gradients : sequence of sequence of Tensor
        Each record's own gradient, by another way.
    clip_norm : float
        L2 bound that the noise is scaled with.
    """
    expected = [torch.zeros_like(total) for total in clipped]
    for gradient in gradients:
        norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradient))
        for total, g in zip(expected, gradient, strict=True):
            total += g * min(1.0, clip_norm / max(norm, 1e-30))
    apart = math.sqrt(
        sum(float(((a - b).double() ** 2).sum()) for a, b in zip(clipped, expected, strict=True))
    )
    if not apart <= 1e-3 * clip_norm * max(1, len(gradients)):
        # No figure: it would be one of private records, and the message may leave the client.
        raise PreflightError(
            "the sum of some records' clipped gradients is far from what dp.clip_norm = "
            f"{clip_norm:g} gives: a layer's per-record gradients are wrong, or clipped at another "
            "norm than the noise is scaled with"
        )


def check_noise(noise: Tensor, std: float) -> None:
    """Refuse noise whose measured standard deviation is not the one that is accounted.

    Parameters
    ----------
    noise : Tensor
        What was added to a sum of nothing, shape (n,).
    std : float
        Noise multiplier times clip norm.
    """
    measured = float(noise.double().square().mean().sqrt())
    tolerance = _MOST_DEVIATIONS * std / math.sqrt(2.0 * max(1, noise.numel()))
    if not abs(measured - std) <= tolerance:
        raise PreflightError(
            f"the noise has a standard deviation of {measured:.4g}, measured over "
            f"{noise.numel()} values, and {std:.4g} is accounted"
        )
