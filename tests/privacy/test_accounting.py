"""Epsilons against published values and against dp-accounting and Opacus by other paths."""

import math
from dataclasses import replace

import dp_accounting
import pytest
from dp_accounting import dp_event, pld
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants.analysis import rdp as opacus_rdp
from pydantic import TypeAdapter, ValidationError
from scipy import optimize, stats

from fedveil.privacy.accounting import (
    AccountingError,
    IntegerSensitivity,
    Release,
    accountant_of,
    calibrate_noise_multiplier,
    compose,
    pld_epsilon,
    rdp_epsilon,
)
from fedveil.privacy.accounting import epsilon as epsilon_of

DELTA = 1e-5


@pytest.mark.parametrize(
    ("rate", "noise", "count", "epsilon"),
    [
        (0.01, 1.0, 100, 0.718),
        (0.01, 1.0, 10_000, 6.19),
        (0.05, 1.0, 1000, 10.99),
        (0.2, 2.0, 1000, 19.45),
        # One client-level release, and replacing one: twice the sensitivity.
        (1.0, 1.0, 1, 4.38),
        (1.0, 0.5, 1, 10.00),
    ],
)
def test_known_answers(rate: float, noise: float, count: int, epsilon: float) -> None:
    releases = [Release(rate, noise, count)]
    assert pld_epsilon(releases, DELTA) == pytest.approx(epsilon, abs=5e-3)
    assert epsilon_of(releases, DELTA) == pld_epsilon(releases, DELTA)
    assert accountant_of(releases) == "PLD"


def test_one_gaussian_release_against_the_closed_form() -> None:
    # Balle & Wang 2018, theorem 8.
    def delta_of(epsilon: float, sigma: float) -> float:
        a, b = 1 / (2 * sigma) - epsilon * sigma, -1 / (2 * sigma) - epsilon * sigma
        return float(stats.norm.cdf(a) - pow(2.718281828459045, epsilon) * stats.norm.cdf(b))

    exact = optimize.brentq(lambda e: delta_of(e, 1.0) - DELTA, 0, 20)
    ours = pld_epsilon([Release(1.0, 1.0, 1)], DELTA)
    assert exact <= ours <= exact + 2e-3


def test_pld_equals_dp_accounting_step_by_step() -> None:
    accountant = pld.PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3
    )
    step = dp_event.PoissonSampledDpEvent(0.25, dp_event.GaussianDpEvent(1.6))
    for _ in range(20):
        accountant.compose(dp_event.ComposedDpEvent([step] * 4))
    ours = pld_epsilon([Release(0.25, 1.6, 4)] * 20, DELTA)
    assert ours == pytest.approx(accountant.get_epsilon(DELTA), abs=1e-6)


def test_rdp_agrees_with_opacus() -> None:
    orders = [1.5, 1.75, *range(2, 65), 80, 96, 128, 192, 256, 384, 512, 1024]
    budget = opacus_rdp.compute_rdp(q=0.25, noise_multiplier=1.6, steps=80, orders=orders)
    epsilon, _ = opacus_rdp.get_privacy_spent(orders=orders, rdp=budget, delta=DELTA)
    assert rdp_epsilon([Release(0.25, 1.6, 80)], DELTA) == pytest.approx(epsilon, rel=1e-6)


def test_rdp_is_never_the_smaller() -> None:
    for noise in (0.8, 1.6, 5.0):
        releases = [Release(0.25, noise, 80), Release(1.0, 20.0, 20)]
        assert rdp_epsilon(releases, DELTA) >= pld_epsilon(releases, DELTA)


def test_nothing_released_costs_nothing() -> None:
    assert pld_epsilon([], DELTA) == 0.0
    assert rdp_epsilon([Release(0.1, 1.0, 0)], DELTA) == 0.0


WIDE = IntegerSensitivity(l1=30_000.0, l2=1000.0)
NARROW = IntegerSensitivity(l1=20.0, l2=5.0)

releases = st.builds(
    Release,
    st.sampled_from([0.1, 0.5, 1.0]),
    st.sampled_from([1.0, 2.0]),
    st.integers(0, 5),
    st.sampled_from([None, WIDE, NARROW]),
)


@given(st.lists(releases, max_size=6), st.randoms())
def test_grouping_forgets_order_and_nothing_else(many: list[Release], rng: object) -> None:
    shuffled = list(many)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert compose(many) == compose(shuffled) == compose(compose(many))
    assert sum(r.count for r in compose(many)) == sum(r.count for r in many)


@pytest.mark.parametrize(
    "arguments", [(0.0, 1.0, 1), (1.1, 1.0, 1), (0.5, 0.0, 1), (0.5, float("inf"), 1), (0.5, 1, -1)]
)
def test_impossible_releases_are_refused(arguments: tuple[float, float, int]) -> None:
    with pytest.raises(AccountingError):
        Release(*arguments)


@settings(max_examples=8)
@given(st.sampled_from([0.5, 1.0, 3.0, 8.0, 30.0]), st.sampled_from([(0.25, 80), (1.0, 5)]))
def test_calibration_meets_the_budget_and_wastes_little(
    target: float, plan: tuple[float, int]
) -> None:
    rate, count = plan
    noise = calibrate_noise_multiplier(target, DELTA, sampling_rate=rate, count=count)
    assert pld_epsilon([Release(rate, noise, count)], DELTA) <= target
    assert pld_epsilon([Release(rate, 0.99 * noise, count)], DELTA) > target


def test_calibration_pays_for_what_stands_beside() -> None:
    beside = [Release(1.0, 20.0, 20)]
    alone = calibrate_noise_multiplier(3.0, DELTA, sampling_rate=0.25, count=80)
    together = calibrate_noise_multiplier(3.0, DELTA, sampling_rate=0.25, count=80, beside=beside)
    assert together > alone
    assert pld_epsilon([*beside, Release(0.25, together, 80)], DELTA) <= 3.0


def test_an_unreachable_budget_is_refused() -> None:
    with pytest.raises(AccountingError, match=r"epsilon = 0\.0001 .* not reachable over 80 steps"):
        calibrate_noise_multiplier(1e-4, DELTA, sampling_rate=0.25, count=80)


def test_a_budget_spent_already_is_refused() -> None:
    with pytest.raises(AccountingError, match="is spent already"):
        calibrate_noise_multiplier(
            1.0, DELTA, sampling_rate=0.25, count=4, beside=[Release(1.0, 1.0, 1)]
        )


@pytest.mark.parametrize(
    ("l1", "l2", "message"),
    [
        (1.0, 0.0, "l2 sensitivity must be positive and finite, not 0.0"),
        (float("nan"), 1.0, "l1 sensitivity must be positive and finite, not nan"),
        (float("inf"), 1.0, "l1 sensitivity must be positive and finite, not inf"),
        (1.0, 2.0, "l1 sensitivity 1.0 must not be below the l2 sensitivity 2.0"),
    ],
)
def test_impossible_sensitivities_are_refused(l1: float, l2: float, message: str) -> None:
    with pytest.raises(AccountingError, match=message):
        IntegerSensitivity(l1, l2)


def test_releases_are_read_from_old_and_new_lines_and_read_as_written() -> None:
    reader = TypeAdapter(Release)
    old = reader.validate_json('{"sampling_rate": 0.5, "noise_multiplier": 2.0, "count": 3}')
    assert old == Release(0.5, 2.0, 3)
    for release in (old, Release(0.1, 1.5, 7, WIDE)):
        assert reader.validate_json(reader.dump_json(release)) == release
        assert hash(release) == hash(replace(release))
    with pytest.raises((ValidationError, AccountingError)):
        reader.validate_json(
            '{"sampling_rate": 1, "noise_multiplier": 1, "count": 1, '
            '"integers": {"l1": 1, "l2": 2}}'
        )


def test_skellam_noise_is_accounted_for_by_rdp_alone() -> None:
    mixed = [Release(1.0, 20.0, 3), Release(0.1, 1.0, 5, WIDE)]
    assert accountant_of(mixed) == "RDP"
    assert epsilon_of(mixed, DELTA) == rdp_epsilon(mixed, DELTA)
    with pytest.raises(AccountingError, match="no event of Skellam noise"):
        pld_epsilon(mixed, DELTA)


def test_what_stands_beside_costs_more_in_any_order() -> None:
    gaussian, skellam = Release(1.0, 5.0, 3), Release(0.1, 1.0, 50, WIDE)
    together = epsilon_of([gaussian, skellam], DELTA)
    assert together == epsilon_of([skellam, gaussian], DELTA)
    assert together > max(rdp_epsilon([gaussian], DELTA), epsilon_of([skellam], DELTA))
    # What costs nothing beside it changes nothing but the orders.
    nothing = Release(1.0, 1e9, 1, WIDE)
    assert epsilon_of([gaussian, nothing], DELTA) == pytest.approx(
        rdp_epsilon([gaussian], DELTA), rel=0.02
    )


def test_no_skellam_noise_is_cheaper_than_gaussian_noise() -> None:
    for rate, noise in ((1.0, 1.0), (0.1, 0.7), (0.01, 1.0)):
        gaussian = rdp_epsilon([Release(rate, noise, 20), Release(1.0, 1e9, 1, WIDE)], DELTA)
        narrow, wide = (
            epsilon_of([Release(rate, noise, 20, integers)], DELTA) for integers in (NARROW, WIDE)
        )
        assert gaussian <= wide + 1e-6 <= narrow
        assert wide == pytest.approx(gaussian, rel=1e-4)


def test_what_overflows_costs_everything() -> None:
    for release in (Release(1.0, 1e-160, 1, WIDE), Release(0.1, 1e-160, 1, WIDE)):
        assert epsilon_of([release], DELTA) == math.inf
        assert epsilon_of([release, Release(1.0, 20.0, 3)], DELTA) == math.inf
    enormous = Release(1.0, 1.0, 1, IntegerSensitivity(1e300, 1e200))
    assert epsilon_of([enormous], DELTA) == math.inf


@pytest.mark.parametrize("target", [0.5, 3.0, 30.0])
def test_calibration_of_integers_meets_the_budget_and_wastes_little(target: float) -> None:
    beside = [Release(1.0, 40.0, 5)]
    noise = calibrate_noise_multiplier(
        target, DELTA, sampling_rate=0.1, count=60, beside=beside, integers=WIDE
    )
    assert epsilon_of([*beside, Release(0.1, noise, 60, WIDE)], DELTA) <= target
    if noise > 0.1:
        assert epsilon_of([*beside, Release(0.1, 0.99 * noise, 60, WIDE)], DELTA) > target
