"""Who brings the noise of a sum, by default and as configured, and what a round then releases."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from fedveil.client.shared_noise import (
    NoiseShares,
    bit_noise,
    dimension_of,
    noise_shares,
    skellam_mechanism,
    training_release,
)
from fedveil.config import Config, parse_config
from fedveil.privacy.accounting import Release
from fedveil.secagg.parameters import plan_for
from fedveil.settings import ConfigError, Tree, apply_override

CLIENT: Tree = {
    "task": {"name": "digits"},
    "dp": {"unit": "client", "noise": "distributed", "noise_multiplier": 2.0},
}
DIMENSION = 650


def settings(**changes: object) -> Config:
    tree = CLIENT
    for key, value in changes.items():
        tree = apply_override(tree, key.replace("__", "."), value)
    return parse_config(tree, "test")


@pytest.mark.parametrize("clients", [2, 3, 4, 10, 20, 100, 300])
def test_by_default_as_many_collude_as_secure_aggregation_bears(clients: int) -> None:
    found = noise_shares(settings(federation__clients=clients))
    assert found.min_survivors == plan_for(clients).quorum
    assert found.colluding == (15 if clients == 300 else (clients - 1) // 3)
    assert found.honest == found.min_survivors - found.colluding >= 1


def test_configured_numbers_hold_and_none_may_leave_nobody_honest() -> None:
    found = noise_shares(settings(dp__colluding=2, dp__min_survivors=9))
    assert (found.colluding, found.min_survivors, found.honest) == (2, 9, 7)
    with pytest.raises(ConfigError, match=r"must be more than dp\.colluding = 7"):
        noise_shares(settings(dp__colluding=7))
    with pytest.raises(ConfigError, match="at most the 10 clients"):
        NoiseShares(cohort=10, colluding=0, min_survivors=11)


def test_a_cohort_that_bears_no_plan_is_refused_in_one_line() -> None:
    over = {"federation__clients": 120, "secagg__corrupt_share": 0.45, "secagg__dropped_share": 0.4}
    with pytest.raises(ConfigError, match="client/distributed: no number of neighbours is safe"):
        noise_shares(settings(**over))


def test_every_honest_client_of_the_smallest_sum_brings_its_share() -> None:
    config = settings(dp__colluding=3, dp__min_survivors=7)
    made = skellam_mechanism(config, DIMENSION, 2.0)
    assert 4 * made.share_variance == pytest.approx((2.0 * made.sensitivity.l2) ** 2)


def test_the_release_of_a_round_is_that_of_its_mode() -> None:
    local = settings(dp__unit="record", dp__noise="local", training__local_steps=3)
    assert training_release(local, 2.0, DIMENSION) == Release(0.25, 2.0, 3)
    central = settings(dp__noise="central")
    assert training_release(central, 2.0, DIMENSION) == Release(1.0, 2.0, 1)
    shared = settings()
    expected = skellam_mechanism(shared, DIMENSION, 2.0).sensitivity
    assert training_release(shared, 2.0, DIMENSION) == Release(1.0, 2.0, 1, expected)
    record = settings(dp__unit="record", training__local_steps=1, training__nominal_records=100)
    found = training_release(record, 2.0, DIMENSION)
    assert (found.sampling_rate, found.noise_multiplier, found.count) == (0.25, 2.0, 1)
    assert found.integers == skellam_mechanism(record, DIMENSION, 2.0).sensitivity


def test_a_clip_norm_that_adapts_changes_no_sensitivity() -> None:
    config = settings(dp__adaptive={})
    found = {skellam_mechanism(config, DIMENSION, 2.0, c).sensitivity for c in (0.01, 1.0, 37.5)}
    assert len(found) == 1


def test_the_noise_on_bits_leaves_noise_for_the_update() -> None:
    assert bit_noise(settings(dp__adaptive={}), 0.3) == 0.5
    # A twentieth of ten clients would be less than half of the noise.
    assert bit_noise(settings(dp__adaptive={}), 2.0) == 2.0
    assert bit_noise(settings(dp__adaptive__bit_noise=7.0), 2.0) == 7.0
    with pytest.raises(ConfigError, match="more than the whole budget"):
        bit_noise(settings(dp__adaptive__bit_noise=1.5), 3.0)
    with pytest.raises(ConfigError, match="no bit is sent"):
        bit_noise(settings(), 2.0)


def test_the_dimension_counts_what_is_floating_point() -> None:
    arrays = ArrayRecord(
        {
            "weight": Array(np.zeros((3, 4), np.float32)),
            "scale": Array(np.zeros((), np.float64)),
            "count": Array(np.zeros(7, np.int64)),
        }
    )
    assert dimension_of(arrays) == 13
