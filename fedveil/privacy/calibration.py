"""The least noise with which releases meet a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from fedveil.privacy.accounting import (
    AccountingError,
    IntegerSensitivity,
    Release,
    compose,
    epsilon,
    rdp_epsilon,
)

__all__ = ["calibrate_noise_multiplier"]

_LARGEST_NOISE_MULTIPLIER = 1e4
_SMALLEST_NOISE_MULTIPLIER = 0.1


def calibrate_noise_multiplier(
    target_epsilon: float,
    delta: float,
    *,
    sampling_rate: float,
    count: int,
    beside: Iterable[Release] = (),
    integers: IntegerSensitivity | None = None,
) -> float:
    """Return a noise multiplier with which `count` releases meet a budget.

    Parameters
    ----------
    target_epsilon, delta : float
        The budget for everything together.
    sampling_rate : float
        Sampling rate of the releases to calibrate.
    count : int
        How many of them, >= 1.
    beside : iterable of Release
        What the same budget pays for as well: past releases, noisy metrics.
    integers : IntegerSensitivity, optional
        Of the releases to calibrate, if their noise is Skellam.

    Returns
    -------
    float
        Rounded up to four decimals, which only adds noise.

    Raises
    ------
    AccountingError
        If `beside` alone spends the budget, or the budget is out of reach.
    """
    fixed = compose(beside)
    spent = epsilon(fixed, delta)
    if spent >= target_epsilon:
        raise AccountingError(
            f"epsilon = {target_epsilon:g} at delta = {delta:g} is not reachable: {spent:.4g} of "
            "it is spent already (past rounds, noisy metrics); raise dp.target_epsilon"
        )

    def meets(sigma: float, epsilon_of: Callable[[tuple[Release, ...], float], float]) -> bool:
        together = compose([*fixed, Release(sampling_rate, sigma, count, integers)])
        return epsilon_of(together, delta) <= target_epsilon

    if not meets(_LARGEST_NOISE_MULTIPLIER, epsilon):
        raise AccountingError(
            f"epsilon = {target_epsilon:g} at delta = {delta:g} is not reachable over {count} "
            f"steps at sampling rate {sampling_rate:g}, whatever the noise; raise "
            "dp.target_epsilon, or train with fewer rounds, fewer steps or a smaller sampling rate"
        )
    # RDP is cheap and its epsilon never below the one sought, so it bounds the answer from above. A
    # PLD far below the answer would be very large: the search must come down to it, not up.
    high = _LARGEST_NOISE_MULTIPLIER
    while high > _SMALLEST_NOISE_MULTIPLIER and meets(high / 1.25, rdp_epsilon):
        high /= 1.25
    if not meets(high, epsilon):
        high = _LARGEST_NOISE_MULTIPLIER
    low = high / 1.25
    while meets(low, epsilon):
        if low < _SMALLEST_NOISE_MULTIPLIER:
            return _SMALLEST_NOISE_MULTIPLIER
        low, high = low / 1.25, low
    while high - low > 2e-5 * high:
        middle = (low + high) / 2.0
        low, high = (low, middle) if meets(middle, epsilon) else (middle, high)
    return math.ceil(high * 1e4) / 1e4
