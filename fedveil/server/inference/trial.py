"""What a model must show before anybody may ask it: sound answers, a row's own whatever is beside.

Requests of strangers are run in one batch. Were the answer to a row to depend on the rows beside
it, a caller would learn of what others send, and the same input would not have one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fedveil.server.inference.oip import Array, TensorSpec

__all__ = ["Trial"]

_RANDOM_ROWS = 3
_WILD_ROWS = 8
_WILD_SCALE = 1000.0
_FLOOR = 1e-6


class Trial:
    """Rows that a model is tried with.

    Parameters
    ----------
    given : TensorSpec
        What the model takes.
    tolerance : float
        Differences that rounding may make between batches of other shapes, as a part of the
        largest answer.
    """

    def __init__(self, given: TensorSpec, tolerance: float) -> None:
        self._tolerance = tolerance
        random = np.random.default_rng(0)
        # Zeros and ones are inputs that every model takes, and any weight that is not finite
        # makes its mark on the outputs of one of them.
        golden = [np.full(given.row_shape, value, given.numpy) for value in (0, 1)]
        shape = (_RANDOM_ROWS + _WILD_ROWS, *given.row_shape)
        if given.numpy.kind == "f":
            rows = random.random(shape).astype(given.numpy)
            # Large numbers beside a row show even a small share that they have in its answer.
            rows[_RANDOM_ROWS:] = (rows[_RANDOM_ROWS:] - 0.5) * _WILD_SCALE
        else:
            rows = random.integers(0, given.below or 2, shape).astype(given.numpy)
        self._probes = np.concatenate([np.stack(golden), rows[:_RANDOM_ROWS]])
        self._wild = rows[_RANDOM_ROWS:]

    @property
    def golden(self) -> Array:
        """Zeros and ones, shape (2, ...)."""
        return self._probes[:2]

    def fault(
        self,
        plain: Callable[[Array], Array],
        answer: Callable[[Array], Array],
        numbers: Sequence[int],
    ) -> str | None:
        """Return what is wrong with a model, as the rest of a sentence; None if nothing is.

        Running this is also the model's warm-up.

        Parameters
        ----------
        plain : callable
            Runs the model on exactly the rows that it is given.
        answer : callable
            Runs it as it will be run, padded or compiled.
        numbers : sequence of int
            Numbers of rows to try `answer` with.
        """
        alone = [plain(row[np.newaxis]) for row in self._probes]
        shape = alone[0].shape
        if not shape or shape[0] != 1 or any(found.shape != shape for found in alone):
            return (
                f"gives shape {shape} for one row: only models with one output row a record are "
                "served"
            )
        wanted = np.concatenate(alone)
        if wanted.dtype.kind == "f" and not np.isfinite(wanted).all():
            return "answers a golden input with NaN or infinity: it has diverged"
        largest = float(np.abs(wanted.astype(np.float64)).max(initial=_FLOOR))
        for number in numbers:
            # First, in the middle and last, with nothing but large numbers beside it.
            for which, place in enumerate((0, number // 2, number - 1), len(self.golden)):
                rows = np.resize(self._wild, (number, *self._wild.shape[1:]))
                rows[place] = self._probes[which]
                found = answer(rows)
                if found.shape != (number, *shape[1:]):
                    return (
                        f"gives shape {found.shape} for {number} rows: only models with one output "
                        "row a record are served"
                    )
                gap = self._gap(found[place], alone[which][0], largest)
                if not gap <= self._tolerance:
                    return (
                        f"answers a row otherwise in a batch of {number} rows than alone (by "
                        f"{gap:.1g} of the largest answer): strangers' requests share batches, so "
                        "that answers would tell of others' inputs"
                    )
        return None

    @staticmethod
    def _gap(found: Array, wanted: Array, largest: float) -> float:
        """Return the largest difference as a part of the largest answer; NaN if it is none."""
        if wanted.dtype.kind != "f":
            return 0.0 if np.array_equal(found, wanted) else 1.0
        apart = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
        return float(apart.max(initial=0.0)) / largest
