"""The server's part of each mode: exactly the noise that is accounted, and the next clip norm."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedveil.client.shared_noise import bit_noise, noise_shares, skellam_mechanism
from fedveil.client.sum_check import rotation_seed
from fedveil.config import Config, parse_config
from fedveil.privacy.clipping import next_clip_norm, update_noise_multiplier
from fedveil.privacy.gaussian.mechanism import GaussianMechanism
from fedveil.privacy.randomness import SecureGenerator
from fedveil.server.privacy_modes import CentralNoise, SharedNoiseSum, private_sum
from fedveil.settings import Tree, apply_override
from fedveil.strategies.private_sums import Total

D = 20_000
NAMES = frozenset({"w"})
TURN = (1, 1)
ZERO = Total(np.zeros(D), 10)


def config(mode: str, **changes: object) -> Config:
    unit, noise = mode.split("/")
    tree: Tree = {
        "task": {"name": "digits"},
        "dp": {"unit": unit, "noise": noise, "noise_multiplier": 0.8, "clip_norm": 1.5},
        "training": {"local_steps": 1, "nominal_records": 100, "sampling_rate": 0.25},
    }
    for key, value in changes.items():
        tree = apply_override(tree, key.replace("__", "."), value)
    return parse_config(tree, "test")


def within(values: np.ndarray, std: float) -> bool:
    """Tell whether the sample's variance is that of a Gaussian of this std, at odds of 1e-6."""
    low, high = stats.chi2.interval(1.0 - 1e-6, len(values))
    return bool(low < float(values @ values) / std**2 < high)


# Noise of the server -------------------------------------------------------------------------


def test_the_server_adds_exactly_z_times_c_to_the_sum() -> None:
    nothing = Total(np.zeros(10 * D), 10)
    noise = CentralNoise(config("client/central"), 0.8, NAMES).step(TURN, nothing) * 10
    assert within(noise, 0.8 * 1.5)
    # The test can tell: two per cent more or less would not do.
    assert not within(noise, 0.8 * 1.5 * 1.02)
    assert not within(noise, 0.8 * 1.5 * 0.98)
    assert stats.kstest(noise / (0.8 * 1.5), "norm").pvalue > 1e-6


def test_with_the_noise_taken_off_the_step_is_the_sum_over_the_planned_cohort() -> None:
    asked = config("client/central", dp__insecure_seed=5)
    values = np.linspace(-1.0, 1.0, D)
    # Two of the ten are missing; the denominator is fixed.
    with_sum = CentralNoise(asked, 0.8, NAMES).step(TURN, Total(values, 8))
    alone = CentralNoise(asked, 0.8, NAMES).step(TURN, Total(np.zeros(D), 8))
    half_a_width = GaussianMechanism(0.8, 1.5, D).grid / 2
    np.testing.assert_allclose(with_sum - alone, values / 10, rtol=0, atol=half_a_width / 10)


def test_what_the_encoding_may_lengthen_an_update_by_has_noise_too() -> None:
    longer = Total(np.zeros(10 * D), 10, rounding=0.75)
    noise = CentralNoise(config("client/central"), 0.8, NAMES).step(TURN, longer) * 10
    assert within(noise, 0.8 * (1.5 + 0.75))


def test_the_noise_is_fresh_for_each_round_and_attempt() -> None:
    rule = CentralNoise(config("client/central"), 0.8, NAMES)
    assert abs(np.corrcoef(rule.step((1, 1), ZERO), rule.step((1, 1), ZERO))[0, 1]) < 0.05
    seeded = CentralNoise(config("client/central", dp__insecure_seed=1), 0.8, NAMES)
    one, other = seeded.step((1, 1), ZERO), seeded.step((1, 2), ZERO)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.05
    np.testing.assert_array_equal(one, seeded.step((1, 1), ZERO))


def test_with_bits_the_updates_have_more_noise_so_that_both_cost_the_same() -> None:
    asked = config("client/central", dp__adaptive={"bit_noise": 0.5})
    z_update = update_noise_multiplier(0.8, 0.5)
    assert z_update == pytest.approx((0.8**-2 - 1.0) ** -0.5)
    rule = CentralNoise(asked, 0.8, NAMES)
    assert within(rule.step(TURN, ZERO) * 10, z_update * 1.5)


def test_the_bits_have_their_own_noise() -> None:
    """Back from the next clip norms to the noisy share of updates within, many times."""
    asked = config("client/central", dp__adaptive={"bit_noise": 0.5, "learning_rate": 0.2})
    found = []
    for _ in range(4000):
        rule = CentralNoise(asked, 0.8, NAMES)
        rule.step(TURN, Total(np.zeros(1), 10, within=5.0))
        found.append(0.5 - math.log(rule.largest_norm / 1.5) / 0.2)
    bits = (np.array(found) - 0.5) * 10
    assert within(bits, 0.5)


# Noise of the clients ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["record/distributed", "client/distributed"])
@pytest.mark.parametrize("survivors", [7, 10])
def test_the_aggregates_noise_has_the_variance_that_is_accounted(mode: str, survivors: int) -> None:
    """Ten clients with nothing but noise: their honest ones bring (z x sensitivity)^2."""
    asked = config(mode, dp__min_survivors=7, dp__colluding=3)
    rule = private_sum(asked, 0.8, D, NAMES)
    mechanism = skellam_mechanism(asked, D, 0.8)
    assert rule.integers == D
    seed = rotation_seed(asked, *TURN)
    total = sum(mechanism.encode(np.zeros(D), seed, SecureGenerator()) for _ in range(survivors))
    step = rule.step(TURN, Total(np.asarray(total), survivors))
    expected = 10.0 if asked.dp.unit == "client" else 0.25 * 100 * 10
    # Of the survivors at least 7 - 3 are honest; their noise alone is what the journal claims.
    claimed = 0.8 * mechanism.sensitivity.l2 / mechanism.scale
    std = claimed * math.sqrt(survivors / noise_shares(asked).honest)
    noise = step * expected
    assert within(noise, std)
    assert not within(noise, std * 1.05)
    assert claimed == pytest.approx(0.8 * 1.5, rel=0.011)


def test_the_step_of_records_is_one_of_sgd_on_the_mean_gradient() -> None:
    asked = config("record/distributed", training__learning_rate=2.0, dp__noise_multiplier=0.1)
    rule = SharedNoiseSum(asked, 0.1, 50, NAMES)
    mechanism = skellam_mechanism(asked, 50, 0.1)
    gradient = np.linspace(-1.0, 1.0, 50)
    seed = rotation_seed(asked, *TURN)
    total = sum(mechanism.encode(gradient, seed, SecureGenerator()) for _ in range(10))
    step = rule.step(TURN, Total(np.asarray(total), 10))
    mean = 10 * gradient / (0.25 * 100 * 10)
    noise = 0.1 * 1.5 * math.sqrt(10 / 4) / 250.0
    np.testing.assert_allclose(step, -2.0 * mean, atol=2.0 * 6 * noise)


# The clip norm from round to round -----------------------------------------------------------


ADAPTIVE = pytest.mark.parametrize("mode", ["client/distributed", "client/central"])


def played(asked: Config, bits: list[float]) -> list[float]:
    """Return the clip norms of rounds in which so many of ten updates are within."""
    rule = private_sum(asked, 0.3, 1, NAMES)
    norms = []
    for round_, inside in enumerate(bits, start=1):
        assert rule.clip_norm is not None
        norms.append(rule.clip_norm)
        if asked.dp.noise == "central":
            total = Total(np.zeros(1), 10, within=inside)
        else:
            mechanism = skellam_mechanism(asked, 1, 0.3, rule.clip_norm)
            seed = rotation_seed(asked, round_, 1)
            parts = [
                mechanism.encode(np.zeros(1), seed, SecureGenerator(), bit=i < inside)
                for i in range(10)
            ]
            total = Total(np.asarray(sum(parts)), 10)
        rule.step((round_, 1), total)
    return [*norms, rule.largest_norm]


@ADAPTIVE
def test_the_clip_norm_follows_the_quantile_from_both_sides(mode: str) -> None:
    asked = config(
        mode, dp__noise_multiplier=0.3, dp__adaptive={"bit_noise": 0.5, "learning_rate": 0.3}
    )
    up, down = played(asked, [0.0] * 8), played(asked, [10.0] * 8)
    # Within noise of a few hundredths of the exponent a round.
    assert math.log(up[-1] / 1.5) == pytest.approx(8 * 0.3 * 0.5, abs=0.35)
    assert math.log(down[-1] / 1.5) == pytest.approx(-8 * 0.3 * 0.5, abs=0.35)


@ADAPTIVE
def test_a_fixed_clip_norm_stays_and_commits_nothing(mode: str) -> None:
    rule = private_sum(config(mode), 0.8, D, NAMES)
    assert rule.clip_norm is None
    assert rule.largest_norm == 1.5
    assert rule.state() == {}
    rule.restore({"momentum/00000": np.zeros(3)})
    assert rule.largest_norm == 1.5


@ADAPTIVE
def test_a_committed_clip_norm_is_gone_on_with(mode: str) -> None:
    asked = config(mode, dp__adaptive={"bit_noise": 0.5})
    rule = private_sum(asked, 0.8, D, NAMES)
    rule.restore({"clip_norm": np.array([0.123]), "momentum/00000": np.zeros(3)})
    assert rule.clip_norm == 0.123
    assert rule.state()["clip_norm"].tolist() == [0.123]


def test_the_clip_norm_never_passes_what_updates_are_encoded_with() -> None:
    asked = config("client/central", dp__adaptive={"bit_noise": 0.5}, secagg__clip_norm=1.6)
    rule = CentralNoise(asked, 0.8, NAMES)
    for _ in range(5):
        rule.step(TURN, Total(np.zeros(1), 10, within=0.0))
    assert rule.largest_norm <= 1.6
    in_clear = config("client/central", dp__adaptive={"bit_noise": 0.5}, secagg__enabled=False)
    rule = CentralNoise(in_clear, 0.8, NAMES)
    for _ in range(9):
        rule.step(TURN, Total(np.zeros(1), 10, within=0.0))
    assert rule.largest_norm > 1.7
    assert next_clip_norm(1.5, 0.0, 0.5, 0.2) == pytest.approx(1.5 * math.exp(0.1))
    assert bit_noise(asked, 0.8) == 0.5
