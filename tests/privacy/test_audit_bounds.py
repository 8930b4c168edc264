"""An audit's bounds: below the truth, not vacuous, and where a formula is known equal to it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedveil.privacy.accounting import (
    IntegerSensitivity,
    Release,
    pld_epsilon,
)
from fedveil.privacy.audit.bounds import (
    epsilon_lower_bound,
    epsilon_refuted,
    is_refuted,
    p_value,
)
from fedveil.privacy.audit.guesses import AuditError, Guesses, guess_extremes
from fedveil.privacy.audit.planning import expected_correct, plan_guesses
from fedveil.privacy.audit.result import AuditFacts, build_audit
from fedveil.privacy.audit.tradeoff import TradeOff, trade_off_of
from fedveil.privacy.calibration import calibrate_noise_multiplier

DELTA = 1e-5
ONE = (Release(1.0, 1.0, 1),)
"""One Gaussian release of noise multiplier 1: epsilon 4.38 at delta 1e-5."""


def gaussian_scores(
    rng: np.random.Generator, canaries: int, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    coins = rng.random(canaries) < 0.5
    return coins + noise * rng.standard_normal(canaries), coins


@pytest.mark.parametrize("guesses", [10, 100, 5000])
def test_all_right_has_a_closed_form(guesses: int) -> None:
    # (e^eps / (1 + e^eps))^r = 0.05
    chance = 0.05 ** (1 / guesses)
    found = epsilon_lower_bound(Guesses(guesses, guesses, guesses), 0.0, 0.95)
    assert found == pytest.approx(math.log(chance / (1 - chance)), abs=2e-4)


def test_without_delta_the_p_value_is_a_binomial_tail() -> None:
    value = p_value(Guesses(1000, 200, 150), 1.0, 0.0)
    assert value == pytest.approx(stats.binom.sf(149, 200, math.e / (1 + math.e)))


def test_delta_adds_what_the_theorem_says() -> None:
    # Steinke et al. 2023, theorem 5.2: 2 m delta max_i P[v > B >= v - i] / i.
    law = stats.binom(200, math.e / (1 + math.e))
    steepest = max((law.cdf(149) - law.cdf(149 - i)) / i for i in range(1, 151))
    value = p_value(Guesses(1000, 200, 150), 1.0, DELTA)
    assert value == pytest.approx(law.sf(149) + 2 * 1000 * DELTA * steepest)
    assert p_value(Guesses(1000, 200, 150), 1.0, 1.0) == 1.0


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 4.0])
def test_randomised_response_is_found_almost_whole(epsilon: float) -> None:
    canaries = 200_000
    correct = math.floor(canaries * math.exp(epsilon) / (1 + math.exp(epsilon)))
    found = epsilon_lower_bound(Guesses(canaries, canaries, correct), 0.0, 0.95)
    assert epsilon - 0.05 < found < epsilon


def test_coin_tossing_shows_nothing() -> None:
    assert epsilon_lower_bound(Guesses(1000, 1000, 500), DELTA, 0.95) == 0.0
    assert epsilon_refuted(Guesses(1000, 1000, 500), ONE, DELTA, 0.95) == 0.0


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
def test_the_curve_of_one_gaussian_release_has_a_closed_form(noise: float) -> None:
    curve = trade_off_of((Release(1.0, noise, 1),))
    for right in (1e-3, 0.01, 0.1, 0.5, 0.9, 0.99):
        # Dong, Roth & Su 2022, equation 6.
        exact = stats.norm.cdf(stats.norm.ppf(right) - 1.0 / noise)
        assert exact - 0.01 <= curve(right) <= exact


def test_a_composed_curve_is_worse_than_its_parts() -> None:
    one, two = Release(0.5, 2.0, 4), Release(1.0, 5.0, 2)
    together = trade_off_of((one, two))
    for right in (0.01, 0.3, 0.7):
        assert together(right) < min(trade_off_of((one,))(right), trade_off_of((two,))(right))


def test_a_pure_curve_refutes_as_much_as_the_theorem_for_pure_privacy() -> None:
    found = Guesses(2000, 400, 350)
    steinke = epsilon_lower_bound(found, 0.0, 0.95)
    for epsilon, expected in ((steinke - 0.15, True), (steinke + 0.15, False)):
        assert is_refuted(found, TradeOff(np.array([epsilon]), np.zeros(1)), 0.95) is expected


@pytest.mark.parametrize(("canaries", "guesses"), [(200, 40), (1000, 200), (1000, 1000)])
def test_the_truth_is_refuted_in_at_most_one_case_of_twenty(canaries: int, guesses: int) -> None:
    rng = np.random.default_rng(0)
    truth, epsilon = trade_off_of(ONE), pld_epsilon(ONE, DELTA)
    repetitions, wrong, wrong_any = 200, 0, 0
    for _ in range(repetitions):
        found = guess_extremes(*gaussian_scores(rng, canaries, 1.0), guesses)
        wrong += is_refuted(found, truth, 0.95)
        wrong_any += p_value(found, epsilon, DELTA) <= 0.05
    assert wrong <= 0.05 * repetitions
    assert wrong_any <= 0.05 * repetitions


def test_a_known_mechanism_is_bounded_closely_from_below() -> None:
    rng = np.random.default_rng(1)
    epsilon = pld_epsilon(ONE, DELTA)
    found = guess_extremes(*gaussian_scores(rng, 20_000, 1.0), 400)
    assert 0.6 * epsilon < epsilon_refuted(found, ONE, DELTA, 0.95) < epsilon
    assert 0.4 * epsilon < epsilon_lower_bound(found, DELTA, 0.95) < epsilon


def test_less_noise_than_claimed_refutes_the_claim() -> None:
    rng = np.random.default_rng(2)
    noise = calibrate_noise_multiplier(4.0, DELTA, sampling_rate=1.0, count=1)
    claim = (Release(1.0, noise, 1),)
    guesses = plan_guesses(6500, claim, DELTA, 0.95)
    for factor, holds in ((1.0, True), (0.5, False)):
        found = guess_extremes(*gaussian_scores(rng, 6500, noise * factor), guesses)
        assert (epsilon_refuted(found, claim, DELTA, 0.95) <= 4.0) is holds


def test_fewer_right_guesses_never_show_more() -> None:
    shown = [
        epsilon_refuted(Guesses(1000, 100, correct), ONE, DELTA, 0.95)
        for correct in (60, 80, 95, 100)
    ]
    assert shown == sorted(shown)
    assert shown[0] < shown[-1]


@given(st.integers(1, 60), st.data())
def test_perfect_scores_are_guessed_right(canaries: int, data: st.DataObject) -> None:
    coins = np.array(data.draw(st.lists(st.booleans(), min_size=canaries, max_size=canaries)))
    most = 2 * min(int(coins.sum()), int((~coins).sum()))
    guesses = data.draw(st.integers(0, most))
    if guesses:
        assert guess_extremes(coins.astype(float), coins, guesses).correct == guesses
        assert guess_extremes(-coins.astype(float), coins, guesses).correct == 0


def test_impossible_guesses_are_refused() -> None:
    for values in ((0, 0, 0), (10, 11, 5), (10, 5, 6), (10, 5, -1)):
        with pytest.raises(AuditError, match="cannot be"):
            Guesses(*values)
    with pytest.raises(AuditError, match="do not match"):
        guess_extremes(np.zeros(3), np.zeros(4, dtype=bool), 1)
    with pytest.raises(AuditError, match="NaN"):
        guess_extremes(np.array([0.0, np.nan]), np.zeros(2, dtype=bool), 1)
    with pytest.raises(AuditError, match="nothing was released"):
        trade_off_of(())


def test_expected_guesses_agree_with_a_simulation() -> None:
    rng = np.random.default_rng(3)
    for guesses in (500, 5000, 20_000):
        scores, coins = gaussian_scores(rng, 20_000, 1.0)
        found = guess_extremes(scores, coins, guesses).correct
        # Three standard deviations of a binomial.
        assert abs(found - expected_correct(20_000, guesses, 1.0)) < 3 * math.sqrt(guesses / 4) + 2


def test_all_bounds_of_an_audit_hold_together() -> None:
    facts = AuditFacts(
        task="t",
        fedveil="0",
        created="now",
        settings_sha256="",
        clients=2,
        rounds=1,
        control="",
        confidence=0.95,
        delta=DELTA,
        releases=ONE,
    )
    found = Guesses(1000, 100, 90)
    result = build_audit(facts, {"own": found, "difference": found})
    # Two attacks with two bounds each share the 5 %.
    assert result.bound_any == epsilon_lower_bound(found, DELTA, 0.9875)
    assert result.bound == epsilon_refuted(found, ONE, DELTA, 0.9875)
    assert result.claimed == pld_epsilon(ONE, DELTA)
    assert result.holds
    everything = Guesses(10_000, 10_000, 10_000)
    assert not build_audit(facts, {"own": everything}).holds


def test_skellam_noise_is_not_audited_as_if_it_were_gaussian() -> None:
    skellam = Release(1.0, 1.0, 1, IntegerSensitivity(20.0, 5.0, 16))
    with pytest.raises(AuditError, match="Skellam noise has no known trade-off function"):
        trade_off_of((*ONE, skellam))
