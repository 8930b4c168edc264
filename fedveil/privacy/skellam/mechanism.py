"""The Skellam mechanism for a sum over clients: its public constants, encoding, decoding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedveil.privacy.accounting import IntegerSensitivity
from fedveil.privacy.clipping import update_noise_multiplier
from fedveil.privacy.randomness import SecureGenerator
from fedveil.privacy.skellam.errors import SkellamError, VectorError
from fedveil.privacy.skellam.rotation import block_size, rotate, unrotate
from fedveil.privacy.skellam.rounding import project, round_coupled, round_within
from fedveil.privacy.skellam.sampler import LARGEST_VARIANCE, draw_skellam
from fedveil.privacy.skellam.scale import (
    least_resolution,
    longest_before_rounding,
    rounded_square,
)
from fedveil.privacy.skellam.tails import wrap_bound

__all__ = ["LARGEST_WRAP_PROBABILITY", "SkellamMechanism"]

LARGEST_WRAP_PROBABILITY = 1e-6
"""More than this, that a sum passes the ring in a round, is refused."""

_FLOAT_ERROR = 2.0**-44
"""Bounds the relative error of projecting, scaling and rotating a vector in double precision."""

_LEAST_CLIP_NORM = 1e-100

_LARGEST_NOISE = 1e30
"""Multiples of the clip norm; the squares of such figures, and their products, are finite."""

_RING_BITS = (16, 32)


@dataclass(frozen=True)
class SkellamMechanism:
    """What is public of a sum over clients under distributed Skellam noise.

    Each client rotates its vector, scales it, rounds it to integers and adds its share of the
    noise; secure aggregation sums the results modulo 2^`ring_bits`. The shares of the honest
    clients in the sum come to `variance`, whoever else is in it. That the sum wraps around the
    ring is post-processing: it costs accuracy, never privacy.

    The scale, the sensitivity and the noise in integer units do not depend on `clip_norm`, and
    the sensitivity does not depend on `noise_multiplier`.

    Parameters
    ----------
    unit : {"record", "client"}
        Whom the noise protects.
    dimension : int
        Coordinates of a client's vector, d.
    clip_norm : float
        L2 bound of what one unit adds: of a record's gradient, or of a client's update.
    noise_multiplier : float
        Standard deviation of the honest clients' noise in the sum over the L2 sensitivity.
    clients : int
        Most clients in a sum.
    honest : int
        Least number of clients in a sum that add their share and keep it secret.
    ring_bits : {16, 32}
        Bits of a word of the sum.
    max_records : int
        With the unit ``record``: how many clip norms long a client's sum may be; a longer one is
        scaled down to it. 1 with the unit ``client``.
    bit_noise : float, optional
        With the unit ``client``: a bit of each client is summed as well, in one more coordinate
        under the same noise, which then has this standard deviation on the sum of the bits. Both
        together have the noise multiplier `noise_multiplier` (Andrew et al. 2021, theorem 1).

    Raises
    ------
    SkellamError
        If a number is out of range, or sum and noise do not fit into the ring.
    ClippingError
        If `bit_noise` is at most half of `noise_multiplier`.
    """

    unit: Literal["record", "client"]
    dimension: int
    clip_norm: float
    noise_multiplier: float
    clients: int
    honest: int
    ring_bits: int
    max_records: int = 1
    bit_noise: float | None = None

    def __post_init__(self) -> None:
        self._check_ranges()
        if self._resolution < least_resolution(self.unit, self.dimension):
            raise SkellamError(
                f"bit_noise = {self.bit_noise:g} leaves too little of the budget for the update: "
                f"it must be at least {self.noise_multiplier / math.sqrt(3.0):.4g} at noise "
                f"multiplier {self.noise_multiplier:g}"
            )
        if self.share_variance > LARGEST_VARIANCE:
            raise SkellamError(
                f"a client's share of the noise has a variance of {self.share_variance:.3g}, and "
                f"{LARGEST_VARIANCE:.3g} is the most that is drawn; take less noise, a smaller "
                "model or more clients"
            )
        if self.wrap_probability > LARGEST_WRAP_PROBABILITY:
            sigma = math.sqrt(self.share_variance * self.clients)
            raise SkellamError(
                f"a sum of {self.clients} clients of {self.dimension} coordinates does not fit "
                f"into {self.ring_bits} bits: it reaches {self._largest_sum:.3g} before noise of "
                f"standard deviation {sigma:.3g} and passes {2 ** (self.ring_bits - 1)} with a "
                f"probability of up to {self.wrap_probability:.2g}; take "
                + ("32 bits, or " if self.ring_bits < max(_RING_BITS) else "")
                + "fewer clients, less noise"
                + (" or smaller batches" if self.unit == "record" else "")
            )

    @property
    def scale(self) -> float:
        """Integer units of a unit of the vector."""
        return self._resolution / self.clip_norm

    @property
    def length(self) -> int:
        """Coordinates of what `encode` returns."""
        return self.dimension + (self.bit_noise is not None)

    @cached_property
    def sensitivity(self) -> IntegerSensitivity:
        """What one unit can change of the integers, the bit's coordinate included.

        One record moves its client's sum by at most the clip norm, hence after rounding with the
        same randomness by at most scale x clip norm + sqrt(d), and what double precision adds.
        A client's integers are checked against the bound themselves.
        """
        if self.unit == "record":
            error = 2.0 * _FLOAT_ERROR * self.max_records * self._resolution
            l2 = self._resolution + math.sqrt(self.dimension) + error
        else:
            l2 = math.sqrt(self._squared_bound)
        return IntegerSensitivity(
            l1=min(math.sqrt(self.length) * l2, l2 * l2), l2=l2, coordinates=self.length
        )

    @property
    def variance(self) -> float:
        """Variance of the honest clients' noise in a coordinate of the sum."""
        return (self.noise_multiplier * self.sensitivity.l2) ** 2

    @property
    def share_variance(self) -> float:
        """Variance of the noise that each client adds to each coordinate."""
        return self.variance / self.honest

    @cached_property
    def bit_weight(self) -> int:
        """Integer units of a bit, an even number; 0 where no bit is summed.

        Rounded, so that the noise on the sum of the bits is only nearly `bit_noise`. The
        sensitivity is that of the rounded one.
        """
        if self.bit_noise is None:
            return 0
        return 2 * max(1, round(math.sqrt(self.variance) / (2.0 * self.bit_noise)))

    @cached_property
    def wrap_probability(self) -> float:
        """Bound on the probability that some coordinate of a sum passes the ring.

        With every client in the sum, all adding noise, and vectors that all point the same way;
        over the signs of the rotation and the noise.
        """
        # Rounding moves a coordinate of each client by less than one.
        limit = 2.0 ** (self.ring_bits - 1) - self.clients
        noise = self.share_variance * self.clients
        share = 1.0 / block_size(self.dimension)
        odds = wrap_bound(limit, self._largest_sum, noise, self.dimension, share)
        if self.bit_weight:
            odds += wrap_bound(limit, self.clients * self.bit_weight / 2.0, noise, 1, 1.0)
        return min(1.0, odds)

    def encode(
        self,
        vector: NDArray[np.float64],
        seed: bytes,
        generator: SecureGenerator,
        *,
        bit: bool | None = None,
    ) -> NDArray[np.int64]:
        """Return a client's part of the sum, its share of the noise in it.

        Parameters
        ----------
        vector : ndarray
            Shape (d,), float64, finite: the client's sum of clipped gradients, or its update. One
            that is too long is scaled down to what the sensitivity allows.
        seed : bytes
            Public, the same for all clients of the sum; see `rotate`.
        generator : SecureGenerator
            Secret: rounding and noise come from it.
        bit : bool, optional
            What is summed beside the vector, where `bit_noise` is set.

        Returns
        -------
        ndarray
            Shape (`length`,), int64; to be summed modulo 2^`ring_bits`.

        Raises
        ------
        VectorError
            If the vector has another shape or dtype or is not finite, or the bit is missing or
            not wanted.
        """
        self._check_vector(vector)
        if (bit is None) != (self.bit_noise is None):
            raise VectorError("a bit is summed if and only if bit_noise is set")
        within = project(vector, self.max_records * self.clip_norm)
        scaled = rotate(within, seed) * self.scale
        if self.unit == "record":
            integers = round_coupled(scaled, generator)
        else:
            half = self.bit_weight // 2
            integers = round_within(scaled, self._squared_bound - half**2, generator)
            if bit is not None:
                integers = np.append(integers, half if bit else -half)
        return integers + draw_skellam(self.length, self.share_variance, generator)

    def decode(self, total: NDArray[np.int64], seed: bytes) -> NDArray[np.float64]:
        """Return the sum of the clients' vectors, noise included.

        Parameters
        ----------
        total : ndarray
            Shape (`length`,), int64, centred: in -2^(ring_bits - 1) .. 2^(ring_bits - 1) - 1.
        seed : bytes
            The one that the clients rotated with.

        Returns
        -------
        ndarray
            Shape (d,), float64.

        Raises
        ------
        VectorError
            If the total has another shape or dtype.
        """
        self._check_total(total)
        return unrotate(total[: self.dimension].astype(np.float64), seed) / self.scale

    def decode_bits(self, total: NDArray[np.int64]) -> float:
        """Return the sum over the clients of their bit less one half, noise included.

        Parameters
        ----------
        total : ndarray
            As `decode` takes it.

        Raises
        ------
        VectorError
            If the total has another shape or dtype, or no bits are summed.
        """
        self._check_total(total)
        if not self.bit_weight:
            raise VectorError("no bits are summed: bit_noise is not set")
        return float(total[-1]) / self.bit_weight

    @property
    def _squared_bound(self) -> int:
        """Largest squared norm of a client's integers, bit included, before noise."""
        # Twice the length where there is a bit: then what the bit takes of it leaves enough.
        factor = 1 if self.bit_noise is None else 4
        return factor * rounded_square(least_resolution("client", self.dimension), self.dimension)

    @cached_property
    def _resolution(self) -> float:
        """Integer units of the clip norm, as large as the sensitivity allows."""
        if self.bit_noise is None:
            return least_resolution(self.unit, self.dimension)
        left = self._squared_bound - (self.bit_weight // 2) ** 2
        return longest_before_rounding(left, self.dimension)

    @property
    def _largest_sum(self) -> float:
        return self.clients * self.max_records * self._resolution

    def _check_ranges(self) -> None:
        if self.unit not in ("record", "client"):
            raise SkellamError(f"the unit must be record or client, not {self.unit!r}")
        if not 1 <= self.dimension < 2**40:
            raise SkellamError(f"a vector of {self.dimension} coordinates is impossible")
        for name, value in (
            ("clip_norm", self.clip_norm),
            ("noise_multiplier", self.noise_multiplier),
            ("bit_noise", 1.0 if self.bit_noise is None else self.bit_noise),
        ):
            if not (value > 0.0 and math.isfinite(value)):
                raise SkellamError(f"{name} must be positive and finite, not {value}")
            if name != "clip_norm" and value > _LARGEST_NOISE:
                raise SkellamError(
                    f"{name} = {value:g} is beyond any use: at most {_LARGEST_NOISE:g}"
                )
        if not _LEAST_CLIP_NORM <= self.clip_norm <= 1.0 / _LEAST_CLIP_NORM:
            raise SkellamError(
                f"clip_norm = {self.clip_norm:g} is beyond what can be computed with: "
                f"{_LEAST_CLIP_NORM:g} to {1.0 / _LEAST_CLIP_NORM:g}"
            )
        if not 1 <= self.honest <= self.clients:
            raise SkellamError(
                f"of {self.clients} clients {self.honest} cannot be honest: from 1 to all of them"
            )
        if self.ring_bits not in _RING_BITS:
            raise SkellamError(f"ring_bits must be 16 or 32, not {self.ring_bits}")
        if self.max_records < 1:
            raise SkellamError(f"max_records must be at least 1, not {self.max_records}")
        if self.unit == "client" and self.max_records != 1:
            raise SkellamError(f"max_records is 1 with the unit client, not {self.max_records}")
        if self.bit_noise is not None:
            if self.unit != "client":
                raise SkellamError("bit_noise is for the unit client: a record has no bit")
            update_noise_multiplier(self.noise_multiplier, self.bit_noise)

    def _check_vector(self, vector: NDArray[np.float64]) -> None:
        if vector.shape != (self.dimension,) or vector.dtype != np.float64:
            raise VectorError(
                f"the vector must be float64 of shape ({self.dimension},), not {vector.dtype} of "
                f"shape {vector.shape}"
            )
        if not np.isfinite(vector).all():
            raise VectorError("the vector holds NaN or infinity; it does not leave the client")

    def _check_total(self, total: NDArray[np.int64]) -> None:
        if total.shape != (self.length,) or total.dtype != np.int64:
            raise VectorError(
                f"the total must be int64 of shape ({self.length},), not {total.dtype} of shape "
                f"{total.shape}"
            )
