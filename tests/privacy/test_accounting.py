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
    assert accountant_of(releases, DELTA) == "PLD"


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


WIDE = IntegerSensitivity(l1=30_000.0, l2=1000.0, coordinates=900)
NOTHING = Release(1.0, 1e9, 1, WIDE)
NARROW = IntegerSensitivity(l1=20.0, l2=5.0, coordinates=16)

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
        IntegerSensitivity(l1, l2, 4)


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
            '"integers": {"l1": 1, "l2": 2, "coordinates": 4}}'
        )


def test_skellam_noise_costs_the_smaller_of_two_bounds() -> None:
    wide, narrow = ([Release(1.0, 20.0, 3), Release(0.1, 1.0, 5, one)] for one in (WIDE, NARROW))
    assert accountant_of(wide, DELTA) == "PLD"
    assert epsilon_of(wide, DELTA) == pld_epsilon(wide, DELTA) < rdp_epsilon(wide, DELTA)
    # Noise of five integers' width is too far from a Gaussian's.
    assert accountant_of(narrow, DELTA) == "RDP"
    assert epsilon_of(narrow, DELTA) == rdp_epsilon(narrow, DELTA) < pld_epsilon(narrow, DELTA)
    with pytest.raises(AccountingError, match="no event of Skellam noise"):
        wide[1].event()


def test_what_stands_beside_costs_more_in_any_order() -> None:
    gaussian, skellam = Release(1.0, 5.0, 3), Release(0.1, 1.0, 50, WIDE)
    together = epsilon_of([gaussian, skellam], DELTA)
    assert together == epsilon_of([skellam, gaussian], DELTA)
    assert together > max(epsilon_of([gaussian], DELTA), epsilon_of([skellam], DELTA))
    # What costs nothing beside it changes nothing but the grid.
    nothing = Release(1.0, 1e6, 1, WIDE)
    assert epsilon_of([gaussian, nothing], DELTA) == pytest.approx(
        pld_epsilon([gaussian], DELTA), rel=2e-3
    )


def test_no_skellam_noise_is_cheaper_than_gaussian_noise_nor_much_dearer() -> None:
    for rate, noise in ((1.0, 1.0), (0.1, 0.7), (0.01, 1.0)):
        for bound, one in ((pld_epsilon, Release(rate, noise, 20)), (rdp_epsilon, None)):
            # RDP of integer orders, which a release that costs nothing brings about.
            gaussian = [one or Release(rate, noise, 20), *([] if one else [NOTHING])]
            narrow, wide = (
                bound([Release(rate, noise, 20, integers)], DELTA) for integers in (NARROW, WIDE)
            )
            assert bound(gaussian, DELTA) <= wide + 1e-6 <= narrow
            assert wide == pytest.approx(bound(gaussian, DELTA), rel=0.03)


def test_a_finer_scale_brings_skellam_noise_down_to_gaussian_noise() -> None:
    gaussian = pld_epsilon([Release(0.1, 1.0, 50)], DELTA)
    left = [
        pld_epsilon([Release(0.1, 1.0, 50, IntegerSensitivity(30 * l2, l2, 900))], DELTA) - gaussian
        for l2 in (300.0, 3000.0, 30_000.0)
    ]
    assert left == sorted(left, reverse=True)
    assert 0.0 < left[-1] < 1e-3 * gaussian
    # More coordinates are more chances to tell the two noises apart.
    few, many = (
        pld_epsilon([Release(0.1, 1.0, 50, IntegerSensitivity(3e4, 1000.0, d))], DELTA)
        for d in (900, 90_000)
    )
    assert few < many


@pytest.mark.parametrize("noise", [1e100, 1e160, 1e300])
def test_noise_beyond_floating_point_has_a_bound_or_none(noise: float) -> None:
    huge = [Release(1.0, noise, 3, WIDE)]
    assert pld_epsilon(huge, DELTA) == math.inf
    assert epsilon_of(huge, DELTA) == 0.0


@pytest.mark.parametrize("coordinates", [0, -1, 2**53 + 1, 10**400])
def test_impossible_numbers_of_coordinates_are_refused(coordinates: int) -> None:
    with pytest.raises(AccountingError, match=r"coordinates must lie in 1 \.\. 9007199254740992"):
        IntegerSensitivity(3e4, 1e3, coordinates)


@pytest.mark.parametrize("integers", [None, WIDE], ids=["gaussian", "skellam"])
def test_any_number_of_releases_is_counted_soon(integers: IntegerSensitivity | None) -> None:
    """dp-accounting would hang, and take all memory, over a billion sampled ones."""
    many = [Release(1e-6, 5.0, 10**12, integers)]
    assert pld_epsilon(many, DELTA) == math.inf
    assert accountant_of(many, DELTA) == "RDP"
    assert epsilon_of(many, DELTA) == rdp_epsilon(many, DELTA) == pytest.approx(0.803, abs=1e-3)
    assert epsilon_of([Release(0.5, 5.0, 10**400, integers)], DELTA) == math.inf


def test_what_costs_nothing_does_not_lower_epsilon() -> None:
    # So many that the grid of the distribution asks for twice what is spent.
    many = Release(0.01, 50.0, 10**6)
    alone = epsilon_of([many], DELTA)
    assert alone == rdp_epsilon([many], DELTA) < 0.6 * pld_epsilon([many], DELTA)
    assert epsilon_of([many, NOTHING], DELTA) >= alone * (1.0 - 1e-9)


some_releases = st.builds(
    Release,
    st.sampled_from([0.01, 0.5, 1.0]),
    st.sampled_from([1.0, 2.0, 30.0]),
    st.sampled_from([1, 5, 50]),
    st.sampled_from([None, WIDE, NARROW]),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(some_releases, max_size=2), some_releases, st.sampled_from([1e-9, 1e-5, 1e-2]))
def test_no_further_release_lowers_epsilon(
    before: list[Release], further: Release, delta: float
) -> None:
    assert epsilon_of([*before, further], delta) >= epsilon_of(before, delta) - 1e-9


def test_a_delta_beyond_normal_numbers_has_a_bound() -> None:
    release = [Release(0.1, 1.0, 5, WIDE)]
    assert pld_epsilon(release, 5e-324) == math.inf
    assert 70.0 < epsilon_of(release, 5e-324) < 80.0


def test_what_overflows_costs_everything() -> None:
    for release in (Release(1.0, 1e-160, 1, WIDE), Release(0.1, 1e-160, 1, WIDE)):
        assert epsilon_of([release], DELTA) == math.inf
        assert epsilon_of([release, Release(1.0, 20.0, 3)], DELTA) == math.inf
    enormous = Release(1.0, 1.0, 1, IntegerSensitivity(1e300, 1e200, 10))
    assert epsilon_of([enormous], DELTA) == math.inf
