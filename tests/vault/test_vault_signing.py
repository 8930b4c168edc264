import base64
import hashlib
import json
import os
import stat
import traceback
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fedveil.vault.errors import (
    KeyFileError,
    KeyFileExistsError,
    KeyFileMissingError,
    SignatureError,
)
from fedveil.vault.signing import (
    SigningKey,
    VerifyKey,
    create_signing_key,
    load_or_create_signing_key,
    load_signing_key,
)

KEY = SigningKey(bytes(range(32)))
BOUND, DIGEST = b"FVLT2\n...", bytes(range(32))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "signing.key"


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)


def fields(key: SigningKey = KEY) -> dict[str, object]:
    secret = base64.b64encode(key.secret).decode()
    return {
        "format": "fedveil-signing-1",
        "verify_key": key.verify_key.to_text(),
        "key": secret,
    }


def test_a_signature_is_ed25519_of_rfc_8032() -> None:
    """The first test vector of section 7.1, for the key, and the library for the message."""
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    assert SigningKey(seed).verify_key.raw == public
    statement = Ed25519PrivateKey.from_private_bytes(seed)
    message = b"fedveil/vault/2/file" + hashlib.sha256(BOUND).digest() + DIGEST
    assert SigningKey(seed).sign(BOUND, DIGEST) == statement.sign(message)


def test_what_was_signed_verifies_and_nothing_else() -> None:
    signature = KEY.sign(BOUND, DIGEST)
    KEY.verify_key.verify(signature, BOUND, DIGEST)
    other = SigningKey.generate().verify_key
    for key, made, bound, digest in (
        (other, signature, BOUND, DIGEST),
        (KEY.verify_key, bytes(64), BOUND, DIGEST),
        (KEY.verify_key, signature[:-1], BOUND, DIGEST),
        (KEY.verify_key, signature, BOUND + b"!", DIGEST),
        (KEY.verify_key, signature, BOUND, bytes(32)),
        (VerifyKey(bytes(32)), signature, BOUND, DIGEST),
    ):
        with pytest.raises(SignatureError, match="not signed by"):
            key.verify(made, bound, digest)


@given(st.binary(min_size=32, max_size=32))
def test_verify_keys_survive_their_text(raw: bytes) -> None:
    assert VerifyKey.from_text(VerifyKey(raw).to_text()) == VerifyKey(raw)


@pytest.mark.parametrize("text", ["", "é", "A" * 43, "A" * 43 + "=\n", "A" * 42 + "B=", "A" * 64])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(SignatureError, match="44 characters of base64"):
        VerifyKey.from_text(text)


def test_a_created_key_is_loaded_again(path: Path) -> None:
    key = create_signing_key(path)
    assert load_signing_key(path) == key
    assert load_or_create_signing_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == fields(key)


def test_a_missing_key_is_created_or_named(path: Path) -> None:
    with pytest.raises(KeyFileMissingError):
        load_signing_key(path)
    assert load_or_create_signing_key(path) == load_signing_key(path)


def test_a_key_file_is_never_replaced(path: Path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(KeyFileExistsError):
        create_signing_key(path)
    assert path.read_bytes() == b"precious"


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot create the signing key"):
        create_signing_key(tmp_path / "none" / "key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610])
def test_a_key_that_others_may_use_is_refused(path: Path, mode: int) -> None:
    create_signing_key(path)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="others may use it"):
        load_signing_key(path)


def test_a_link_and_a_pipe_are_refused(path: Path, tmp_path: Path) -> None:
    create_signing_key(path)
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for strange in ("link", "pipe"):
        with pytest.raises(KeyFileError):
            load_signing_key(tmp_path / strange)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 5000,
        json.dumps({**fields(), "format": "fedveil-key-1"}).encode(),
        json.dumps({**fields(), "key": 5}).encode(),
        json.dumps({**fields(), "key": "AAAA"}).encode(),
        json.dumps({**fields(), "key": "é"}).encode(),
        json.dumps({**fields(), "more": 1}).encode(),
        json.dumps({**fields(), "verify_key": "x" * 5000}).encode(),
    ],
)
def test_a_malformed_key_is_refused(path: Path, content: bytes) -> None:
    put(path, content)
    with pytest.raises(KeyFileError, match="not a signing key of the format fedveil-signing-1"):
        load_signing_key(path)


def test_a_key_of_another_verify_key_is_refused(path: Path) -> None:
    other = SigningKey.generate().verify_key.to_text()
    put(path, json.dumps({**fields(), "verify_key": other}).encode())
    with pytest.raises(KeyFileError, match="is damaged"):
        load_signing_key(path)


def test_no_repr_and_no_error_shows_the_key(path: Path) -> None:
    encoded = base64.b64encode(KEY.secret).decode()
    put(path, json.dumps({**fields(), "format": "other"}).encode())
    try:
        load_signing_key(path)
    except KeyFileError as error:
        shown = "".join(traceback.format_exception(error))
    for text in (shown, repr(KEY), str(KEY), repr(KEY.verify_key)):
        assert encoded not in text
        assert KEY.secret.hex() not in text
    assert KEY.verify_key.to_text() in repr(KEY)
    with pytest.raises(KeyFileError, match="32 bytes, not 3"):
        SigningKey(b"abc")
    with pytest.raises(SignatureError):
        VerifyKey(b"abc")
