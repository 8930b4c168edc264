import hashlib
import hmac
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from fedveil.vault.errors import KekError, KeyFileError, TamperedError, WrongKeyError
from fedveil.vault.kek.interface import WrappedKey
from fedveil.vault.kek.key_file import KeyFileKek, open_key_file
from fedveil.vault.keyfile import Key, create_key

KEY = Key(bytes(range(32)))
SECRET = bytes(range(32, 64))
CONTEXT = b"context"
# Made once by the lines of `independently_opened`, run the other way round.
FROZEN = WrappedKey(
    "file",
    "255c52ed961e573c",
    bytes.fromhex(
        "404142434445464748494a4bbc122cc56c50fa9a4e7dcd287d37e329d80f5063dfb74b2e9cdef5413ca7bda6"
        "053dfcc6e7a54e70d0995c1951e14eca"
    ),
    {},
)

secrets = st.binary(min_size=32, max_size=32)
contexts = st.binary(max_size=200)


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()


def framed(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def independently_opened(blob: bytes, context: bytes) -> bytes:
    derived = hmac_sha256(hmac_sha256(bytes(32), KEY.secret), b"fedveil/vault/kek/1\x01")
    associated = framed(b"fedveil/vault/kek/1", b"file", b"255c52ed961e573c", context)
    return AESGCM(derived).decrypt(blob[:12], blob[12:], associated)


def test_the_frozen_vector_opens() -> None:
    assert KeyFileKek(KEY).unwrap(FROZEN, CONTEXT) == SECRET
    assert independently_opened(FROZEN.blob, CONTEXT) == SECRET


@given(secrets, contexts)
def test_the_format_is_what_the_documentation_says(secret: bytes, context: bytes) -> None:
    wrapped = KeyFileKek(KEY).wrap(secret, context)
    assert (wrapped.provider, wrapped.key_id) == ("file", KEY.key_id)
    assert dict(wrapped.parameters) == {}
    assert len(wrapped.blob) == 60
    assert independently_opened(wrapped.blob, context) == secret


@given(secrets, secrets, contexts)
def test_what_is_wrapped_is_unwrapped(key: bytes, secret: bytes, context: bytes) -> None:
    kek = KeyFileKek(Key(key))
    wrapped = kek.wrap(secret, context)
    assert kek.unwrap(wrapped, context) == secret
    again = kek.rewrap(wrapped, context)
    assert again.blob != wrapped.blob
    assert kek.unwrap(again, context) == secret


@given(contexts, contexts)
def test_another_context_does_not_open(context: bytes, other: bytes) -> None:
    kek = KeyFileKek(KEY)
    wrapped = kek.wrap(SECRET, context)
    if other != context:
        with pytest.raises(TamperedError, match="belongs to another store"):
            kek.unwrap(wrapped, other)
        with pytest.raises(TamperedError):
            kek.rewrap(wrapped, other)


def test_every_flipped_bit_is_noticed() -> None:
    kek = KeyFileKek(KEY)
    for position in range(8 * len(FROZEN.blob)):
        flipped = bytearray(FROZEN.blob)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(TamperedError):
            kek.unwrap(replace(FROZEN, blob=bytes(flipped)), CONTEXT)


@pytest.mark.parametrize("length", [1, 12, 28, 59, 61, 8192])
def test_a_blob_of_another_length_is_refused(length: int) -> None:
    blob = (FROZEN.blob + bytes(8192))[:length]
    with pytest.raises(TamperedError, match="was changed"):
        KeyFileKek(KEY).unwrap(replace(FROZEN, blob=blob), CONTEXT)


def test_another_key_is_named() -> None:
    other = KeyFileKek(Key(bytes(32)))
    with pytest.raises(WrongKeyError, match=f"'255c52ed961e573c', not by '{other.key_id}'"):
        other.unwrap(FROZEN, CONTEXT)


def test_a_forged_name_does_not_open_with_another_key() -> None:
    other = KeyFileKek(Key(bytes(32)))
    with pytest.raises(TamperedError):
        other.unwrap(replace(FROZEN, key_id=other.key_id), CONTEXT)


def test_another_provider_is_named() -> None:
    with pytest.raises(WrongKeyError, match="of the provider 'aws', not by one of 'file'"):
        KeyFileKek(KEY).unwrap(replace(FROZEN, provider="aws"), CONTEXT)


def test_parameters_are_refused() -> None:
    with pytest.raises(KekError, match="has 0 parameters of fixed names, not the 1 given"):
        KeyFileKek(KEY).unwrap(replace(FROZEN, parameters={"salt": 1}), CONTEXT)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_secret_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(KekError, match=f"32 bytes, not {length}"):
        KeyFileKek(KEY).wrap(bytes(length), CONTEXT)


def test_a_key_file_is_opened(tmp_path: Path) -> None:
    key = create_key(tmp_path / "key")
    kek = open_key_file(str(tmp_path / "key"))
    assert kek.key_id == key.key_id
    assert KeyFileKek(key).unwrap(kek.wrap(SECRET, CONTEXT), CONTEXT) == SECRET


def test_no_path_is_an_error() -> None:
    with pytest.raises(KekError, match="needs the path of a key file"):
        open_key_file("")


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    create_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(KeyFileError, match="mode 0640"):
        open_key_file(str(tmp_path / "key"))


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    create_key(tmp_path / "key")
    (tmp_path / "link").symlink_to(tmp_path / "key")
    with pytest.raises(KeyFileError, match="symbolic link"):
        open_key_file(str(tmp_path / "link"))


def test_nothing_shows_a_secret() -> None:
    kek = KeyFileKek(KEY)
    with pytest.raises(TamperedError) as caught:
        kek.unwrap(FROZEN, b"other")
    shown = [repr(kek), repr(FROZEN), *traceback.format_exception(caught.value)]
    for text in shown:
        for secret in (KEY.secret, SECRET, hmac_sha256(bytes(32), KEY.secret)):
            assert secret.hex() not in text
            assert repr(secret) not in text
    assert caught.value.__cause__ is None
