"""How near Skellam noise is to rounded Gaussian noise, so that one accounting serves both."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fedveil.privacy.skellam.tails import reach

__all__ = ["SkellamNoise", "log_ratio_bound"]


@dataclass(frozen=True)
class SkellamNoise:
    """So many independent Skellam variates.

    Parameters
    ----------
    variance : float
        Of each, in squared integer units, > 0.
    variates : int
        How many: coordinates times releases.
    """

    variance: float
    variates: int

    def log_ratio_range(self, magnitude: float) -> float:
        """Bound by how much log P(k) / Q(k) varies over all integers of at most a magnitude.

        P is the Skellam law, Q that of a Gaussian variate of the same variance v, rounded. With
        L(k) = log P(k) / Q(k), by the bounds of Amos 1974 for ratios of Bessel functions,

            -k (k + 1) / (2 v^2) - k^2 / (8 v^2) <= L(k) - L(0) <= k^4 / (24 v^3).
        """
        m, v = magnitude, self.variance
        return m**4 / (24.0 * v**3) + (m * (m + 1.0) / 2.0 + m * m / 8.0) / v**2

    def log_ratio_square(self) -> float:
        """Bound the mean of (L(k) - L(0))^2 under either law, from their 4th and 8th moments."""
        v = self.variance
        root = math.sqrt(v)
        fourth = max(3.0 * v**2 + v, (math.pow(3.0, 0.25) * root + 0.5) ** 4)
        eighth = max(
            105.0 * v**4 + 210.0 * v**3 + 63.0 * v**2 + v,
            (math.pow(105.0, 0.125) * root + 0.5) ** 8,
        )
        return eighth / (576.0 * v**6) + 81.0 * fourth / (64.0 * v**4)

    def reach(self, bits: int) -> float:
        """Return a magnitude that both laws pass with odds below 2^-`bits`."""
        rounded = 0.5 + math.sqrt(2.0 * self.variance * (bits + 1) * math.log(2.0))
        return max(float(reach(self.variance, bits)), rounded)


def log_ratio_bound(noises: Iterable[SkellamNoise], log_odds: float) -> float:
    """Return what the log-ratio of both laws of all variates passes with odds exp(`log_odds`) only.

    One law has every variate Skellam, the other every one rounded Gaussian. The bound holds for
    the one over the other under the one, whichever is the one. All variates lie within `reach`,
    but for half of the odds; given that, the sum of their log-ratios passes its mean, at most
    range^2 / 8 a variate by Hoeffding's lemma, by what Bernstein's inequality leaves the other
    half.

    Parameters
    ----------
    noises : iterable of SkellamNoise
        Independent of each other.
    log_odds : float
        Below zero, in nats.

    Returns
    -------
    float
        In nats, >= 0; infinite where floating point does not hold it. The argument stands in
        docs/decisions/0010-skellam-as-gaussian.md.
    """
    kinds = [noise for noise in noises if noise.variates]
    total = sum(noise.variates for noise in kinds)
    if not total:
        return 0.0
    bits = math.ceil((math.log(2.0 * total) - log_odds) / math.log(2.0))
    missed = 2.0**-bits
    try:
        ranges = [noise.log_ratio_range(noise.reach(bits)) for noise in kinds]
        squares = [noise.log_ratio_square() / (1.0 - missed) for noise in kinds]
    except (OverflowError, ZeroDivisionError):
        return math.inf
    mean = sum(
        noise.variates * (width**2 / 8.0 + 2.0 * missed)
        for noise, width in zip(kinds, ranges, strict=True)
    )
    variance = sum(n.variates * square for n, square in zip(kinds, squares, strict=True))
    nats = math.log(2.0) - log_odds
    linear = max(ranges) * nats / 3.0
    bound = mean + linear + math.sqrt(linear**2 + 2.0 * nats * variance)
    return bound if math.isfinite(bound) else math.inf
