"""Divergences of integer noise against exact ones, computed from the law itself."""

import itertools
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant, compute_epsilon
from numpy.typing import NDArray
from scipy import optimize, special

from fedveil.privacy.accounting import IntegerSensitivity, Release, epsilon
from fedveil.privacy.renyi import INTEGER_ORDERS, divergences

Floats = NDArray[np.float64]

SHIFTS: list[tuple[int, ...]] = [(1,), (2,), (5,), (1, 1), (2, 1), (3, -2)]


def log_odds(k: NDArray[np.int_], variance: float) -> Floats:
    """Return log P(X = k) = log(exp(-v) I_|k|(v))."""
    return np.log(special.ive(np.abs(k), variance))


def pair(variance: float, shift: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Return the log-odds of all outcomes that matter, not shifted and shifted, as flat arrays.

    Beyond 16 deviations is less than 2^-180, far below what any order here sees.
    """
    reach = math.ceil(16 * math.sqrt(variance)) + 25
    still, moved = [], []
    for step in shift:
        k = np.arange(-reach, reach + step + 1) if step > 0 else np.arange(step - reach, reach + 1)
        still.append(log_odds(k, variance))
        moved.append(log_odds(k - step, variance))
    return _outer_sum(still), _outer_sum(moved)


def _outer_sum(parts: list[Floats]) -> Floats:
    total = parts[0]
    for part in parts[1:]:
        total = np.add.outer(total, part).ravel()
    return total


def sampled_pair(rate: float, variance: float, shift: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Return the log-odds without the record, and with it in the sample with odds `rate`."""
    still, moved = pair(variance, shift)
    if rate == 1.0:
        return still, moved
    return still, np.logaddexp(math.log1p(-rate) + still, math.log(rate) + moved)


def renyi(order: int, first: Floats, second: Floats) -> float:
    """Return the Rényi divergence of `first` from `second`."""
    return float(special.logsumexp(order * first + (1 - order) * second)) / (order - 1)


def norms(shift: tuple[int, ...]) -> tuple[float, float]:
    return float(sum(map(abs, shift))), math.sqrt(sum(x * x for x in shift))


@pytest.mark.parametrize("shift", SHIFTS, ids=str)
@pytest.mark.parametrize("variance", [2.0, 9.0, 60.0])
@pytest.mark.parametrize("rate", [0.01, 0.2, 0.7, 1.0])
def test_no_exact_divergence_is_larger_in_either_direction(
    shift: tuple[int, ...], variance: float, rate: float
) -> None:
    l1, l2 = norms(shift)
    bounds = divergences(rate, math.sqrt(variance) / l2, (l1, l2))
    without, with_it = sampled_pair(rate, variance, shift)
    for order in (2, 3, 4, 7, 12, 20):
        bound = bounds[INTEGER_ORDERS.index(order)]
        added, removed = renyi(order, with_it, without), renyi(order, without, with_it)
        # The reflection of the integers that swaps both laws: adding is never the better.
        assert removed <= added + 1e-12
        assert added <= bound * (1 + 1e-9) + 1e-12


def test_the_bound_is_close_where_noise_is_wide() -> None:
    for rate in (0.05, 1.0):
        without, with_it = sampled_pair(rate, 400.0, (7,))
        bounds = divergences(rate, 20.0 / 7.0, (7.0, 7.0))
        for order in (2, 3, 6):
            exact = renyi(order, with_it, without)
            assert exact <= bounds[INTEGER_ORDERS.index(order)] <= 1.05 * exact


def test_the_binomial_expansion_is_exact() -> None:
    # With exact moments in place of bounds, the expansion is the divergence of the mixture.
    from fedveil.privacy import renyi as module

    variance, shift, rate = 9.0, (3,), 0.15
    still, moved = pair(variance, shift)
    k = np.arange(2, 13)
    moments = np.array([special.logsumexp(a * moved + (1 - a) * still) for a in k])
    padded = np.concatenate([moments, np.full(INTEGER_ORDERS[-1] - 12, moments[-1])])
    found = module._sampled(rate, padded)
    without, with_it = sampled_pair(rate, variance, shift)
    for order in k:
        index = INTEGER_ORDERS.index(int(order))
        assert found[index] == pytest.approx(renyi(int(order), with_it, without), rel=1e-10)


@pytest.mark.parametrize("order", [2, 5, 30, 64])
@pytest.mark.parametrize("rate", [1e-4, 0.03, 0.5])
def test_the_expansion_against_sixty_digits(order: int, rate: float) -> None:
    noise, (l1, l2) = 1.3, (40.0, 9.0)
    with localcontext(prec=60):
        q, z, one, two = Decimal(rate), Decimal(noise), Decimal(l1), Decimal(l2)
        variance = (z * two) ** 2
        total = Decimal(0)
        for k in range(order + 1):
            bound = Decimal(k) * two**2 / (2 * variance) + min(
                ((2 * k - 1) * two**2 + 6 * one) / (4 * variance**2), 3 * one / (2 * variance)
            )
            moment = ((k - 1) * bound).exp() if k >= 2 else Decimal(1)
            total += math.comb(order, k) * (1 - q) ** (order - k) * q**k * moment
        expected = float(total.ln() / (order - 1))
    found = divergences(rate, noise, (l1, l2))[INTEGER_ORDERS.index(order)]
    assert found == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("rate", "noise"), [(0.01, 1.0), (0.25, 1.6), (0.9, 0.8), (1.0, 2.0)])
def test_gaussian_noise_at_integer_orders_agrees_with_dp_accounting(
    rate: float, noise: float
) -> None:
    accountant = RdpAccountant(list(INTEGER_ORDERS))
    accountant.compose(Release(rate, noise, 30).event())
    ours, _ = compute_epsilon(INTEGER_ORDERS, 30 * divergences(rate, noise, None), 1e-5)
    assert ours == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-9)


@pytest.mark.parametrize("shift", [(1,), (4,), (2, 1)], ids=str)
@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 2])
def test_epsilon_is_never_below_the_exact_one(
    shift: tuple[int, ...], rate: float, count: int
) -> None:
    l1, l2 = norms(shift)
    variance = 6.0
    ours = epsilon(
        [Release(rate, math.sqrt(variance) / l2, count, IntegerSensitivity(l1, l2, len(shift)))],
        1e-5,
    )
    without, with_it = sampled_pair(rate, variance, shift)
    exact = max(_exact_epsilon(with_it, without, count), _exact_epsilon(without, with_it, count))
    assert exact <= ours
    # Rényi divergences of integer orders lose most where little is sampled and noise is narrow.
    assert ours <= 2.0 * exact + 0.3


def _exact_epsilon(first: Floats, second: Floats, count: int) -> float:
    """Return epsilon at delta = 1e-5 from all outcomes of all releases, one after the other."""
    # What is rarer than 1e-11 cannot matter to the delta, but leaving it out only lowers it.
    likely = first > math.log(1e-11)
    first, second = first[likely], second[likely]
    losses, odds = np.zeros(1), np.zeros(1)
    for _ in range(count):
        losses = np.add.outer(losses, first - second).ravel()
        odds = np.add.outer(odds, first).ravel()

    def delta(eps: float) -> float:
        over = losses > eps
        return float(np.sum(np.exp(odds[over]) * -np.expm1(eps - losses[over])))

    if delta(0.0) <= 1e-5:
        return 0.0
    return float(optimize.brentq(lambda e: delta(e) - 1e-5, 0.0, float(losses.max()) + 1.0))


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_every_shift_within_the_norms_is_covered(rate: float) -> None:
    variance, l1, l2 = 4.0, 4.0, 3.0
    bounds = divergences(rate, math.sqrt(variance) / l2, (l1, l2))
    shifts = [
        shift
        for shift in itertools.product(range(-3, 4), repeat=2)
        if any(shift) and norms(shift)[0] <= l1 and norms(shift)[1] <= l2
    ]
    assert len(shifts) == 28
    for shift, order in itertools.product(shifts, (2, 4, 8)):
        without, with_it = sampled_pair(rate, variance, shift)
        bound = bounds[INTEGER_ORDERS.index(order)]
        assert max(renyi(order, with_it, without), renyi(order, without, with_it)) <= bound


def test_divergences_rise_with_the_order_and_cannot_be_changed() -> None:
    found = divergences(0.3, 1.0, (4.0, 3.0))
    assert np.all(np.diff(found) > 0)
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0.0
