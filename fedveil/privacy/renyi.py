"""Rényi divergences of integer noise beside Gaussian noise, at common integer orders."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["INTEGER_ORDERS", "divergences"]

INTEGER_ORDERS = (
    *range(2, 65),
    *(72, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024),
)
"""Orders of Rényi divergence at which integer noise is accounted for."""


@lru_cache(maxsize=1024)
def divergences(
    sampling_rate: float, noise_multiplier: float, sensitivity: tuple[float, float] | None
) -> NDArray[np.float64]:
    """Bound the Rényi divergences of one release, whichever of the neighbours comes first.

    A shift by integers of norms at most l1 and l2 under Skellam noise of variance mu has
    divergence a l2^2 / (2 mu) + min(((2 a - 1) l2^2 + 6 l1) / (4 mu^2), 3 l1 / (2 mu)) at the
    integer order a (Agarwal, Kairouz & Liu 2021, theorem 3.5); under Gaussian noise the first
    term alone.

    Parameters
    ----------
    sampling_rate : float
        Of Poisson sampling, in (0, 1].
    noise_multiplier : float
        Standard deviation of the noise over the L2 sensitivity.
    sensitivity : tuple of float or None
        l1 and l2 for Skellam noise, None for Gaussian noise.

    Returns
    -------
    ndarray
        One for each of `INTEGER_ORDERS`, not writeable. One that overflows is infinite or NaN,
        and bounds nothing.
    """
    orders = np.arange(2.0, INTEGER_ORDERS[-1] + 1.0)
    found: NDArray[np.float64]
    with np.errstate(all="ignore"):
        single = orders / (2.0 * np.square(noise_multiplier))
        if sensitivity is not None:
            l1, l2 = sensitivity
            variance = np.square(noise_multiplier * l2)
            single += np.minimum(
                ((2.0 * orders - 1.0) * np.square(l2) + 6.0 * l1) / (4.0 * np.square(variance)),
                3.0 * l1 / (2.0 * variance),
            )
        if sampling_rate == 1.0:
            found = single[np.array(INTEGER_ORDERS) - 2]
        else:
            found = _sampled(sampling_rate, (orders - 1.0) * single)
    found.flags.writeable = False
    return found


def _sampled(rate: float, log_moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the divergences of a Poisson-sampled release.

    With r the ratio of the shifted density to the one not shifted, the moment of order a is
    E[(1 - q + q r)^a] = 1 + sum_k binomial(a, k) (1 - q)^(a - k) q^k (E[r^k] - 1), in which the
    terms of k = 0 and 1 are zero and all others positive (Mironov, Talwar & Zhang 2019,
    section 3.3). The divergence the other way is never larger (ibid., theorem 5).

    Parameters
    ----------
    rate : float
        Sampling rate q, below 1.
    log_moments : ndarray
        log E[r^k] for k = 2, 3, ... up to the largest order.
    """
    # With SciPy an import takes a second: where an epsilon is wanted, and nowhere else.
    from scipy.special import gammaln, logsumexp

    k = np.arange(2, len(log_moments) + 2)
    log_excess = log_moments + np.log(-np.expm1(-log_moments))
    found = np.empty(len(INTEGER_ORDERS))
    for index, order in enumerate(INTEGER_ORDERS):
        upto = k[: order - 1]
        log_binomial = gammaln(order + 1) - gammaln(upto + 1) - gammaln(order - upto + 1)
        log_weights = log_binomial + upto * math.log(rate) + (order - upto) * math.log1p(-rate)
        total = logsumexp(log_weights + log_excess[: order - 1])
        found[index] = np.logaddexp(0.0, total) / (order - 1)
    return found
