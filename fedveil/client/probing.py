"""A way into DP training for an audit: canaries in, noisy sums out. No deployed client opens it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedveil.config import DpConfig
from fedveil.privacy.randomness import SecureGenerator
from fedveil.tasks.base import Examples

__all__ = ["Probe", "current_probe", "probing"]


class Probe(Protocol):
    """Whoever puts records of its own into DP training, and watches what is released."""

    def begin(
        self, examples: Examples, dp: DpConfig, generator: SecureGenerator
    ) -> tuple[Examples, DpConfig, SecureGenerator]:
        """Hear that a client begins a round; return what it is to train with."""

    def before_clipping(self, gradients: Sequence[Tensor], records: NDArray[np.int64]) -> None:
        """See, and change in place, the gradients of these records: each (records, *shape)."""

    def after_noise(self, sums: Sequence[Tensor]) -> None:
        """See the noisy sum of each parameter's gradients, before it is divided."""


_probe: ContextVar[Probe | None] = ContextVar("fedveil_probe", default=None)


def current_probe() -> Probe | None:
    """Return the probe that this thread trains under; None but in an audit."""
    return _probe.get()


@contextmanager
def probing(probe: Probe) -> Iterator[None]:
    """Let `probe` into every DP training of this thread, until the end."""
    token = _probe.set(probe)
    try:
        yield
    finally:
        _probe.reset(token)
