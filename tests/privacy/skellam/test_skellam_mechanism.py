"""The mechanism: what one unit can change, what noise there is, what fits, what comes back."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedveil.privacy.accounting import Release, rdp_epsilon
from fedveil.privacy.clipping import ClippingError, update_noise_multiplier
from fedveil.privacy.randomness import SecureGenerator
from fedveil.privacy.skellam import mechanism
from fedveil.privacy.skellam.errors import SkellamError, VectorError
from fedveil.privacy.skellam.mechanism import LARGEST_WRAP_PROBABILITY, SkellamMechanism

RECORD = SkellamMechanism("record", 50, 2.0, 1.0, 10, 4, 32, max_records=64)
CLIENT = SkellamMechanism("client", 50, 2.0, 1.0, 10, 4, 32)
ADAPTIVE = replace(CLIENT, bit_noise=1.5)
SEED = b"public"


def unit_vector(dimension: int, seed: int, length: float = 1.0) -> NDArray[np.float64]:
    vector = np.random.default_rng(seed).standard_normal(dimension)
    return vector * (length / np.linalg.norm(vector))


@pytest.fixture
def _silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(count: int, variance: float, generator: SecureGenerator) -> NDArray[np.int64]:
        return np.zeros(count, dtype=np.int64)

    monkeypatch.setattr(mechanism, "draw_skellam", zeros)


def encoded_alike(
    of: SkellamMechanism, vectors: list[NDArray[np.float64]], seed: int
) -> list[NDArray[np.int64]]:
    """Encode with one and the same randomness: rounding and noise are then equal."""
    return [of.encode(v, SEED, SecureGenerator.from_seed(seed)) for v in vectors]


@given(
    st.sampled_from([1, 2, 7, 64, 333]),
    st.floats(0.0, 100.0),
    st.sampled_from(["any", "dense", "one", "against"]),
    st.integers(0, 2**32),
)
def test_one_record_moves_the_sum_by_no_more_than_the_sensitivity(
    dimension: int, length: float, shape: str, seed: int
) -> None:
    of = replace(RECORD, dimension=dimension)
    # Sums up to, and beyond, what they are scaled down to.
    others = unit_vector(dimension, seed, length * of.clip_norm)
    if shape == "dense":
        record = np.full(dimension, 1.0 / math.sqrt(dimension))
    elif shape == "one":
        record = np.eye(dimension)[0]
    elif shape == "against":
        record = -others / max(1e-9, float(np.linalg.norm(others)))
    else:
        record = unit_vector(dimension, seed + 1)
    record = record * of.clip_norm
    without, with_it = encoded_alike(of, [others, others + record], seed)
    change = with_it - without
    assert math.sqrt(sum(int(x) ** 2 for x in change)) <= of.sensitivity.l2
    assert sum(abs(int(x)) for x in change) <= of.sensitivity.l1


@pytest.mark.usefixtures("_silent")
def test_rounding_really_costs_more_than_the_clip_norm() -> None:
    # Half of the coordinates move by one more than the scale says: what l2 allows for is real.
    dimension = 2**15
    of = SkellamMechanism("record", dimension, 1.0, 1.0, 10, 4, 32, max_records=4)
    fraction = (math.floor(of.scale / math.sqrt(dimension)) + 0.5) / (
        of.scale / math.sqrt(dimension)
    )
    assert fraction <= 1.01
    worst = 0.0
    for seed in range(5):
        direction = mechanism.unrotate(np.ones(dimension) / math.sqrt(dimension), SEED)
        without, with_it = encoded_alike(of, [np.zeros(dimension), fraction * direction], seed)
        worst = max(worst, float(np.linalg.norm(with_it - without)))
    assert worst > fraction * of.scale
    assert worst <= of.sensitivity.l2


@pytest.mark.usefixtures("_silent")
@pytest.mark.parametrize("of", [CLIENT, ADAPTIVE, replace(CLIENT, dimension=5000)])
@pytest.mark.parametrize("length", [0.0, 0.5, 1.0, 1.0 + 1e-12, 7.0, 8e307])
def test_a_clients_integers_never_pass_the_sensitivity(of: SkellamMechanism, length: float) -> None:
    generator = SecureGenerator.from_seed("client", str(length))
    bit = None if of.bit_noise is None else True
    for seed in range(20):
        vector = unit_vector(of.dimension, seed) * of.clip_norm * length
        integers = of.encode(vector, SEED, generator, bit=bit)
        assert sum(int(x) ** 2 for x in integers) <= of.sensitivity.l2**2 * (1 + 1e-15)
        assert sum(abs(int(x)) for x in integers) <= of.sensitivity.l1
        if length >= 1.0:
            kept = float(np.linalg.norm(integers[: of.dimension])) / of.scale
            assert kept == pytest.approx(of.clip_norm, rel=0.02)


@pytest.mark.parametrize("unit", ["record", "client"])
@pytest.mark.parametrize("dimension", [1, 10, 1000, 10**6, 10**7])
def test_rounding_costs_about_one_per_cent_at_most(unit: Any, dimension: int) -> None:
    of = SkellamMechanism(unit, dimension, 0.3, 1.0, 4, 2, 32)
    assert of.scale * of.clip_norm <= of.sensitivity.l2 <= 1.0101 * of.scale * of.clip_norm
    if unit == "client":
        wide = replace(of, bit_noise=math.sqrt(1 / 3) + 1e-3)
        left = math.sqrt(wide.sensitivity.l2**2 - (wide.bit_weight / 2) ** 2)
        assert left <= 1.0101 * wide.scale * wide.clip_norm


def test_skellam_noise_costs_about_as_much_as_gaussian_noise() -> None:
    for of in (RECORD, CLIENT, ADAPTIVE, replace(CLIENT, dimension=1, noise_multiplier=0.2)):
        z = of.noise_multiplier
        integer = rdp_epsilon([Release(1.0, z, 1, of.sensitivity)], 1e-5)
        assert integer <= 1.0001 * rdp_epsilon([Release(1.0, z, 1)], 1e-5)


@pytest.mark.parametrize("of", [RECORD, CLIENT, ADAPTIVE])
def test_the_shares_of_the_honest_come_to_the_whole_noise(of: SkellamMechanism) -> None:
    asked: list[tuple[int, float]] = []
    generator = SecureGenerator.from_seed("shares")
    totals = []
    with pytest.MonkeyPatch.context() as patch:
        real = mechanism.draw_skellam
        patch.setattr(
            mechanism, "draw_skellam", lambda c, v, g: asked.append((c, v)) or real(c, v, g)
        )
        bit = None if of.bit_noise is None else True
        for _ in range(300):
            zeros = np.zeros(of.dimension)
            parts = [of.encode(zeros, SEED, generator, bit=bit) for _ in range(of.honest)]
            totals.append(np.sum(parts, axis=0))
    assert set(asked) == {(of.length, of.share_variance)}
    assert of.share_variance * of.honest == pytest.approx(of.variance, rel=1e-15)
    assert of.variance == (of.noise_multiplier * of.sensitivity.l2) ** 2
    draws = np.array(totals, dtype=float)
    measured = np.mean((draws - draws.mean(axis=0)) ** 2) * 300 / 299
    assert measured == pytest.approx(of.variance, rel=4.5 * math.sqrt(2 / draws.size))


@pytest.mark.parametrize("of", [RECORD, CLIENT, ADAPTIVE, replace(CLIENT, ring_bits=16)])
def test_the_sum_comes_back_through_the_ring(of: SkellamMechanism) -> None:
    generator = SecureGenerator.from_seed("sum")
    vectors = [unit_vector(of.dimension, i, of.clip_norm) for i in range(of.clients)]
    bits = [i % 3 == 0 for i in range(of.clients)]
    ring = 2**of.ring_bits
    total = np.zeros(of.length, dtype=np.int64)
    for vector, bit in zip(vectors, bits, strict=True):
        part = of.encode(vector, SEED, generator, bit=None if of.bit_noise is None else bit)
        assert part.dtype == np.int64
        assert part.shape == (of.length,)
        total = (total + part) % ring
    centred = np.where(total >= ring // 2, total - ring, total)
    found = of.decode(centred, SEED)
    deviation = math.sqrt(of.share_variance * of.clients + of.clients / 4) / of.scale
    assert found.shape == (of.dimension,)
    assert np.abs(found - np.sum(vectors, axis=0)).max() < 5 * deviation
    if of.bit_noise is not None:
        # All clients add their share, the honest ones alone bring bit_noise.
        noise = of.bit_noise * math.sqrt(of.clients / of.honest)
        assert abs(of.decode_bits(centred) - (sum(bits) - of.clients / 2)) < 5 * noise


@pytest.mark.usefixtures("_silent")
def test_decoding_is_right_on_average() -> None:
    vector = unit_vector(50, 3, CLIENT.clip_norm)
    generator = SecureGenerator.from_seed("mean")
    mean = np.mean(
        [CLIENT.decode(CLIENT.encode(vector, SEED, generator), SEED) for _ in range(2000)], axis=0
    )
    assert np.abs(mean - vector).max() < 5 * 0.5 / CLIENT.scale / math.sqrt(2000)


def test_a_wrapped_sum_is_a_function_of_the_sum_alone() -> None:
    # Post-processing: whoever has the integers can compute the words, with no other knowledge.
    of = replace(CLIENT, ring_bits=16)
    integers = of.encode(unit_vector(50, 1, 2.0), SEED, SecureGenerator()) + 2**20
    assert np.array_equal((integers % 2**16).astype(np.uint16), integers.astype(np.uint16))


def test_long_sums_of_gradients_are_scaled_down_not_cut() -> None:
    generator = SecureGenerator.from_seed("long")
    vector = unit_vector(50, 5, 1000 * RECORD.clip_norm)
    found = RECORD.decode(RECORD.encode(vector, SEED, generator), SEED)
    assert np.linalg.norm(found) == pytest.approx(64 * RECORD.clip_norm, rel=0.3)
    assert found @ vector > 0.9 * np.linalg.norm(found) * np.linalg.norm(vector)


@pytest.mark.parametrize(("z", "bit_noise"), [(1.0, 5.0), (1.0, 0.6), (0.5, 50.0), (4.0, 4.0)])
def test_bits_cost_what_andrew_et_al_say(z: float, bit_noise: float) -> None:
    of = replace(CLIENT, dimension=10_000, noise_multiplier=z, bit_noise=bit_noise)
    sigma = math.sqrt(of.variance)
    actual_bits = sigma / of.bit_weight
    assert actual_bits == pytest.approx(bit_noise, rel=0.5 / (of.bit_weight / 2))
    vector_part = math.sqrt(of.sensitivity.l2**2 - (of.bit_weight / 2) ** 2)
    assert sigma / vector_part == pytest.approx(update_noise_multiplier(z, actual_bits), rel=1e-12)


def test_the_sensitivity_depends_on_neither_clip_norm_nor_noise() -> None:
    for of in (RECORD, CLIENT, ADAPTIVE):
        for other in (replace(of, clip_norm=1e-3), replace(of, noise_multiplier=0.7)):
            assert other.sensitivity == of.sensitivity
        assert replace(of, clip_norm=of.clip_norm / 8).scale == 8 * of.scale


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "cohort"}, "unit must be record or client, not 'cohort'"),
        ({"dimension": 0}, "vector of 0 coordinates is impossible"),
        ({"clip_norm": 0.0}, "clip_norm must be positive and finite, not 0.0"),
        ({"clip_norm": math.nan}, "clip_norm must be positive and finite, not nan"),
        ({"clip_norm": 1e-101}, "clip_norm = 1e-101 is beyond what can be computed with"),
        ({"clip_norm": 1e101}, r"is beyond what can be computed with: 1e-100 to 1e\+100"),
        ({"noise_multiplier": math.inf}, "noise_multiplier must be positive and finite, not inf"),
        (
            {"noise_multiplier": 1e160},
            r"noise_multiplier = 1e\+160 is beyond any use: at most 1e\+30",
        ),
        ({"bit_noise": -1.0}, "bit_noise must be positive and finite, not -1.0"),
        ({"honest": 0}, "of 10 clients 0 cannot be honest"),
        ({"honest": 11}, "of 10 clients 11 cannot be honest"),
        ({"ring_bits": 24}, "ring_bits must be 16 or 32, not 24"),
        ({"max_records": 2}, "max_records is 1 with the unit client, not 2"),
        ({"max_records": 0}, "max_records must be at least 1, not 0"),
        ({"bit_noise": 0.55}, r"bit_noise = 0.55 leaves too little .* at least 0.5774"),
        ({"unit": "record", "bit_noise": 1.0}, "bit_noise is for the unit client"),
        (
            {"ring_bits": 16, "noise_multiplier": 8.0},
            r"10 clients of 50 coordinates does not fit into 16 bits: .* take 32 bits, or fewer",
        ),
        ({"noise_multiplier": 1e4}, r"share of the noise has a variance of 6\.57e\+12"),
        (
            {"unit": "record", "dimension": 10**7, "max_records": 10**6},
            r"does not fit into 32 bits: .* fewer clients, less noise or smaller batches",
        ),
    ],
)
def test_what_is_impossible_is_refused_with_its_numbers(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SkellamError, match=message):
        replace(CLIENT, **changes)


def test_bits_that_cost_more_than_everything_are_refused() -> None:
    with pytest.raises(ClippingError, match="must exceed half of the noise multiplier 1"):
        replace(CLIENT, bit_noise=0.5)


def test_the_most_noise_that_passes_fits_16_bits() -> None:
    of = _last_that_passes(CLIENT, "noise_multiplier", np.geomspace(0.1, 100.0, 200), ring_bits=16)
    assert 0 < of.wrap_probability <= LARGEST_WRAP_PROBABILITY
    generator = SecureGenerator.from_seed("noise")
    totals = [of.encode(np.zeros(50), SEED, generator) for _ in range(1000)]
    largest = np.abs(np.sum(np.reshape(totals, (100, 10, 50)), axis=1)).max()
    # It fits, and what is left is no more than one draw in a million asks for.
    assert largest < 2**15 < 3 * largest


def test_the_largest_sum_that_passes_fits_32_bits() -> None:
    of = _last_that_passes(RECORD, "max_records", np.geomspace(1, 1e8, 200).astype(int).tolist())
    generator = SecureGenerator.from_seed("sum")
    vector = unit_vector(50, 2, of.max_records * of.clip_norm)
    largest = np.abs(of.encode(vector, SEED, generator)).max() * of.clients
    assert largest < 2**31 < 8 * largest


def _last_that_passes(
    base: SkellamMechanism, name: str, values: Any, **changes: Any
) -> SkellamMechanism:
    passing = []
    for value in values:
        try:
            passing.append(replace(base, **changes, **{name: value}))
        except SkellamError as error:
            assert "does not fit" in str(error)  # noqa: PT017
            return passing[-1]
    raise AssertionError("everything passed")


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.zeros(49), r"float64 of shape \(50,\), not float64 of shape \(49,\)"),
        (np.zeros(50, dtype=np.float32), "not float32"),
        (np.full(50, np.nan), "NaN or infinity"),
        (np.array([np.inf] + [0.0] * 49), "NaN or infinity"),
    ],
)
def test_unfit_vectors_are_refused(vector: NDArray[np.float64], message: str) -> None:
    for of in (RECORD, CLIENT):
        with pytest.raises(VectorError, match=message):
            of.encode(vector, SEED, SecureGenerator())


def test_bits_are_taken_if_and_only_if_wanted() -> None:
    zeros = np.zeros(50)
    for of, bit in ((CLIENT, True), (ADAPTIVE, None), (RECORD, False)):
        with pytest.raises(VectorError, match="if and only if bit_noise is set"):
            of.encode(zeros, SEED, SecureGenerator(), bit=bit)
    with pytest.raises(VectorError, match="no bits are summed"):
        CLIENT.decode_bits(np.zeros(50, dtype=np.int64))
    with pytest.raises(VectorError, match=r"int64 of shape \(51,\)"):
        ADAPTIVE.decode(np.zeros(50, dtype=np.int64), SEED)


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_noise_is_fresh_in_every_encoding(seed: int) -> None:
    generator = SecureGenerator.from_seed(seed)
    one, two = (CLIENT.encode(np.zeros(50), SEED, generator) for _ in range(2))
    assert not np.array_equal(one, two)
