from __future__ import annotations

import itertools
import random
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedveil.secagg import shamir
from fedveil.secagg.errors import ShareError
from fedveil.secagg.shamir import PRIME, combine, split

SMALL = 17
SECRETS = st.binary(min_size=32, max_size=32)


def as_secret(value: int) -> bytes:
    return value.to_bytes(32, "big")


class Coefficients:
    """Stands in for the operating system's generator, with coefficients that the test chooses."""

    def __init__(self, *values: int) -> None:
        self._values = list(values)
        self.bounds: list[int] = []

    def randbelow(self, bound: int) -> int:
        self.bounds.append(bound)
        return self._values.pop(0)


@given(st.data(), SECRETS, st.integers(1, 12))
@settings(max_examples=60)
def test_any_threshold_of_the_shares_gives_the_secret(
    data: st.DataObject, secret: bytes, count: int
) -> None:
    threshold = data.draw(st.integers(1, count))
    points = data.draw(st.lists(st.integers(1, 2**32), min_size=count, max_size=count, unique=True))
    shares = split(secret, threshold, points)
    assert set(shares) == set(points)
    assert all(0 <= share < PRIME for share in shares.values())
    chosen = data.draw(
        st.lists(st.sampled_from(points), min_size=threshold, max_size=count, unique=True)
    )
    assert combine({point: shares[point] for point in chosen}, threshold) == secret


def test_every_choice_of_three_out_of_six_gives_the_secret() -> None:
    shares = split(bytes(range(32)), 3, range(1, 7))
    for chosen in itertools.combinations(shares, 3):
        assert combine({point: shares[point] for point in chosen}, 3) == bytes(range(32))


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, as_secret(1), as_secret(2**255)])
def test_secrets_at_the_ends_are_elements_of_the_field(secret: bytes) -> None:
    assert combine(split(secret, 2, [1, 2**31, 3]), 2) == secret


@pytest.mark.parametrize("threshold", [2, 3])
def test_fewer_shares_than_the_threshold_fit_every_secret_equally_often(
    monkeypatch: pytest.MonkeyPatch, threshold: int
) -> None:
    points = [1, 4, 16]
    for seen in itertools.combinations(points, threshold - 1):
        counts: Counter[tuple[tuple[int, ...], int]] = Counter()
        for secret in range(SMALL):
            for chosen in itertools.product(range(SMALL), repeat=threshold - 1):
                monkeypatch.setattr(shamir, "secrets", Coefficients(*chosen))
                shares = split(as_secret(secret), threshold, points, SMALL)
                counts[tuple(shares[point] for point in seen), secret] += 1
        # Whatever the t - 1 shares are, each of the secrets gives them once.
        assert len(counts) == SMALL**threshold
        assert set(counts.values()) == {1}


def test_threshold_many_shares_fit_one_secret_only(monkeypatch: pytest.MonkeyPatch) -> None:
    owner: dict[tuple[int, ...], int] = {}
    for secret, slope in itertools.product(range(SMALL), repeat=2):
        monkeypatch.setattr(shamir, "secrets", Coefficients(slope))
        shares = tuple(split(as_secret(secret), 2, [3, 5], SMALL).values())
        assert owner.setdefault(shares, secret) == secret
    assert len(owner) == SMALL**2


def test_coefficients_are_drawn_from_the_whole_field(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Coefficients(0, 1, 2)
    monkeypatch.setattr(shamir, "secrets", source)
    split(bytes(32), 4, [1, 2, 3, 4])
    assert source.bounds == [PRIME] * 3


def test_a_polynomial_worked_out_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # f(x) = 13 + 5 x + 7 x^2 modulo 17: f(1) = 25, f(2) = 51, f(3) = 91, f(10) = 763.
    monkeypatch.setattr(shamir, "secrets", Coefficients(5, 7))
    shares = split(as_secret(13), 3, [1, 2, 3, 10], SMALL)
    assert shares == {1: 8, 2: 0, 3: 6, 10: 15}
    for chosen in itertools.combinations(shares, 3):
        assert combine({p: shares[p] for p in chosen}, 3, SMALL) == as_secret(13)


def test_a_line_in_the_large_field_worked_out_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # f(x) = 5 - x: the slope is the field's last element, and f(6) wraps to p - 1.
    monkeypatch.setattr(shamir, "secrets", Coefficients(2**256 + 296))
    shares = split(as_secret(5), 2, [1, 5, 6])
    assert shares == {1: 4, 5: 0, 6: 2**256 + 296}
    assert combine({5: 0, 6: 2**256 + 296}, 2) == as_secret(5)


def test_the_field_is_the_prime_just_above_all_secrets() -> None:
    assert PRIME == 2**256 + 297
    assert is_prime(PRIME)
    assert not any(is_prime(2**256 + offset) for offset in range(1, 297))
    assert PRIME < 256**shamir.SHARE_BYTES


def test_the_test_for_primes_tells_them_apart() -> None:
    assert [n for n in range(2, 40) if is_prime(n)] == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37]
    assert not is_prime(561)
    assert not is_prime(3215031751)
    assert is_prime(2**255 - 19)


def is_prime(n: int) -> bool:
    """Miller-Rabin with small bases and 64 random ones."""
    small = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if n < 2 or any(n % p == 0 for p in small):
        return n in small
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    draw = random.Random(7)  # noqa: S311  # witnesses, not secrets
    for base in (*small, *(draw.randrange(2, n - 1) for _ in range(64))):
        power = pow(base, odd, n)
        if power in (1, n - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % n
            if power == n - 1:
                break
        else:
            return False
    return True


@pytest.mark.parametrize("threshold", [-1, 0, 4])
def test_an_impossible_threshold_is_refused(threshold: int) -> None:
    with pytest.raises(ShareError, match=f"threshold of {threshold} .* 3 shares"):
        split(bytes(32), threshold, [1, 2, 3])


@pytest.mark.parametrize("points", [[1, 2, 1], [0, 1, 2], [-1, 1, 2], [1, 2, PRIME]])
def test_points_that_would_give_the_secret_or_nothing_are_refused(points: list[int]) -> None:
    with pytest.raises(ShareError, match="distinct points, and none at 0"):
        split(bytes(32), 2, points)


def test_a_secret_outside_of_the_field_is_refused() -> None:
    with pytest.raises(ShareError, match="no element"):
        split(as_secret(SMALL), 2, [1, 2], SMALL)
    with pytest.raises(ShareError, match="no element"):
        split(b"\xff" * 33, 2, [1, 2])


def test_too_few_shares_are_refused() -> None:
    shares = split(bytes(32), 3, [1, 2, 3])
    with pytest.raises(ShareError, match="2 shares are there, 3 are needed"):
        combine({1: shares[1], 3: shares[3]}, 3)
    with pytest.raises(ShareError, match="0 shares"):
        combine({}, 1)


def test_shares_of_a_number_above_all_secrets_are_refused() -> None:
    with pytest.raises(ShareError, match="no 32-byte secret"):
        combine({1: 2**256, 2: 2**256}, 2)


@given(SECRETS, st.integers(0, 2), st.integers(1, PRIME - 1))
@settings(max_examples=30)
def test_a_changed_share_never_gives_the_secret(secret: bytes, which: int, change: int) -> None:
    shares = split(secret, 3, [1, 2, 3])
    shares[which + 1] = (shares[which + 1] + change) % PRIME
    with suppress(ShareError):
        assert combine(shares, 3) != secret


def test_two_sharings_of_a_secret_differ() -> None:
    assert split(bytes(32), 2, [1, 2]) != split(bytes(32), 2, [1, 2])
