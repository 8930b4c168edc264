"""The clip norm finds its quantile, and its price is what the paper says."""

import math

import numpy as np
import pytest

from fedveil.privacy.accounting import Release, pld_epsilon
from fedveil.privacy.clipping import ClippingError, next_clip_norm, update_noise_multiplier


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("start", [0.05, 50.0])
def test_the_clip_norm_finds_the_quantile_from_both_sides(quantile: float, start: float) -> None:
    random = np.random.default_rng(7)
    cohort, clip, path = 100, start, []
    for _ in range(400):
        norms = random.lognormal(0.0, 0.5, cohort)
        bits = np.sum((norms <= clip) - 0.5) + random.normal(0.0, cohort / 20)
        clip = next_clip_norm(clip, bits / cohort + 0.5, quantile, 0.2)
        path.append(clip)
    # The quantile of the norms is approached as in figure 2 of the paper.
    share = np.mean(random.lognormal(0.0, 0.5, 100_000)[:, None] <= np.array(path[-100:]), axis=0)
    assert np.mean(share) == pytest.approx(quantile, abs=0.03)


def test_one_step_by_hand() -> None:
    assert next_clip_norm(2.0, 0.75, 0.5, 0.2) == pytest.approx(2.0 * math.exp(-0.05), rel=1e-15)
    assert next_clip_norm(2.0, 0.25, 0.5, 0.2) > 2.0
    assert next_clip_norm(2.0, 0.5, 0.5, 0.2) == 2.0


@pytest.mark.parametrize(("z", "bit_noise"), [(1.0, 5.0), (0.7, 0.5), (3.0, 1.6)])
def test_updates_and_bits_together_cost_what_z_says(z: float, bit_noise: float) -> None:
    both = [
        Release(1.0, update_noise_multiplier(z, bit_noise), 1),
        # Shifted by one half, a bit is of sensitivity one half.
        Release(1.0, bit_noise / 0.5, 1),
    ]
    assert pld_epsilon(both, 1e-5) == pytest.approx(
        pld_epsilon([Release(1.0, z, 1)], 1e-5), abs=3e-3
    )


def test_free_bits_cost_nothing() -> None:
    assert update_noise_multiplier(1.3, 1e9) == pytest.approx(1.3, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 0.5, 0.5, 0.2), "clip norm must be positive and finite, not 0.0"),
        ((1.0, math.nan, 0.5, 0.2), "must be finite, not nan"),
        ((1.0, 0.5, 1.0, 0.2), r"target quantile must lie in \(0, 1\), not 1.0"),
        ((1.0, 0.5, 0.5, -0.2), "learning rate of the clip norm must be positive"),
        ((5e-324, 1.0, 0.1, 1.0), "next clip norm must be positive and finite, not 0.0"),
        ((1e300, -1e9, 0.5, 1.0), "next clip norm must be positive and finite, not inf"),
    ],
)
def test_impossible_steps_are_refused(
    arguments: tuple[float, float, float, float], message: str
) -> None:
    with pytest.raises(ClippingError, match=message):
        next_clip_norm(*arguments)


@pytest.mark.parametrize("bit_noise", [0.1, 0.5])
def test_bits_that_cost_more_than_both_may_are_refused(bit_noise: float) -> None:
    with pytest.raises(ClippingError, match="must exceed half of the noise multiplier 1, but is"):
        update_noise_multiplier(1.0, bit_noise)
    with pytest.raises(ClippingError, match="positive and finite"):
        update_noise_multiplier(1.0, math.inf)
