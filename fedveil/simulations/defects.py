"""Defects that an audit must catch: what could go wrong in a client's training, built in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedveil.config import DpConfig
from fedveil.privacy.gaussian.sampler import GaussianLaw, Integers
from fedveil.privacy.randomness import SecureGenerator

__all__ = ["DEFECTS", "Defect", "build_in"]

Defect = Literal["no-noise", "half-noise", "no-clipping", "repeated-noise", "shared-noise"]

DEFECTS: Mapping[Defect, str] = {
    "no-noise": "no noise is added",
    "half-noise": "the noise has half of the claimed standard deviation",
    "no-clipping": "gradients are not clipped",
    "repeated-noise": "each step of a client adds the same noise",
    "shared-noise": "all clients add the same noise",
}

_NO_BOUND = 1e9


class _KeyedNoise(SecureGenerator):
    """Draws batches from another generator, and its noise always from the same key.

    Parameters
    ----------
    batches : SecureGenerator
        Where all but the noise is from.
    key : str
        What the noise is from.
    is_numbered : bool
        Whether the noise of each step of a round is another one.
    """

    def __init__(self, batches: SecureGenerator, key: str, *, is_numbered: bool) -> None:
        super().__init__()
        self._batches = batches
        self._key = key
        self._is_numbered = is_numbered
        self._draws = 0

    def words(self, count: int) -> NDArray[np.uint64]:
        return self._batches.words(count)

    def gaussian(self, count: int, law: GaussianLaw) -> Integers:
        self._draws += self._is_numbered
        return SecureGenerator.from_seed(self._key, self._draws).gaussian(count, law)


def build_in(
    defect: Defect, dp: DpConfig, generator: SecureGenerator, client: int, round_: int
) -> tuple[DpConfig, SecureGenerator]:
    """Return what a client with the defect trains with, in place of what is claimed.

    Parameters
    ----------
    defect : str
        One of `DEFECTS`.
    dp : DpConfig
        As claimed.
    generator : SecureGenerator
        Source of batches and noise.
    client, round_ : int
        Whose training it is, and which.
    """
    noise = dp.noise_multiplier or 0.0
    match defect:
        case "no-noise":
            return dp.model_copy(update={"noise_multiplier": 0.0}), generator
        case "half-noise":
            return dp.model_copy(update={"noise_multiplier": noise / 2.0}), generator
        case "no-clipping":
            # The same noise in absolute terms, and a bound that no gradient reaches.
            update = {
                "clip_norm": dp.clip_norm * _NO_BOUND,
                "noise_multiplier": noise / _NO_BOUND,
            }
            return dp.model_copy(update=update), generator
        case "repeated-noise":
            return dp, _KeyedNoise(generator, f"repeated {client}", is_numbered=False)
        case "shared-noise":
            return dp, _KeyedNoise(generator, f"shared {round_}", is_numbered=True)
