"""What the server makes of a sum in each privacy mode: the step, and the next clip norm."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedveil.client.shared_noise import bit_noise, skellam_mechanism
from fedveil.client.sum_check import rotation_seed
from fedveil.config import Config
from fedveil.privacy.clipping import next_clip_norm, update_noise_multiplier
from fedveil.privacy.gaussian.mechanism import GaussianMechanism
from fedveil.privacy.randomness import SecureGenerator
from fedveil.privacy.skellam.mechanism import SkellamMechanism
from fedveil.strategies.private_sums import PrivateSum, Total

__all__ = ["CentralNoise", "SharedNoiseSum", "private_sum"]

_CLIP_NORM = "clip_norm"


def private_sum(
    config: Config, noise: float, dimension: int, trainable: frozenset[str]
) -> PrivateSum:
    """Return what makes steps out of sums, in the modes whose noise is not each client's own.

    Parameters
    ----------
    config : Config
        The settings.
    noise : float
        Noise multiplier.
    dimension : int
        Floating-point numbers of the model.
    trainable : frozenset of str
        Names of the arrays that move.
    """
    if config.dp.noise == "distributed":
        return SharedNoiseSum(config, noise, dimension, trainable)
    return CentralNoise(config, noise, trainable)


class _AdaptiveClip:
    """The clip norm from round to round, as `PrivateSum` shows it.

    Parameters
    ----------
    config : Config
        The settings.
    trainable : frozenset of str
        Names of the arrays that move.
    """

    def __init__(self, config: Config, trainable: frozenset[str]) -> None:
        self._config = config
        self._clip_norm = config.dp.clip_norm
        self._trainable = trainable

    @property
    def clip_norm(self) -> float | None:
        """Clip norm of the next round, where it adapts."""
        return None if self._config.dp.adaptive is None else self._clip_norm

    @property
    def largest_norm(self) -> float:
        """Clip norm of the next round."""
        return self._clip_norm

    @property
    def trainable(self) -> frozenset[str]:
        """Names of the arrays that move."""
        return self._trainable

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return the clip norm of the next round."""
        return {} if self.clip_norm is None else {_CLIP_NORM: np.array([self._clip_norm])}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on with the clip norm that was committed."""
        if self.clip_norm is not None:
            self._clip_norm = float(state[_CLIP_NORM][0])

    def _adapt(self, noisy_bits: float) -> None:
        """Choose the next clip norm.

        Parameters
        ----------
        noisy_bits : float
            Noisy sum of b - 1/2 over the clients, b = 1 where the update was within.
        """
        adaptive = self._config.dp.adaptive
        if adaptive is None:
            return
        # Over the planned cohort, as the sum itself: a client that is missing counts one half.
        fraction = noisy_bits / self._config.federation.cohort + 0.5
        found = next_clip_norm(
            self._clip_norm, fraction, adaptive.target_quantile, adaptive.learning_rate
        )
        secagg = self._config.secagg
        # The encoding of updates has no room for more.
        is_bounded = secagg.enabled and self._config.dp.noise == "central"
        self._clip_norm = min(found, secagg.clip_norm) if is_bounded else found


class SharedNoiseSum(_AdaptiveClip):
    """Steps of record/distributed and client/distributed: the sum comes with all of its noise.

    In record/distributed it is one step of DP-SGD on the union of the clients' records (Abadi et
    al. 2016, Algorithm 1), with `training.learning_rate`; the strategy takes it for the mean
    update, so that its server optimiser works on it.

    Parameters
    ----------
    config : Config
        The settings.
    noise : float
        Noise multiplier.
    dimension : int
        Floating-point numbers of the model.
    trainable : frozenset of str
        Names of the arrays that move.
    """

    def __init__(
        self, config: Config, noise: float, dimension: int, trainable: frozenset[str]
    ) -> None:
        super().__init__(config, trainable)
        self._noise = noise
        self._dimension = dimension

    @property
    def integers(self) -> int:
        """How many integers each client answers with."""
        return self._mechanism().length

    def step(self, turn: tuple[int, int], total: Total) -> NDArray[np.float64]:
        """Return the step that the decoded sum gives; see `PrivateSum`."""
        mechanism, cohort = self._mechanism(), self._config.federation.cohort
        values = total.values.astype(np.int64)
        vector = mechanism.decode(values, rotation_seed(self._config, *turn))
        if self._config.dp.adaptive is not None:
            self._adapt(mechanism.decode_bits(values))
        if self._config.dp.unit == "client":
            return vector / cohort
        training = self._config.training
        expected = training.sampling_rate * (training.nominal_records or 1) * cohort
        return vector * (-training.learning_rate / expected)

    def _mechanism(self) -> SkellamMechanism:
        return skellam_mechanism(self._config, self._dimension, self._noise, self._clip_norm)


class CentralNoise(_AdaptiveClip):
    """Steps of client/central: the server adds Gaussian noise to the sum of clipped updates.

    McMahan et al. 2018, Algorithm 1, with a fixed denominator; with an adaptive clip norm Andrew
    et al. 2021, Algorithm 1.

    Parameters
    ----------
    config : Config
        The settings.
    noise : float
        Noise multiplier, of updates and bits together.
    trainable : frozenset of str
        Names of the arrays that move.
    """

    integers = None

    def __init__(self, config: Config, noise: float, trainable: frozenset[str]) -> None:
        super().__init__(config, trainable)
        self._noise = noise

    def step(self, turn: tuple[int, int], total: Total) -> NDArray[np.float64]:
        """Return the noisy sum over the planned cohort; see `PrivateSum`."""
        config, noise = self._config, self._noise
        generator = self._generator(turn)
        sensitivity = self._clip_norm + total.rounding
        if config.dp.adaptive is not None:
            bits = bit_noise(config, noise)
            noise = update_noise_multiplier(noise, bits)
            within = np.array([[total.within - total.clients / 2.0]])
            GaussianMechanism(2.0 * bits, 0.5, 1).add([within], [generator])
            self._adapt(float(within[0, 0]))
        noisy = total.values.astype(np.float64)
        GaussianMechanism(noise, sensitivity, len(noisy)).add([noisy[None]], [generator])
        return noisy / config.federation.cohort

    def _generator(self, turn: tuple[int, int]) -> SecureGenerator:
        seed = self._config.dp.insecure_seed
        if seed is None:
            return SecureGenerator()
        return SecureGenerator.from_seed("insecure", seed, "server", *turn)
