"""The least noise with which releases meet a budget."""

from __future__ import annotations

import math
from bisect import bisect_left
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
_STEP = 1.25
_ACCURACY = 1e-5

EpsilonOf = Callable[[tuple[Release, ...], float], float]


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
    from scipy.optimize import brentq

    fixed = compose(beside)
    spent = epsilon(fixed, delta)
    if spent >= target_epsilon:
        raise AccountingError(
            f"epsilon = {target_epsilon:g} at delta = {delta:g} is not reachable: {spent:.4g} of "
            "it is spent already (past rounds, noisy metrics); raise dp.target_epsilon"
        )

    def excess(sigma: float, epsilon_of: EpsilonOf = epsilon) -> float:
        together = compose([*fixed, Release(sampling_rate, sigma, count, integers)])
        return epsilon_of(together, delta) - target_epsilon

    if excess(_LARGEST_NOISE_MULTIPLIER) > 0.0:
        raise AccountingError(
            f"epsilon = {target_epsilon:g} at delta = {delta:g} is not reachable over {count} "
            f"steps at sampling rate {sampling_rate:g}, whatever the noise; raise "
            "dp.target_epsilon, or train with fewer rounds, fewer steps or a smaller sampling rate"
        )
    high = _upper_bound(excess)
    low = high / _STEP
    while excess(low) <= 0.0:
        if low < _SMALLEST_NOISE_MULTIPLIER:
            return _SMALLEST_NOISE_MULTIPLIER
        low, high = low / _STEP, low
    # Epsilon may be infinite at the lower end, which no interpolation bears.
    near: float = brentq(lambda sigma: min(excess(sigma), 1e3), low, high, xtol=_ACCURACY * low)
    above = _ACCURACY
    while excess(found := math.ceil(near * (1.0 + above) * 1e4) / 1e4) > 0.0:
        above *= 2.0
    return found


def _upper_bound(excess: Callable[[float, EpsilonOf], float]) -> float:
    """Return a noise that meets the budget, not far above the least that does.

    RDP is cheap and its epsilon nearly never below the one sought, so it bounds the answer from
    above. A PLD far below the answer would be very large: the search must come down to it, not up.
    """
    steps = math.ceil(math.log(_LARGEST_NOISE_MULTIPLIER / _SMALLEST_NOISE_MULTIPLIER, _STEP))
    grid = [_LARGEST_NOISE_MULTIPLIER / _STEP**step for step in range(steps + 1)]
    met = bisect_left(grid, True, key=lambda sigma: excess(sigma, rdp_epsilon) > 0.0) - 1
    high = grid[max(met, 0)]
    return high if excess(high, epsilon) <= 0.0 else _LARGEST_NOISE_MULTIPLIER
