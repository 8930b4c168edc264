"""Wrap slots, and files that were made to open under two keys."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st
from vault_files import MODEL_KEY, join, open_sealed, parts, seal

from fedveil.vault.buffers import buffer_reader
from fedveil.vault.errors import TamperedError, VaultError, WrongKeyError
from fedveil.vault.header import Header
from fedveil.vault.keyfile import Key
from fedveil.vault.slots import (
    FREE_SLOT,
    commitment,
    other_slot,
    slot_owner,
    unwrap_data_key,
    wrap_data_key,
)
from fedveil.vault.stream import decrypt_into
from fedveil.vault.tensors import TensorFile

DATA_KEY = bytes(range(64, 96))
OTHER_KEY = Key(bytes(range(1, 33)))
BOUND = b"the start of a file"
COMMITTED = commitment(DATA_KEY)


def slot(model_key: Key = MODEL_KEY, data_key: bytes = DATA_KEY) -> bytes:
    return wrap_data_key(data_key, model_key, BOUND)


def test_a_data_key_comes_back_from_either_slot() -> None:
    for slots in ((slot(), FREE_SLOT), (FREE_SLOT, slot()), (slot(OTHER_KEY), slot())):
        assert unwrap_data_key(slots, MODEL_KEY, BOUND, COMMITTED) == DATA_KEY


def test_a_slot_is_what_the_description_says() -> None:
    data = slot()
    assert len(data) == 96
    assert data[:16] == MODEL_KEY.key_id.encode()
    assert data[76:] == bytes(20)
    assert DATA_KEY not in data
    key = HKDF(SHA256(), 32, None, b"fedveil/vault/2/wrap").derive(MODEL_KEY.secret)
    assert AESGCM(key).decrypt(data[16:28], data[28:76], BOUND) == DATA_KEY
    committed = HKDF(SHA256(), 32, None, b"fedveil/vault/2/commit").derive(DATA_KEY)
    assert committed.hex() == COMMITTED


def test_owners_are_named() -> None:
    assert slot_owner(slot()) == MODEL_KEY.key_id
    assert slot_owner(FREE_SLOT) is None
    for strange in (b"\n" * 96, b"\xff" * 96, bytes(16) + b"x" * 80):
        assert slot_owner(strange) == "(damaged)"
    assert other_slot([slot(), FREE_SLOT], MODEL_KEY) == 1
    assert other_slot([slot(OTHER_KEY), slot()], MODEL_KEY) == 0
    with pytest.raises(WrongKeyError):
        other_slot([slot(OTHER_KEY), FREE_SLOT], MODEL_KEY)


@given(st.binary(min_size=96, max_size=96))
def test_slots_of_others_are_skipped_whatever_they_hold(strange: bytes) -> None:
    assert unwrap_data_key((strange, slot()), MODEL_KEY, BOUND, COMMITTED) == DATA_KEY
    with pytest.raises(WrongKeyError) as caught:
        unwrap_data_key((strange, FREE_SLOT), MODEL_KEY, BOUND, COMMITTED)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("byte", range(96))
def test_a_changed_slot_is_refused(byte: int) -> None:
    changed = bytearray(slot())
    changed[byte] ^= 1
    with pytest.raises(VaultError):
        unwrap_data_key((bytes(changed), FREE_SLOT), MODEL_KEY, BOUND, COMMITTED)


def test_a_slot_of_another_file_is_refused() -> None:
    with pytest.raises(TamperedError, match="wrap list is swapped"):
        unwrap_data_key((slot(), FREE_SLOT), MODEL_KEY, BOUND + b"!", COMMITTED)


def test_two_slots_of_one_model_key_are_refused() -> None:
    with pytest.raises(TamperedError):
        unwrap_data_key((slot(), slot()), MODEL_KEY, BOUND, COMMITTED)


def test_a_data_key_that_the_header_does_not_commit_to_is_refused() -> None:
    with pytest.raises(TamperedError, match="opens under several keys"):
        unwrap_data_key((slot(data_key=bytes(32)), FREE_SLOT), MODEL_KEY, BOUND, COMMITTED)


# AES-GCM with chosen keys: a ciphertext whose tag is right under two of them (Grubbs, Lu and
# Ristenpart 2017; the field of NIST SP 800-38D).

_FIELD = 0xE1 << 120


def times(a: int, b: int) -> int:
    product = 0
    for bit in range(127, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (_FIELD if b & 1 else 0)
    return product


def power(a: int, exponent: int) -> int:
    product = 1 << 127
    while exponent:
        if exponent & 1:
            product = times(product, a)
        a, exponent = times(a, a), exponent >> 1
    return product


@dataclass(frozen=True)
class Gcm:
    """What the attacker computes with a key of their own."""

    key: bytes
    nonce: bytes

    def _block(self, data: bytes) -> int:
        mode = modes.ECB()  # noqa: S305 - one block, as GCM itself does
        encryptor = Cipher(algorithms.AES(self.key), mode).encryptor()
        return int.from_bytes(encryptor.update(data), "big")

    def crypt(self, data: bytes) -> bytes:
        counter = self.nonce + (2).to_bytes(4, "big")
        return Cipher(algorithms.AES(self.key), modes.CTR(counter)).encryptor().update(data)

    @property
    def hash_key(self) -> int:
        return self._block(bytes(16))

    def tag(self, ciphertext: bytes, aad: bytes) -> int:
        state = 0
        for part in (aad, ciphertext):
            for at in range(0, len(part), 16):
                block = int.from_bytes(part[at : at + 16].ljust(16, b"\0"), "big")
                state = times(state ^ block, self.hash_key)
        lengths = (8 * len(aad)) << 64 | 8 * len(ciphertext)
        return times(state ^ lengths, self.hash_key) ^ self._block(self.nonce + b"\0\0\0\1")


def collide(one: Gcm, other: Gcm, ciphertext: bytes, free: int, aad: bytes) -> bytes:
    """Choose the free block so that the tag is right under both keys; return both."""
    blank = ciphertext[: 16 * free] + bytes(16) + ciphertext[16 * free + 16 :]
    exponent = -(-len(ciphertext) // 16) - free + 1
    slope = power(one.hash_key, exponent) ^ power(other.hash_key, exponent)
    block = times(one.tag(blank, aad) ^ other.tag(blank, aad), power(slope, 2**128 - 2))
    chosen = blank[: 16 * free] + block.to_bytes(16, "big") + blank[16 * free + 16 :]
    return chosen + one.tag(chosen, aad).to_bytes(16, "big")


def test_the_collision_is_real() -> None:
    keys, nonce = (bytes(range(32)), bytes(range(32, 64))), bytes(12)
    sealed = collide(Gcm(keys[0], nonce), Gcm(keys[1], nonce), bytes(80), 2, b"aad")
    assert len({AESGCM(key).decrypt(nonce, sealed, b"aad") for key in keys}) == 2


def test_a_slot_that_opens_under_two_model_keys_is_refused() -> None:
    nonce = bytes(12)
    wraps = [
        HKDF(SHA256(), 32, None, b"fedveil/vault/2/wrap").derive(key.secret)
        for key in (MODEL_KEY, OTHER_KEY)
    ]
    wrapped = collide(Gcm(wraps[0], nonce), Gcm(wraps[1], nonce), bytes(32), 1, BOUND)
    data_keys = [AESGCM(key).decrypt(nonce, wrapped, BOUND) for key in wraps]
    assert data_keys[0] != data_keys[1], "the slot opens under both"
    slots = [
        (key.key_id.encode() + nonce + wrapped).ljust(96, b"\0") for key in (MODEL_KEY, OTHER_KEY)
    ]
    committed = commitment(data_keys[0])
    assert unwrap_data_key(slots, MODEL_KEY, BOUND, committed) == data_keys[0]
    with pytest.raises(TamperedError, match="opens under several keys"):
        unwrap_data_key(slots, OTHER_KEY, BOUND, committed)


def test_a_file_whose_stream_opens_under_two_data_keys_opens_under_one() -> None:
    """Two holders of keys would be shown two models by one file."""
    keys = (bytes(range(32)), bytes(range(32, 64)))
    file = TensorFile({"weight": np.arange(64, dtype=np.uint8)})
    plain = b"".join(file.chunks())
    template = json.loads(parts(seal({}, signing_key=None))[0])
    fields = {**template, "plaintext_bytes": len(plain), "commitment": commitment(keys[0])}
    header = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    bound = Header.from_bytes(header).bound()

    salt, prefix = bytes(32), bytes(7)
    nonce = prefix + bytes(4) + b"\1"
    one, other = (Gcm(HKDF(SHA256(), 32, salt, bound).derive(key), nonce) for key in keys)
    free = len(plain) // 16 - 1
    segment = collide(one, other, one.crypt(plain), free, b"")
    stream = bytes([40]) + salt + prefix + segment
    for key in keys:
        decrypt_into(memoryview(bytearray(len(plain))), key, buffer_reader(stream), 0, bound)

    slots = wrap_data_key(keys[0], MODEL_KEY, bound) + wrap_data_key(keys[1], OTHER_KEY, bound)
    data = join(header, slots, bytes(96), stream)
    assert open_sealed(data, verify_key=None)[1]["weight"].shape == (64,)
    with pytest.raises(TamperedError, match="opens under several keys"):
        open_sealed(data, model_key=OTHER_KEY, verify_key=None)
