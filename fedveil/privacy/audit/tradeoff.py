"""Trade-off functions: how well one record's presence can be told, at every rate of error."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from dp_accounting.pld import privacy_loss_distribution as pld
from numpy.typing import NDArray

from fedveil.privacy.accounting import Release
from fedveil.privacy.audit.guesses import AuditError

__all__ = ["TradeOff", "trade_off_of"]

_LINES = 200
_INTERVAL = 5e-3
"""Grid of the privacy loss, in nats. Coarser than the accountant's and still pessimistic, so that
a curve refuted is refuted."""
_TAIL = 1e-12


class TradeOff:
    """A symmetric trade-off function f, as the highest of the lines of (epsilon, delta) pairs.

    A mechanism that is (e, d)-differentially private for each pair is f-DP with
    f(a) = max(0, 1 - d - exp(e) a, exp(-e) (1 - d - a)) over the pairs (Dong, Roth & Su 2022,
    "Gaussian differential privacy", proposition 2.5). Fewer pairs, or larger deltas, make f
    smaller, which assumes less.

    Parameters
    ----------
    epsilons, deltas : ndarray
        Shape (k,) each, k >= 1.

    Raises
    ------
    AuditError
        If their shapes differ or they are empty.
    """

    def __init__(self, epsilons: NDArray[np.float64], deltas: NDArray[np.float64]) -> None:
        if epsilons.shape != deltas.shape or not epsilons.size:
            raise AuditError("a trade-off function needs a delta for each epsilon")
        self._deltas = deltas
        self._down, self._up = np.exp(-epsilons), np.exp(epsilons)

    def __call__(self, right: float) -> float:
        """Return f(1 - right): how often an attacker must err who is right so often."""
        steep = float(np.max(self._down * (right - self._deltas)))
        flat = float(np.max(1.0 - self._deltas - self._up * (1.0 - right)))
        return max(0.0, steep, flat)


@lru_cache(maxsize=256)
def trade_off_of(releases: tuple[Release, ...]) -> TradeOff:
    """Return the trade-off function of composed releases, by privacy-loss distributions.

    Adding or removing one record is the neighbouring relation; the worse of both holds.

    Parameters
    ----------
    releases : tuple of Release
        At least one.

    Raises
    ------
    AuditError
        If nothing was released, or something with Skellam noise, whose trade-off is not known.
    """
    if any(release.integers is not None for release in releases):
        raise AuditError("a release with Skellam noise has no known trade-off function to audit")
    whole: pld.PrivacyLossDistribution | None = None
    for release in releases:
        one = pld.from_gaussian_mechanism(
            release.noise_multiplier,
            value_discretization_interval=_INTERVAL,
            sampling_prob=release.sampling_rate,
        ).self_compose(release.count)
        whole = one if whole is None else whole.compose(one)
    if whole is None:
        raise AuditError("nothing was released, so there is nothing to audit")
    largest = min(max(1.0, float(whole.get_epsilon_for_delta(_TAIL))), 700.0)
    epsilons = np.linspace(0.0, largest, _LINES)
    return TradeOff(epsilons, np.asarray(whole.get_delta_for_epsilon(epsilons), dtype=np.float64))
