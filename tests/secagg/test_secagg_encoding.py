from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedveil.secagg.encoding import (
    MOST_FIGURES,
    TAIL_WORDS,
    DecodedSum,
    Encoding,
    check_names,
)
from fedveil.secagg.errors import EncodingError, ImpossibleSumError
from fedveil.secagg.masking import BLOCK_BYTES

Words = tuple[NDArray[np.unsignedinteger], NDArray[np.uint64]]
Arrays = Sequence[NDArray[np.floating]]

COUNTS = [1, 2, 3, 4, 5, 7, 8, 9, 100, 1000, 1023, 1024, 1025, 2047]


def encode(
    encoding: Encoding,
    update: Arrays,
    weight: float = 1.0,
    figures: Mapping[str, float] | None = None,
    base: Arrays | None = None,
) -> Words:
    _, vector, tail = encoding.empty()
    zero = [np.zeros_like(array) for array in update]
    encoding.encode(update, zero if base is None else base, weight, figures or {}, vector, tail)
    return vector, tail


def sum_of(encoding: Encoding, words: Sequence[Words]) -> Words:
    _, vector, tail = encoding.empty()
    for one, one_tail in words:
        vector += one
        tail += one_tail
    return vector, tail


def decode(
    encoding: Encoding,
    words: Sequence[Words],
    shapes: Sequence[tuple[int, ...]] | None = None,
    names: Sequence[str] = (),
) -> DecodedSum:
    vector, tail = sum_of(encoding, words)
    return encoding.decode(vector, tail, len(words), names, shapes or [(encoding.dimension,)])


def tail_of(encoding: Encoding, clients: int, weight: float, clipped: int = 0) -> Words:
    _, vector, tail = encoding.empty()
    tail[:3] = round(weight * 2**20), clients, clipped
    return vector, tail


# No overflow ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ring_bits", [16, 32])
@pytest.mark.parametrize("clients", COUNTS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_sum_of_all_clients_at_the_limit_does_not_wrap(
    ring_bits: int, clients: int, sign: int
) -> None:
    encoding = Encoding(1, 1.0, 1.0, clients, ring_bits)
    vector, tail = tail_of(encoding, clients, float(clients))
    most = clients * encoding.limit
    vector[0] = sign * most % 2**ring_bits
    assert most < 2 ** (ring_bits - 1)
    mean = encoding.decode(vector, tail, clients, (), [(1,)]).mean[0]
    assert mean[0] == pytest.approx(sign * encoding.limit / encoding.scale)
    vector[0] = sign * (most + 1) % 2**ring_bits
    with pytest.raises(ImpossibleSumError, match=f"over {clients} clients passes"):
        encoding.decode(vector, tail, clients, (), [(1,)])


@pytest.mark.parametrize("ring_bits", [16, 32])
@pytest.mark.parametrize("clients", [3, 5, 7, 9, 100, 1000, 1023, 2047])
def test_one_bit_more_a_client_would_wrap(ring_bits: int, clients: int) -> None:
    encoding = Encoding(1, 1.0, 1.0, clients, ring_bits)
    assert encoding.limit == 2 ** (encoding.value_bits - 1) - 1
    assert clients * (2**encoding.value_bits - 1) >= 2 ** (ring_bits - 1)


@pytest.mark.parametrize("ring_bits", [16, 32])
@pytest.mark.parametrize("clients", [3, 5, 100])
def test_so_many_clients_more_at_the_limit_would_wrap(ring_bits: int, clients: int) -> None:
    encoding = Encoding(1, 1.0, 1.0, clients, ring_bits)
    too_many = 2 ** (ring_bits - 1) // encoding.limit + 1
    assert clients < too_many <= 2 * clients + 2
    wrapped = np.full(too_many, encoding.limit, encoding.dtype).sum(dtype=encoding.dtype)
    assert int(wrapped.view(f"<i{encoding.dtype.itemsize}")) < 0


@pytest.mark.parametrize("ring_bits", [16, 32])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_no_word_passes_the_limit_however_large_the_update(ring_bits: int, sign: float) -> None:
    for clients in COUNTS:
        encoding = Encoding(1, 0.1, 3.0, clients, ring_bits)
        for size in (0.1, math.nextafter(0.1, 1), math.nextafter(0.1, 0), 1.0, 1e30, 1e150):
            for _ in range(20):
                vector, _ = encode(encoding, [np.array([sign * size])], weight=3.0)
                word = int(vector.view(f"<i{vector.itemsize}")[0])
                assert encoding.limit - 1 <= sign * word <= encoding.limit


@given(
    st.integers(1, 2047),
    st.sampled_from([16, 32]),
    st.floats(1e-30, 1e30),
    st.lists(st.floats(-1e100, 1e100), min_size=1, max_size=8),
    st.floats(2**-20, 1.0),
)
@settings(max_examples=200)
def test_no_word_passes_the_limit(
    clients: int, ring_bits: int, clip_norm: float, update: list[float], weight: float
) -> None:
    encoding = Encoding(len(update), clip_norm, 1.0, clients, ring_bits)
    vector, _ = encode(encoding, [np.array(update)], weight)
    signed = vector.view(f"<i{vector.itemsize}").astype(np.int64)
    assert np.abs(signed).max() <= encoding.limit


def test_a_full_house_at_the_limit_gives_the_mean() -> None:
    for ring_bits in (16, 32):
        encoding = Encoding(2, 1.0, 1.0, 127, ring_bits)
        for sign in (1.0, -1.0):
            words = [encode(encoding, [np.array([sign, 0.0])])] * 127
            mean = decode(encoding, words).mean[0]
            assert mean[0] == pytest.approx(sign, abs=encoding.error_bound(127, 127.0))


# Errors of rounding --------------------------------------------------------------------------


@given(st.data(), st.integers(1, 6), st.integers(1, 12), st.sampled_from([16, 32]))
@settings(max_examples=150)
def test_the_mean_is_right_within_the_error_bound(
    data: st.DataObject, clients: int, dimension: int, ring_bits: int
) -> None:
    most = data.draw(st.sampled_from([1.0, 2.5, 1000.0]))
    encoding = Encoding(dimension, 50.0, most, data.draw(st.integers(clients, 50)), ring_bits)
    values = st.lists(st.floats(-10.0, 10.0), min_size=dimension, max_size=dimension)
    updates = [np.array(data.draw(values)) for _ in range(clients)]
    weights = [data.draw(st.integers(1, int(most * 2**20))) / 2**20 for _ in range(clients)]
    total = sum(weights)
    words = [encode(encoding, [u], w) for u, w in zip(updates, weights, strict=True)]
    found = decode(encoding, words)
    expected = sum(w / total * u for u, w in zip(updates, weights, strict=True))
    assert found.weight == total
    assert found.clients == clients
    assert found.clipped == 0
    error = np.abs(found.mean[0] - expected).max()
    assert error <= encoding.error_bound(clients, total) * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9, -0.25, 2.0**-10])
def test_rounding_has_no_bias(fraction: float) -> None:
    # Hoeffding: 400 000 roundings miss the value by 0.0052 with probability below 1e-9.
    count = 400_000
    encoding = Encoding(count, 1000.0, 1.0, 3)
    value = (7 + fraction) / encoding.scale
    vector, tail = encode(encoding, [np.full(count, value)])
    words = vector.view("<i4").astype(np.int64)
    assert tail[2] == 0, "the update was clipped"
    # A value that is a whole number but for the error of a double may fall on either side.
    assert set(np.unique(words)) <= {math.floor(7 + fraction), math.floor(7 + fraction) + 1, 6, 7}
    assert abs(words.mean() - (7 + fraction)) < 0.0052


def test_rounding_never_uses_the_same_random_numbers_twice() -> None:
    step = BLOCK_BYTES // 8
    encoding = Encoding(3 * step, 1000.0, 1.0, 3)
    update = [np.full(3 * step, 0.5 / encoding.scale)]
    vector, _ = encode(encoding, update)
    again, _ = encode(encoding, update)
    rounds = [*vector.reshape(3, -1), *again.reshape(3, -1)]
    for i, one in enumerate(rounds):
        for other in rounds[:i]:
            # Half of 32 768 coin pairs agree, but for a chance below 2 exp(-2 n 0.03^2) < 1e-25.
            assert abs((one == other).mean() - 0.5) < 0.03


def test_rounding_can_be_repeated_with_its_key_and_is_fresh_without() -> None:
    encoding = Encoding(500, 1000.0, 1.0, 3)
    update = [np.full(500, 0.5 / encoding.scale)]

    def rounded(key: bytes | None) -> bytes:
        _, vector, tail = encoding.empty()
        encoding.encode(update, [np.zeros(500)], 1.0, {}, vector, tail, key)
        return vector.tobytes()

    assert rounded(bytes(32)) == rounded(bytes(32))
    assert len({rounded(bytes(32)), rounded(b"\1" * 32), rounded(None), rounded(None)}) == 4


# Clipping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.5, 10.0, 1e6, 1e100])
def test_a_large_update_is_scaled_to_the_norm_and_counted(factor: float) -> None:
    encoding = Encoding(4, 5.0, 1.0, 3)
    direction = np.array([[3.0, 0.0], [0.0, -4.0]])
    found = decode(encoding, [encode(encoding, [direction * factor])], [(2, 2)])
    assert found.clipped == 1
    assert found.mean[0] == pytest.approx(direction, abs=encoding.error_bound(1, 1.0))


def test_an_update_of_exactly_the_norm_is_not_clipped() -> None:
    encoding = Encoding(2, 5.0, 1.0, 3)
    assert decode(encoding, [encode(encoding, [np.array([3.0, 4.0])])]).clipped == 0
    above = np.array([3.0, math.nextafter(4.0, 5.0)])
    just_below = dataclasses.replace(encoding, clip_norm=math.nextafter(5.0, 0.0))
    assert decode(just_below, [encode(just_below, [above])]).clipped == 1


def test_the_norm_is_that_of_all_arrays_together_and_of_the_difference() -> None:
    encoding = Encoding(2, 5.0, 1.0, 3)
    update, base = (
        [np.array([1003.3]), np.array([[-995.6]])],
        [np.array([1000.0]), np.array([[-1000.0]])],
    )
    found = decode(encoding, [encode(encoding, update, base=base)], [(1,), (1, 1)])
    assert found.clipped == 1
    assert float(found.mean[0][0]) == pytest.approx(3.0, abs=1e-7)
    assert float(found.mean[1][0, 0]) == pytest.approx(4.0, abs=1e-7)


def test_the_clipped_are_counted_over_clients() -> None:
    encoding = Encoding(1, 1.0, 1.0, 5)
    words = [encode(encoding, [np.array([size])]) for size in (0.5, 2.0, -3.0, 1.0, 0.0)]
    found = decode(encoding, words)
    assert (found.clipped, found.clients) == (2, 5)
    assert found.mean[0][0] == pytest.approx(0.3, abs=encoding.error_bound(5, 5.0))


# What cannot be encoded ----------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200, -1e308])
@pytest.mark.parametrize("at", [0, 1, BLOCK_BYTES // 8, BLOCK_BYTES // 8 + 3])
def test_an_update_that_is_not_finite_does_not_leave_the_client(bad: float, at: int) -> None:
    size = BLOCK_BYTES // 8 + 4
    update = np.zeros(size)
    update[at] = bad
    encoding = Encoding(size, 1.0, 1.0, 3)
    _, vector, tail = encoding.empty()
    with pytest.raises(EncodingError, match="NaN or infinity"):
        encoding.encode([update], [np.zeros(size)], 1.0, {}, vector, tail)
    assert not vector.any()
    assert not tail.any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_infinity_is_refused_in_every_type(dtype: type[np.floating]) -> None:
    encoding = Encoding(1, 1.0, 1.0, 3)
    infinite = [np.array([np.inf], dtype)]
    with pytest.raises(EncodingError, match="NaN or infinity"):
        encode(encoding, infinite)
    with pytest.raises(EncodingError, match="NaN or infinity"):
        encode(encoding, infinite, base=infinite)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf, 2.0000001, 1e300])
def test_weights_out_of_bounds_are_refused(weight: float) -> None:
    encoding = Encoding(1, 1.0, 2.0, 3)
    with pytest.raises(EncodingError, match="must be above 0 and at most max_weight = 2"):
        encode(encoding, [np.zeros(1)], weight)


def test_weights_at_the_bounds_pass_and_below_the_least_are_refused() -> None:
    encoding = Encoding(1, 1.0, 2.0, 3)
    for weight in (2.0, 2.0**-20, 1.5 * 2.0**-20):
        words = encode(encoding, [np.zeros(1)], weight)
        assert decode(encoding, [words]).weight == math.floor(weight * 2**20) / 2**20
    with pytest.raises(EncodingError, match="below the least"):
        encode(encoding, [np.zeros(1)], 2.0**-20 * 0.999)


def test_an_update_of_another_size_or_shape_is_refused() -> None:
    encoding = Encoding(6, 1.0, 1.0, 3)
    for update, base in (
        ([np.zeros(5)], [np.zeros(5)]),
        ([np.zeros(7)], [np.zeros(7)]),
        ([np.zeros(6)], [np.zeros((2, 3))]),
        ([np.zeros((2, 3))], [np.zeros((3, 2))]),
        ([np.zeros(6)], [np.zeros(1)]),
        ([np.zeros(3), np.zeros(3)], [np.zeros(3)]),
        ([np.zeros(6)], [np.zeros(6), np.zeros(0)]),
        ([], []),
    ):
        with pytest.raises(EncodingError, match="the session is for 6"):
            encode(encoding, update, base=base)


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf])
def test_figures_that_are_not_finite_are_refused(figure: float) -> None:
    with pytest.raises(EncodingError, match="the figure loss must be finite"):
        encode(Encoding(1, 1.0, 1.0, 3), [np.zeros(1)], figures={"loss": figure})


@pytest.mark.parametrize("clients", [1, 3, 1000])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_figures_at_the_bound_sum_right_and_above_are_refused(clients: int, sign: float) -> None:
    encoding = Encoding(0, 1.0, 1.0, clients)
    most = 2.0**42 / clients
    figures = {"a": sign * most}
    found = decode(encoding, [encode(encoding, [], figures=figures)] * clients, [], ["a"])
    assert found.figures["a"] == pytest.approx(sign * 2.0**42, rel=1e-9)
    with pytest.raises(EncodingError, match="the figure a"):
        encode(encoding, [], figures={"a": sign * math.nextafter(most, math.inf)})


def test_as_many_figures_as_the_tail_holds_and_no_more() -> None:
    encoding = Encoding(0, 1.0, 1.0, 3)
    figures = {f"figure {i:02d}": i - 30.25 for i in range(MOST_FIGURES)}
    words = encode(encoding, [], figures=figures)
    assert MOST_FIGURES == TAIL_WORDS - 3
    assert decode(encoding, [words], [], sorted(figures)).figures == figures
    with pytest.raises(EncodingError, match=f"{MOST_FIGURES + 1} figures are too many"):
        encode(encoding, [], figures={**figures, "more": 0.0})


def test_a_figure_named_twice_is_refused() -> None:
    check_names(["a", "b"])
    with pytest.raises(EncodingError, match="twice"):
        check_names(["a", "b", "a"])


@given(st.lists(st.dictionaries(st.just("x"), st.floats(-1e6, 1e6), min_size=1), max_size=5))
@settings(max_examples=60)
def test_figures_are_summed_to_a_millionth(parts: list[dict[str, float]]) -> None:
    encoding = Encoding(0, 1.0, 1.0, 6)
    figures = [{"x": 1.25, **part} for part in [{}, *parts]]
    words = [encode(encoding, [], figures=f) for f in figures]
    found = decode(encoding, words, [], ["x"]).figures["x"]
    assert abs(found - math.fsum(f["x"] for f in figures)) <= len(figures) * 2.0**-21 + 1e-9


# Shapes and types ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_type_of_float_is_taken(dtype: type[np.floating]) -> None:
    encoding = Encoding(3, 1.0, 1.0, 3)
    update = np.array([0.5, -0.25, 0.125], dtype)
    mean = decode(encoding, [encode(encoding, [update])]).mean[0]
    assert mean.dtype == np.float64
    assert mean == pytest.approx([0.5, -0.25, 0.125], abs=encoding.error_bound(1, 1.0))


def test_types_may_differ_between_arrays_and_half_precision_does_not_overflow() -> None:
    encoding = Encoding(2, 1e6, 1.0, 3)
    update = [np.array([60000.0], np.float16), np.array([1.0], np.float64)]
    base = [np.array([-60000.0], np.float16), np.array([0.0], np.float32)]
    mean = decode(encoding, [encode(encoding, update, base=base)]).mean[0]
    assert mean == pytest.approx([120000.0, 1.0], abs=encoding.error_bound(1, 1.0))


def test_scalars_empty_arrays_and_transposed_ones_keep_their_places() -> None:
    encoding = Encoding(8, 100.0, 1.0, 3)
    grid = np.arange(6.0).reshape(2, 3).T
    update = [np.array(7.0), np.zeros((0, 4)), grid, np.array([-1.0])]
    mean = decode(encoding, [encode(encoding, update)], [(), (0, 4), (3, 2), (1,)]).mean
    assert [part.shape for part in mean] == [(), (0, 4), (3, 2), (1,)]
    for found, expected in zip(mean, update, strict=True):
        assert found == pytest.approx(expected, abs=encoding.error_bound(1, 1.0))


def test_the_arrays_of_the_client_are_left_as_they_are() -> None:
    encoding = Encoding(3, 1.0, 1.0, 3)
    update, base = np.array([5.0, 6.0, 7.0]), np.array([1.0, 2.0, 3.0])
    update.flags.writeable = base.flags.writeable = False
    encode(encoding, [update], base=[base])
    assert update.tolist() == [5.0, 6.0, 7.0]


def test_a_session_without_coordinates_sums_figures_alone() -> None:
    encoding = Encoding(0, 1.0, 1.0, 3)
    words = [encode(encoding, [], 0.5, {"n": 3.0}), encode(encoding, [], 1.0, {"n": 4.0})]
    vector, tail = sum_of(encoding, words)
    found = encoding.decode(vector, tail, 2, ["n"], [])
    assert found == DecodedSum((), 1.5, 2, 0, {"n": 7.0})


@pytest.mark.parametrize("ring_bits", [16, 32])
def test_a_vector_has_the_bytes_that_its_words_take(ring_bits: int) -> None:
    encoding = Encoding(5, 1.0, 1.0, 3, ring_bits)
    assert encoding.vector_bytes == 5 * ring_bits // 8 + 512
    buffer, vector, tail = encoding.empty()
    vector[:] = 1
    tail[:] = 2
    assert (
        bytes(buffer) == (1).to_bytes(ring_bits // 8, "little") * 5 + (2).to_bytes(8, "little") * 64
    )
    for length in (0, len(buffer) - 1, len(buffer) + 1):
        with pytest.raises(EncodingError, match=f"not {length}"):
            encoding.views(bytes(length))


def test_words_of_an_update_worked_out_by_hand() -> None:
    # 3 clients leave 14 of 16 bits, so the limit is 8191 and 1.0 becomes 8190 whole words.
    encoding = Encoding(3, 1.0, 4.0, 3, 16)
    assert (encoding.value_bits, encoding.limit, encoding.scale) == (14, 8191, 8190.0)
    vector, tail = encode(encoding, [np.array([0.5, -0.5, 0.0])], 4.0, {"b": -1.0, "a": 0.5})
    assert vector.tolist() == [4095, 2**16 - 4095, 0]
    assert tail[:5].tolist() == [4 * 2**20, 1, 0, 2**19, 2**64 - 2**20]
    assert not tail[5:].any()


# What honest clients cannot have sent --------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "clipped", "weight"),
    [
        (2, 0, 3.0),
        (4, 0, 3.0),
        (0, 0, 3.0),
        (3, 4, 3.0),
        (3, 2**64 - 1, 3.0),
        (3, 0, 0.0),
        (3, 0, 6.0 + 2**-20),
        (3, 0, 2.0**43),
    ],
)
def test_impossible_counts_and_weights_are_refused(count: int, clipped: int, weight: float) -> None:
    encoding = Encoding(2, 1.0, 2.0, 10)
    vector, tail = encoding.empty()[1:]
    tail[:3] = np.array([round(weight * 2**20), count, clipped], np.uint64)
    with pytest.raises(ImpossibleSumError, match="the sum over 3 clients"):
        encoding.decode(vector, tail, 3, (), [(2,)])


def test_counts_and_weights_at_the_bounds_pass() -> None:
    encoding = Encoding(2, 1.0, 2.0, 10)
    for weight, clipped in ((6.0, 3), (2.0**-20, 0)):
        vector, tail = tail_of(encoding, 3, weight, clipped)
        found = encoding.decode(vector, tail, 3, (), [(2,)])
        assert (found.weight, found.clipped) == (weight, clipped)


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("ring_bits", [16, 32])
def test_a_coordinate_that_these_clients_cannot_reach_is_refused(at: int, ring_bits: int) -> None:
    encoding = Encoding(2, 1.0, 1.0, 10, ring_bits)
    for word in (3 * encoding.limit + 1, -3 * encoding.limit - 1, -(2 ** (ring_bits - 1))):
        vector, tail = tail_of(encoding, 3, 3.0)
        vector[at] = word % 2**ring_bits
        with pytest.raises(ImpossibleSumError, match=f"passes 3 x {encoding.limit}"):
            encoding.decode(vector, tail, 3, (), [(2,)])


# Settings that have no encoding --------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"ring_bits": 64},
        {"ring_bits": 0},
        {"dimension": -1},
        {"dimension": 2**40},
        {"max_clients": 0},
        {"max_clients": 2**12, "ring_bits": 16},
        {"max_clients": 2**28},
        {"clip_norm": 0.0},
        {"clip_norm": -1.0},
        {"clip_norm": math.nan},
        {"clip_norm": math.inf},
        {"max_weight": 0.0},
        {"max_weight": math.nan},
        {"max_weight": math.inf},
        {"max_weight": math.nextafter(2.0**42 / 10, math.inf)},
    ],
)
def test_settings_without_an_encoding_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(EncodingError):
        dataclasses.replace(Encoding(3, 1.0, 1.0, 10), **change)  # type: ignore[arg-type]


def test_settings_at_the_edges_have_an_encoding() -> None:
    assert Encoding(0, 1.0, 1.0, 2**12 - 1, 16).value_bits == 4
    assert Encoding(0, 1.0, 2.0**42 / 2**28, 2**28 - 1, 32).value_bits == 4
    assert Encoding(2**40 - 1, 1.0, 1.0, 1).value_bits == 31


@pytest.mark.parametrize("ring_bits", [16, 32])
@pytest.mark.parametrize("clients", COUNTS)
def test_the_bits_are_those_of_the_design(ring_bits: int, clients: int) -> None:
    bits = Encoding(1, 1.0, 1.0, clients, ring_bits).value_bits
    assert bits == ring_bits - math.ceil(math.log2(clients + 1))
