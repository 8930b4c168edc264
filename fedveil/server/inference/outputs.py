"""What an answer gives away: all of it, fewer digits, fewer classes, or the class alone.

The class that an answer names is always that of the whole output: of the largest logit, the first
of equal ones; where there is one logit, whether it is above 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedveil.server.inference.errors import ServeError
from fedveil.server.inference.oip import Array, TensorSpec

__all__ = ["FULL", "OutputForm", "parse_outputs"]

_MOST_DIGITS = 6
"""A float32 tells apart all numbers from 0 to 1 with so many decimals."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class OutputForm:
    """The form of the answers.

    Parameters
    ----------
    kind : {"full", "labels", "top", "round"}
        Logits as the model gives them; the class as INT64; the probabilities of the `number` most
        probable classes, 0 for the others; all probabilities with `number` decimals.
    number : int
        See `kind`.
    """

    kind: Literal["full", "labels", "top", "round"]
    number: int = 0

    def __str__(self) -> str:
        return f"{self.kind}-{self.number}" if self.number else self.kind

    def spec(self, output: TensorSpec) -> TensorSpec:
        """Describe the answers of a model whose output is described.

        Raises
        ------
        ServeError
            If the model's output has no such form.
        """
        if self.kind == "full":
            return output
        if output.numpy.kind != "f":
            raise ServeError(
                f"--outputs {self}: the model gives {output.dtype}, and no logits of classes"
            )
        classes = output.row_shape[-1] if output.row_shape else 1
        if self.kind == "top" and self.number >= max(classes, 2):
            raise ServeError(
                f"--outputs {self}: the model has {max(classes, 2)} classes; take fewer than these"
            )
        if self.kind == "top" and classes == 1:
            raise ServeError(
                f"--outputs {self}: the model gives one logit for two classes; take labels or "
                "round-D"
            )
        if self.kind == "labels":
            return replace(output, dtype="INT64", row_shape=output.row_shape[:-1])
        return replace(output, dtype="FP32")

    def apply(self, logits: Array) -> Array:
        """Return the answers for some outputs of the model.

        Parameters
        ----------
        logits : ndarray, shape (n, ..., classes) or (n,)
            What the model gives, as `spec` was told; not changed.

        Raises
        ------
        ArithmeticError
            If a row has NaN, or no largest finite value, and so no class.
        """
        if self.kind == "full":
            return logits
        if logits.ndim == 1:
            return self._one(logits[:, np.newaxis]).reshape(len(logits))
        return self._one(logits) if logits.shape[-1] == 1 else self._many(logits)

    def _one(self, logits: Array) -> Array:
        wide: Floats = logits.astype(np.float64)
        if np.isnan(wide).any():
            raise ArithmeticError("an output is no number")
        is_yes = wide > 0
        if self.kind == "labels":
            answer: Array = is_yes[..., 0].astype(np.int64)
            return answer
        unit = 10**self.number
        with np.errstate(over="ignore"):
            steps = np.rint(unit / (1 + np.exp(-wide))).astype(np.int64)
        kept = np.where(is_yes, np.maximum(steps, unit // 2 + 1), steps)
        rounded: Array = (kept / unit).astype(np.float32)
        return rounded

    def _many(self, logits: Array) -> Array:
        wide: Floats = logits.reshape(-1, logits.shape[-1]).astype(np.float64)
        rows, labels = np.arange(len(wide)), wide.argmax(1)
        largest = wide[rows, labels]
        if not np.isfinite(largest).all():
            raise ArithmeticError("a row of the output has no largest number")
        if self.kind == "labels":
            named: Array = labels.astype(np.int64)
            return named.reshape(logits.shape[:-1])
        shares: Floats = np.exp(wide - largest[:, np.newaxis])
        shares /= shares.sum(1, keepdims=True)
        if self.kind == "round":
            unit = 10**self.number
            steps: Floats = np.rint(shares * unit)
            most = np.maximum(steps[rows, labels], 1.0)
            _lead(steps, labels, most, most - 1)
            return _as_sent(steps / unit, logits)
        # As float32 already, so that shares which it cannot tell apart are seen to be equal.
        single = shares.astype(np.float32)
        order = np.argsort(-wide, axis=1, kind="stable")[:, : self.number]
        kept: Floats = np.zeros(wide.shape)
        kept[rows[:, np.newaxis], order] = single[rows[:, np.newaxis], order]
        most32 = single[rows, labels]
        _lead(kept, labels, most32.astype(np.float64), np.nextafter(most32, np.float32(0)))
        return _as_sent(kept, logits)


FULL = OutputForm("full")


def parse_outputs(text: str) -> OutputForm:
    """Return the form that ``--outputs`` names.

    Raises
    ------
    ServeError
        If it names none.
    """
    if text == "full":
        return FULL
    if text == "labels":
        return OutputForm("labels")
    found = re.fullmatch(r"(top|round)-([1-9][0-9]{0,5})", text)
    if found is not None:
        number = int(found[2])
        if found[1] == "top":
            return OutputForm("top", number)
        if number <= _MOST_DIGITS:
            return OutputForm("round", number)
    raise ServeError(
        f"--outputs {text}: is none of full, labels, top-K (the K most probable classes) and "
        f"round-D (probabilities with D decimals, 1 to {_MOST_DIGITS})"
    )


def _as_sent(values: Floats, like: Array) -> Array:
    single: Array = values.astype(np.float32)
    return single.reshape(like.shape)


def _lead(values: Floats, labels: NDArray[np.intp], most: Floats, less: Array) -> None:
    """Put `most` at the label of each row, and lower what is before it and not below that."""
    columns = np.arange(values.shape[1])
    ties = (columns < labels[:, np.newaxis]) & (values >= most[:, np.newaxis])
    if ties.any():
        np.copyto(values, less[:, np.newaxis], where=ties)
    values[np.arange(len(values)), labels] = most
