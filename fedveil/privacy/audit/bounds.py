"""From guesses to bounds: what a mechanism of a given privacy lets an attacker guess."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from fedveil.privacy.accounting import Release, compose, pld_epsilon
from fedveil.privacy.audit.guesses import Guesses
from fedveil.privacy.audit.tradeoff import TradeOff, trade_off_of

__all__ = ["epsilon_lower_bound", "epsilon_refuted", "is_refuted", "p_value"]

_LARGEST_EPSILON = 100.0
_PRECISION = 1e-4
_LEAST_NOISE, _MOST_NOISE = 1.0 / 8.0, 16.0
_NOISE_PRECISION = 2e-3


def p_value(found: Guesses, epsilon: float, delta: float) -> float:
    """Return a bound on the probability of so many correct guesses or more.

    It holds for every (epsilon, delta)-differentially private mechanism and every attacker.

    References
    ----------
    Steinke, Nasr & Jagielski 2023, "Privacy auditing with one (1) training run", theorem 5.2.
    """
    chance = 1.0 / (1.0 + math.exp(-epsilon))
    law = stats.binom(found.guesses, chance)
    tail = float(law.sf(found.correct - 1))
    if not delta:
        return min(1.0, tail)
    below = law.pmf(np.arange(found.correct - 1, -1, -1)).cumsum()
    steepest = float(np.max(below / np.arange(1, found.correct + 1), initial=0.0))
    return min(1.0, tail + 2.0 * found.canaries * delta * steepest)


def epsilon_lower_bound(found: Guesses, delta: float, confidence: float) -> float:
    """Return an epsilon that the mechanism's own is not below, with this confidence.

    It assumes nothing of the mechanism: were it (epsilon, delta)-differentially private, so many
    correct guesses would have a probability of at most 1 - confidence.

    Parameters
    ----------
    found : Guesses
        The attacker's score; how many guesses to make must not depend on the coins.
    delta : float
        In [0, 1).
    confidence : float
        In (0, 1).

    Returns
    -------
    float
        0 where nothing can be told; at most 100.

    References
    ----------
    Steinke, Nasr & Jagielski 2023.
    """
    allowed = 1.0 - confidence
    if p_value(found, 0.0, delta) > allowed:
        return 0.0
    low, high = 0.0, _LARGEST_EPSILON
    while high - low > _PRECISION:
        middle = (low + high) / 2.0
        low, high = (middle, high) if p_value(found, middle, delta) <= allowed else (low, middle)
    return low


def is_refuted(found: Guesses, curve: TradeOff, confidence: float) -> bool:
    """Whether so many correct guesses refute that the mechanism is f-DP with this curve.

    Write p_i for the probability of exactly i correct guesses, r_i for that of "a random canary
    is guessed correctly, and at least i are", h_i for "a random canary is guessed wrongly, and at
    least i are correct". Turning the coin of that canary over turns the one event into the other,
    so that h_i >= f(1 - r_(i+1)). From p_c + ... >= 1 - confidence on, downwards, this forces ever
    more probability onto smaller i; where it comes to more than there is, the assumption is
    refuted.

    Parameters
    ----------
    found : Guesses
        The attacker's score; how many guesses to make must not depend on the coins.
    curve : TradeOff
        The mechanism's trade-off function, by assumption.
    confidence : float
        In (0, 1).

    References
    ----------
    Mahloujifar, Melis & Chaudhuri 2024, "Auditing f-differential privacy in one run", arXiv
    2410.22235, section 3.
    """
    if not found.guesses:
        return False
    wanted = found.guesses / found.canaries
    right = (1.0 - confidence) * found.correct / found.canaries
    wrong = (1.0 - confidence) * (found.guesses - found.correct) / found.canaries
    for correct in range(found.correct - 1, -1, -1):
        more = max(0.0, curve(right) - wrong)
        wrong += more
        right += more * correct / (found.guesses - correct)
        if right + wrong > wanted:
            return True
    return False


def epsilon_refuted(
    found: Guesses, releases: Sequence[Release], delta: float, confidence: float
) -> float:
    """Return the largest epsilon, of the claimed mechanism with less or more noise, refuted.

    The mechanism is taken to be the claimed one but for its noise, all of it scaled by one factor.
    The bound is far tighter than `epsilon_lower_bound` for that. Where it passes the claim, the
    claim is refuted without any such assumption, since the claimed noise is then among the
    refuted ones.

    Parameters
    ----------
    found : Guesses
        The attacker's score.
    releases : sequence of Release
        What is claimed to have been released of the record; at least one.
    delta : float
        In (0, 1).
    confidence : float
        In (0, 1).

    Returns
    -------
    float
        0 where not even 16 times the noise is refuted; at most the epsilon of an eighth of it.

    References
    ----------
    Mahloujifar, Melis & Chaudhuri 2024, section 4, with the curve of the composition itself.
    """
    claimed = compose(releases)

    def with_noise(factor: float) -> tuple[Release, ...]:
        return tuple(replace(r, noise_multiplier=r.noise_multiplier * factor) for r in claimed)

    def refuted(factor: float) -> bool:
        return is_refuted(found, trade_off_of(with_noise(factor)), confidence)

    low, high = _LEAST_NOISE, _MOST_NOISE
    if not refuted(high):
        return 0.0
    while high / low > 1.0 + _NOISE_PRECISION:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return pld_epsilon(with_noise(high), delta)
