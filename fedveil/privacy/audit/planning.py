"""How many canaries to guess: settled before any coin is looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from scipy import optimize, stats

from fedveil.privacy.accounting import Release
from fedveil.privacy.audit.bounds import epsilon_refuted
from fedveil.privacy.audit.guesses import Guesses
from fedveil.privacy.audit.tradeoff import trade_off_of

__all__ = ["expected_correct", "plan_guesses"]

_SHARES = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0)
_MISSING = 0.5
_EDGE = 40.0


def plan_guesses(
    canaries: int, releases: Sequence[Release], delta: float, confidence: float
) -> int:
    """Return the number of guesses that would show best that half of the noise is missing.

    It follows from the claim alone, so that the bounds may be used with it as they stand.

    Parameters
    ----------
    canaries : int
        Coins thrown.
    releases : sequence of Release
        The claim.
    delta, confidence : float
        As for `epsilon_refuted`.
    """
    weak = tuple(replace(r, noise_multiplier=r.noise_multiplier * _MISSING) for r in releases)
    # The mean shift, in standard deviations, of the Gaussian mechanism that is as easy to tell.
    distance = 1.0 - 2.0 * _equal_error(weak)
    shift = 2.0 * float(stats.norm.ppf((1.0 + distance) / 2.0))
    plans = []
    for share in _SHARES:
        guesses = max(1, round(share * canaries))
        found = Guesses(canaries, guesses, expected_correct(canaries, guesses, shift))
        plans.append((epsilon_refuted(found, releases, delta, confidence), guesses))
    return max(plans)[1]


def expected_correct(canaries: int, guesses: int, shift: float) -> int:
    """Return how many guesses at the extremes are right, on average and rounded down.

    Scores are taken as normal with standard deviation 1, and mean `shift` where the canary was
    included.
    """
    half = shift / 2.0

    def beyond(threshold: float) -> tuple[float, float]:
        return float(stats.norm.sf(threshold - half)), float(stats.norm.sf(threshold + half))

    def surplus(threshold: float) -> float:
        return sum(beyond(threshold)) - guesses / canaries

    # Where all are guessed, the extremes meet in the middle.
    edge = half + _EDGE
    threshold = 0.0 if surplus(0.0) <= 0.0 else float(optimize.brentq(surplus, 0.0, edge))
    right, wrong = beyond(threshold)
    return math.floor(guesses * right / (right + wrong))


def _equal_error(releases: tuple[Release, ...]) -> float:
    """Return the a with f(a) = a: the error of the best guess about one record."""
    curve = trade_off_of(releases)
    return float(optimize.brentq(lambda a: curve(1.0 - a) - a, 0.0, 0.5 + 1e-9))
