"""The discrete Gaussian mechanism: values rounded to a grid, and noise on the same grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from fedveil.privacy.gaussian.sampler import GaussianLaw, Integers
from fedveil.privacy.randomness import SecureGenerator, gaussians

__all__ = ["GaussianError", "GaussianMechanism"]

_BLOCK = 2**18
"""Variates drawn at once: few enough to stay in the processor's cache, many to share the calls."""

_LEAST_STD = (2.0**19, 2.0**25)
"""Standard deviations of noise on a grid, in widths, are at least the first and below its double;
or the second, where on the first rounding would cost more than a hundredth of the sensitivity."""

_MOST_ROUNDING = (0.01, 0.5)

_ROUNDING_STD = 2.0
"""A variate is a continuous one, rounded at random with this standard deviation."""

_LEAST = 2.0**-120
"""Of the noise's standard deviation; its logarithm, and that of its inverse, are finite."""

_EXPONENTS = range(-100, 101)
"""Of grids on which numbers in float32 neither overflow nor lose bits."""


class GaussianError(ValueError):
    """Noise that there is no grid for."""


@dataclass(frozen=True)
class GaussianMechanism:
    """Gaussian noise for vectors of one length and sensitivity.

    What is released is an integer vector times the width of a grid, so that the last bits of a
    number tell nothing of the sum beneath the noise, as those of a sum of floating-point numbers do
    (Mironov 2012). The width g is a power of two: no operation on the way to the released vector
    rounds but the one to the grid, and the last one, of the noisy sum, which is post-processing.
    With d the dimension, one record moves the rounded vector by at most sensitivity / g + sqrt(d);
    the noise on it is continuous noise of standard deviation sqrt(std^2 - 2^2), in widths, rounded
    at random, which is post-processing too (Peikert 2010, theorem 3.1). Their ratio is the noise
    multiplier: what rounding adds to the sensitivity, the noise has too.

    Parameters
    ----------
    noise_multiplier : float
        As accounted, >= 0; zero adds nothing, and rounds nothing.
    sensitivity : float
        L2 norm of what one record, or client, changes in the vector; > 0.
    dimension : int
        Length of the vector.

    Raises
    ------
    GaussianError
        If a figure is out of range, or the vector so long, and the noise so large, that rounding
        would double the noise.
    """

    noise_multiplier: float
    sensitivity: float
    dimension: int

    def __post_init__(self) -> None:
        z, bound = self.noise_multiplier, self.sensitivity
        if not (0.0 <= z < math.inf and 0.0 < bound < math.inf and self.dimension >= 0):
            raise GaussianError(
                f"no noise has the multiplier {z} for the sensitivity {bound} in {self.dimension} "
                "dimensions"
            )
        if z and not (_LEAST < z * bound < 1.0 / _LEAST and self._exponent in _EXPONENTS):
            raise GaussianError(
                f"noise of standard deviation {z * bound:.4g} is beyond what float32 numbers hold"
            )

    @property
    def grid(self) -> float:
        """The width of the grid; 0 without noise."""
        return 2.0**self._exponent if self.noise_multiplier else 0.0

    @property
    def std(self) -> float:
        """The standard deviation of the noise."""
        return self.grid * self._law.std if self.noise_multiplier else 0.0

    def add(self, parts: Sequence[Integers], generators: Sequence[SecureGenerator]) -> None:
        """Round vectors to the grid and add noise to them, in place.

        Parameters
        ----------
        parts : sequence of ndarray
            The coordinates of all vectors, one vector a row: each (vectors, some of the dimension),
            float32 or float64, together as many as the dimension.
        generators : sequence of SecureGenerator
            One a vector. Whoever draws its noise alone draws the same.

        Raises
        ------
        GaussianError
            If the parts are not of the dimension.
        """
        ends = list(accumulate((part.shape[1] for part in parts), initial=0))
        if ends[-1] != self.dimension:
            raise GaussianError(f"noise for {self.dimension} values was to be put on {ends[-1]}")
        if not self.noise_multiplier:
            return
        together = max(1, _BLOCK // max(1, self.dimension))
        for first in range(0, len(generators), together):
            rows = slice(first, first + together)
            for start in range(0, self.dimension, _BLOCK):
                stop = min(start + _BLOCK, self.dimension)
                noise = gaussians(generators[rows], stop - start, self._law)
                for part, begins, behind in zip(parts, ends[:-1], ends[1:], strict=True):
                    low, high = max(start, begins), min(stop, behind)
                    if low < high:
                        self._add(
                            part[rows, low - begins : high - begins],
                            noise[:, low - start : high - start],
                        )

    def _add(self, values: Integers, noise: Integers) -> None:
        exact = np.result_type(values, noise)
        units = values if values.dtype == exact else values.astype(exact)
        np.multiply(units, exact.type(1.0 / self.grid), out=units)
        np.rint(units, out=units)
        np.add(units, noise, out=units)
        np.multiply(units, exact.type(self.grid), out=values, casting="same_kind")

    @cached_property
    def _exponent(self) -> int:
        return self._choice[0]

    @cached_property
    def _law(self) -> GaussianLaw:
        return GaussianLaw(self._choice[1])

    @cached_property
    def _choice(self) -> tuple[int, float]:
        """The logarithm of the width, and the standard deviation in widths."""
        z, rounding = self.noise_multiplier, math.sqrt(self.dimension)
        for least, most in zip(_LEAST_STD, _MOST_ROUNDING, strict=True):
            if z * rounding > most * least:
                continue
            exponent = math.floor(math.log2(z * self.sensitivity / (least - z * rounding)))
            continuous = z * (self.sensitivity / 2.0**exponent + rounding)
            return exponent, math.hypot(continuous, _ROUNDING_STD)
        raise GaussianError(
            f"a noise multiplier of {z:g} on {self.dimension} values needs a finer grid than there "
            "is: the multiplier times the root of the number may be at most "
            f"{_MOST_ROUNDING[-1] * _LEAST_STD[-1]:.0f}"
        )
