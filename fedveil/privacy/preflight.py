"""Checks that refuse, before any training, what would make a privacy claim false."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from fedveil.errors import FedveilError

__all__ = [
    "PreflightError",
    "check_delta",
    "check_finite",
    "check_loss",
    "check_model",
    "check_preprocessing",
    "check_records_do_not_mix",
]

_PROBE_RECORDS = 4


class PreflightError(FedveilError):
    """A setting under which the privacy claim would be false."""


def check_delta(delta: float, nominal_records: int) -> None:
    """Refuse a delta that publishing one record outright would satisfy.

    Releasing one record of n, drawn at random, is (0, 1/n)-differentially private.
    """
    if delta >= 1.0 / nominal_records:
        raise PreflightError(
            f"dp.delta = {delta:g} is no protection for {nominal_records} records a client: it "
            f"must be below 1/{nominal_records} = {1.0 / nominal_records:.3g}"
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
    probe = inputs[:_PROBE_RECORDS]
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
    x, y = inputs[:_PROBE_RECORDS], targets[:_PROBE_RECORDS]
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
