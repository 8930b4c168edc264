"""Calibration meets the budget and wastes little."""

import pytest

from fedveil.privacy.accounting import (
    AccountingError,
    IntegerSensitivity,
    Release,
    pld_epsilon,
)
from fedveil.privacy.accounting import epsilon as epsilon_of
from fedveil.privacy.calibration import calibrate_noise_multiplier

DELTA = 1e-5
WIDE = IntegerSensitivity(l1=30_000.0, l2=1000.0, coordinates=900)


@pytest.mark.parametrize(
    ("target", "rate", "count"), [(0.5, 0.25, 80), (1.0, 1.0, 5), (8.0, 0.25, 80), (30.0, 1.0, 5)]
)
def test_calibration_meets_the_budget_and_wastes_little(
    target: float, rate: float, count: int
) -> None:
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


@pytest.mark.parametrize("target", [0.5, 3.0, 30.0])
def test_calibration_of_integers_meets_the_budget_and_wastes_little(target: float) -> None:
    beside = [Release(1.0, 40.0, 5)]
    noise = calibrate_noise_multiplier(
        target, DELTA, sampling_rate=0.1, count=60, beside=beside, integers=WIDE
    )
    assert epsilon_of([*beside, Release(0.1, noise, 60, WIDE)], DELTA) <= target
    if noise > 0.1:
        assert epsilon_of([*beside, Release(0.1, 0.99 * noise, 60, WIDE)], DELTA) > target
