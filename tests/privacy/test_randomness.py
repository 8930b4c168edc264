"""The generator's variates against their laws, and its keystream against NIST's vectors."""

import ast
import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedveil.privacy import randomness
from fedveil.privacy.randomness import SecureGenerator


def test_words_are_the_aes_256_ctr_keystream() -> None:
    # NIST CAVP, ECBVarKey256 style known answer: AES-256 of the zero block under the zero key.
    words = SecureGenerator(bytes(32)).words(2)
    assert words.astype("<u8").tobytes().hex() == "dc95c078a2408989ad48a21492842087"


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 16"):
        SecureGenerator(bytes(16))


def test_fresh_generators_differ_and_seeded_ones_repeat() -> None:
    assert not np.array_equal(SecureGenerator().words(4), SecureGenerator().words(4))
    a, b = (SecureGenerator.from_seed("x", 1).words(4) for _ in range(2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, SecureGenerator.from_seed("x", 2).words(4))


def test_seed_parts_are_told_apart() -> None:
    first = SecureGenerator.from_seed("a", 1).words(1)
    assert first != SecureGenerator.from_seed("a", "1").words(1)
    assert first != SecureGenerator.from_seed("a1").words(1)


def test_octets_are_the_words_keystream_however_many_are_asked_for() -> None:
    one, other = (SecureGenerator(bytes(32)) for _ in range(2))
    for count in (0, 1, 2**18, 2**18 + 1, 7):
        assert one.octets(count).tobytes() == other._stream.update(bytes(count))


@pytest.mark.parametrize("probability", [0.01, 0.25, 0.999])
def test_bernoulli_has_its_rate(probability: float) -> None:
    draws = SecureGenerator.from_seed("b", str(probability)).bernoulli(400_000, probability)
    assert stats.binomtest(int(draws.sum()), len(draws), probability).pvalue > 1e-3


def test_bernoulli_at_the_ends() -> None:
    generator = SecureGenerator()
    assert not generator.bernoulli(1000, 0.0).any()
    assert generator.bernoulli(1000, 1.0).all()
    with pytest.raises(ValueError, match=r"\[0, 1\], not 1.5"):
        generator.bernoulli(1, 1.5)


@given(st.integers(0, 300))
def test_permutation_holds_every_index_once(count: int) -> None:
    assert sorted(SecureGenerator().permutation(count)) == list(range(count))


def test_nothing_secret_comes_from_a_plain_generator() -> None:
    tree = ast.parse(inspect.getsource(randomness))
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    attributes = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert "random" not in imported | attributes
