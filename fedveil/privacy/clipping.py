"""A clip norm that follows a quantile of the norms of updates, and what it costs in noise."""

from __future__ import annotations

import math

from fedveil.errors import PublicError

__all__ = ["ClippingError", "next_clip_norm", "update_noise_multiplier"]

_LARGEST_EXPONENT = 700.0
"""Its exponential is still finite; what it makes of a clip norm is refused like any other."""


class ClippingError(PublicError):
    """A setting of adaptive clipping is impossible."""


def next_clip_norm(clip_norm: float, noisy_fraction: float, quantile: float, rate: float) -> float:
    """Return the next round's clip norm: C exp(-rate (b - quantile)).

    Too large a share of updates within the clip norm lowers it, too small a one raises it
    (Andrew et al. 2021, "Differentially private learning with adaptive clipping", algorithm 1).

    Parameters
    ----------
    clip_norm : float
        This round's, C.
    noisy_fraction : float
        Share of the updates that were within it, b, with noise; with it, it may lie outside
        [0, 1], and cutting it there would shift the quantile.
    quantile : float
        Share that is wanted, in (0, 1).
    rate : float
        Learning rate, > 0.

    Raises
    ------
    ClippingError
        If a number is out of range, or the result is no positive finite one.
    """
    _check_positive("the clip norm", clip_norm)
    _check_positive("the learning rate of the clip norm", rate)
    if not 0.0 < quantile < 1.0:
        raise ClippingError(f"the target quantile must lie in (0, 1), not {quantile}")
    if not math.isfinite(noisy_fraction):
        raise ClippingError(
            f"the share of updates within the clip norm must be finite, not {noisy_fraction}"
        )
    following = clip_norm * math.exp(min(_LARGEST_EXPONENT, rate * (quantile - noisy_fraction)))
    _check_positive("the next clip norm", following)
    return following


def update_noise_multiplier(noise_multiplier: float, bit_noise: float) -> float:
    """Return z_delta, the noise multiplier of the updates where bits are released as well.

    z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2): updates with it and bits, shifted by one half and so
    of sensitivity one half, with noise of standard deviation sigma_b, together cost as much as
    one release at z (Andrew et al. 2021, theorem 1).

    Parameters
    ----------
    noise_multiplier : float
        Of both together, z.
    bit_noise : float
        sigma_b, in bits.

    Raises
    ------
    ClippingError
        If a number is not positive and finite, or the bits alone cost more than both may.
    """
    _check_positive("the noise multiplier", noise_multiplier)
    _check_positive("the noise on the bits", bit_noise)
    left = noise_multiplier**-2 - (2.0 * bit_noise) ** -2
    if left <= 0.0:
        raise ClippingError(
            f"the noise on the bits must exceed half of the noise multiplier "
            f"{noise_multiplier:g}, but is {bit_noise:g}; raise dp.adaptive.bit_noise"
        )
    return float(left**-0.5)


def _check_positive(name: str, value: float) -> None:
    if not (value > 0.0 and math.isfinite(value)):
        raise ClippingError(f"{name} must be positive and finite, not {value}")
