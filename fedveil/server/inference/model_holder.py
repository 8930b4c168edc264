"""What is served now, and what was served before it: one reference, swapped at once."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

__all__ = ["ModelHolder"]

Model = TypeVar("Model")


class ModelHolder(Generic[Model]):
    """Holds the model that answers, and the last one for roll-back.

    Readers take no lock: they read one attribute, once, and go on with what they got. A swap
    therefore stops nobody, and whoever began with the old model ends with it.

    Parameters
    ----------
    first : Model
        What is served until the first swap.
    """

    def __init__(self, first: Model) -> None:
        # One tuple, so that a reader of both never sees halves of two swaps.
        self._models: tuple[Model, Model | None] = (first, None)
        self._swapping = threading.Lock()

    @property
    def current(self) -> Model:
        """What answers now."""
        return self._models[0]

    @property
    def kept(self) -> tuple[Model, ...]:
        """All that is in memory, the current one first."""
        current, last = self._models
        return (current,) if last is None else (current, last)

    def swap(self, model: Model) -> None:
        """Serve a model from now on, and keep the one before."""
        with self._swapping:
            self._models = (model, self._models[0])

    def roll_back(self) -> bool:
        """Serve the model before, and keep the one that was served; False if there is none."""
        with self._swapping:
            current, last = self._models
            if last is None:
                return False
            self._models = (last, current)
            return True
