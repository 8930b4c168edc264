"""Losses and metrics of the two kinds of task: one class of many, and yes or no."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score
from torch import Tensor
from torch.nn import functional

from fedveil.tasks.base import Task, TaskError

__all__ = ["BinaryTask", "MultiClassTask"]

Loss = Callable[[Tensor, Tensor], Tensor]


class MultiClassTask(Task):
    """A task whose outputs are logits, shape (n, classes), and targets int64, shape (n,)."""

    @property
    def loss(self) -> Loss:
        """The mean cross entropy."""
        return functional.cross_entropy

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return ``accuracy``, ``balanced_accuracy`` (mean recall of classes present), ``loss``.

        Raises
        ------
        TaskError
            If there are no outputs, or some are NaN or infinite.
        """
        logits, truth = _checked(outputs, targets)
        quality = _quality(logits.argmax(dim=1).numpy(), truth.numpy())
        return quality | {"loss": float(self.loss(logits, truth))}


class BinaryTask(Task):
    """A task whose outputs are one logit, shape (n, 1) or (n,), and targets float32 0 or 1.

    Targets have shape (n,). The logit is of class 1; it is the answer when it is above 0.
    """

    partial_metrics: ClassVar[frozenset[str]] = frozenset({"auc"})

    @property
    def loss(self) -> Loss:
        """The mean binary cross entropy."""
        return _binary_cross_entropy

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return ``accuracy``, ``balanced_accuracy`` (mean recall of classes present), ``loss``.

        Also ``auc``, the area under the ROC curve, unless only one class is present.

        Raises
        ------
        TaskError
            If there are no outputs, or some are NaN or infinite.
        """
        logits, truth = _checked(outputs, targets)
        scores, answers = logits.reshape(len(truth)).numpy(), truth.numpy().astype(np.int64)
        quality = _quality((scores > 0).astype(np.int64), answers)
        quality["loss"] = float(self.loss(logits, truth))
        if len(np.unique(answers)) > 1:
            quality["auc"] = float(roc_auc_score(answers, scores))
        return quality


def _binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs.reshape(targets.shape), targets)


def _checked(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits, truth = outputs.detach().cpu().float(), targets.detach().cpu()
    if len(logits) == 0 or len(logits) != len(truth):
        raise TaskError(f"no metrics of {len(logits)} outputs and {len(truth)} targets")
    if not bool(torch.isfinite(logits).all()):
        # No count: it would be one of private records, and the message may leave the client.
        raise TaskError(
            "outputs are NaN or infinite: the model has diverged; lower the learning rate"
        )
    return logits, truth


def _quality(answers: NDArray[np.int64], truth: NDArray[np.int64]) -> dict[str, float]:
    recall = recall_score(truth, answers, labels=np.unique(truth), average="macro")
    return {
        "accuracy": float(accuracy_score(truth, answers)),
        "balanced_accuracy": float(recall),
    }
