from __future__ import annotations

import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_attacker import agree

from fedveil.secagg.errors import ProtocolError, RosterError
from fedveil.secagg.identity import NAME_BYTES, Identity, Roster, check_name, verifies
from fedveil.secagg.transcript import commit_to_seed, commit_to_share, digest, kdf

# RFC 8032, section 7.1: secret key, public key, message, signature.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]
# Points of low order on Curve25519, after RFC 7748, section 6.1, and its errata.
LOW_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


def key_of(number: int) -> bytes:
    return bytes([number]) * 32


@pytest.mark.parametrize(("secret", "public", "message", "signature"), RFC_8032)
def test_keys_and_signatures_are_those_of_the_standard(
    secret: str, public: str, message: str, signature: str
) -> None:
    identity = Identity("alice", bytes.fromhex(secret))
    assert identity.public_key.hex() == public
    assert identity.sign(bytes.fromhex(message)).hex() == signature
    assert verifies(bytes.fromhex(public), bytes.fromhex(signature), bytes.fromhex(message))


@pytest.mark.parametrize(("secret", "public", "message", "signature"), RFC_8032)
def test_every_flipped_bit_of_a_signature_key_or_message_is_refused(
    secret: str, public: str, message: str, signature: str
) -> None:
    parts = [bytes.fromhex(public), bytes.fromhex(signature), bytes.fromhex(message) or b"\0"]
    for which, part in enumerate(parts):
        for bit in range(8 * len(part)):
            flipped = bytearray(part)
            flipped[bit // 8] ^= 1 << bit % 8
            key, signed, text = (bytes(flipped) if i == which else p for i, p in enumerate(parts))
            assert not verifies(key, signed, text)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), b"\xff" * 32])
def test_what_is_no_key_verifies_nothing(key: bytes) -> None:
    assert not verifies(key, bytes(64), b"text")


@pytest.mark.parametrize("length", [0, 63, 65])
def test_a_signature_of_another_length_is_refused(length: int) -> None:
    identity = Identity.generate("alice")
    signature = (identity.sign(b"text") + b"\0")[:length]
    assert not verifies(identity.public_key, signature, b"text")


def test_a_generated_key_signs_and_no_two_are_the_same() -> None:
    one, other = Identity.generate("alice"), Identity.generate("alice")
    assert one.secret != other.secret
    assert verifies(one.public_key, one.sign(b"text"), b"text")
    assert not verifies(other.public_key, one.sign(b"text"), b"text")


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_private_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(RosterError, match=f"has 32 bytes, not {length}"):
        Identity("alice", bytes(length))


def test_an_identity_shows_its_name_alone() -> None:
    identity = Identity("alice", bytes(range(32)))
    assert repr(identity) == str(identity) == "Identity(name='alice')"
    with pytest.raises(dataclasses.FrozenInstanceError):
        identity.name = "bob"  # type: ignore[misc]


NAMES = ["a", "alice", "clinic-7", "zürich", "a" * NAME_BYTES, "é" * (NAME_BYTES // 2), "名前"]
NOT_NAMES = [
    "",
    " ",
    "a b",
    "a" * (NAME_BYTES + 1),
    "é" * (NAME_BYTES // 2) + "a",
    "a\n",
    "a\tb",
    "a\0",
    "\u200b",
    "\u202ea",
    "a\u00a0b",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_can_be_told_apart_pass(name: str) -> None:
    check_name(name)
    assert Identity(name, bytes(32)).name == name
    assert Roster({name: bytes(32)}).keys == {name: bytes(32)}


@pytest.mark.parametrize("name", NOT_NAMES)
def test_names_that_could_not_be_shown_or_sent_are_refused(name: str) -> None:
    for make in (
        lambda: check_name(name),
        lambda: Identity(name, bytes(32)),
        lambda: Roster({name: bytes(32)}),
    ):
        with pytest.raises(RosterError, match="1 to 64 printable bytes without spaces") as caught:
            make()
        assert "\n" not in str(caught.value)


def test_a_roster_knows_its_clients_by_their_keys() -> None:
    roster = Roster({"alice": key_of(1), "bob": key_of(2)})
    roster.check("alice", key_of(1))
    with pytest.raises(RosterError, match="'carol' is not in this client's roster"):
        roster.check("carol", key_of(1))
    for wrong in (key_of(2), b"", key_of(1)[:31], key_of(1) + b"\0"):
        with pytest.raises(RosterError, match="'alice' shows another key"):
            roster.check("alice", wrong)


def test_a_roster_with_one_key_for_two_names_is_refused() -> None:
    with pytest.raises(RosterError, match="alice and bob have the same public key"):
        Roster({"alice": key_of(1), "carol": key_of(3), "bob": key_of(1)})


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_roster_with_a_malformed_key_is_refused(length: int) -> None:
    with pytest.raises(RosterError, match=f"public key of alice has {length} bytes"):
        Roster({"alice": bytes(length)})


def test_a_roster_cannot_be_changed_afterwards() -> None:
    keys = {"alice": key_of(1)}
    roster = Roster(keys)
    keys["mallory"] = key_of(2)
    assert "mallory" not in roster.keys
    with pytest.raises(TypeError):
        roster.keys["mallory"] = key_of(2)  # type: ignore[index]
    assert Roster({}).keys == {}


# What keys and seals are bound to ------------------------------------------------------------


@given(st.lists(st.binary(max_size=6), max_size=4), st.lists(st.binary(max_size=6), max_size=4))
@settings(max_examples=200)
def test_no_two_lists_of_parts_have_one_digest_or_key(
    parts: list[bytes], others: list[bytes]
) -> None:
    assert (digest("x", *parts) == digest("x", *others)) == (parts == others)
    assert (kdf(bytes(32), "x", *parts) == kdf(bytes(32), "x", *others)) == (parts == others)


def test_parts_that_join_to_the_same_bytes_are_told_apart() -> None:
    assert len({digest("x", b"ab", b"c"), digest("x", b"a", b"bc"), digest("x", b"abc")}) == 3
    assert digest("x", b"") != digest("x")


def test_purposes_keep_digests_and_keys_apart() -> None:
    assert digest("self", b"a") != digest("pair", b"a")
    assert kdf(bytes(32), "self", b"a") != kdf(bytes(32), "pair", b"a")
    assert kdf(bytes(32), "self", b"a") != kdf(key_of(1), "self", b"a")


def test_keys_agree_as_in_the_standard() -> None:
    # RFC 7748, section 6.1.
    bob = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"
    alice_public = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert agree(bytes.fromhex(bob), bytes.fromhex(alice_public)).hex() == shared


@pytest.mark.parametrize("point", LOW_ORDER)
def test_keys_of_low_order_are_refused(point: str) -> None:
    with pytest.raises(ProtocolError, match="low order"):
        agree(key_of(9), bytes.fromhex(point))


def test_commitments_hang_on_all_that_they_are_to() -> None:
    usual = (key_of(1), 1, "seed", 2, 3, 4)
    changed = [(key_of(2),), (key_of(1), 2), (key_of(1), 1, "key"), (key_of(1), 1, "seed", 3)]
    changed += [(key_of(1), 1, "seed", 2, 4), (key_of(1), 1, "seed", 2, 3, 5)]
    found = {commit_to_share(*(c + usual[len(c) :])) for c in [usual, *changed]}  # type: ignore[arg-type]
    assert len(found) == 7
    seeds = {
        commit_to_seed(*arguments)
        for arguments in [
            (key_of(1), 1, 2, key_of(3)),
            (key_of(2), 1, 2, key_of(3)),
            (key_of(1), 2, 2, key_of(3)),
            (key_of(1), 1, 3, key_of(3)),
            (key_of(1), 1, 2, key_of(4)),
        ]
    }
    assert len(seeds) == 5


def test_a_key_pair_of_ed25519_is_what_the_library_makes_of_it() -> None:
    identity = Identity("alice", key_of(5))
    expected = Ed25519PrivateKey.from_private_bytes(key_of(5)).public_key().public_bytes_raw()
    assert identity.public_key == expected
