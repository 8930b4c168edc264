"""The format is frozen: a file of once is read, and by a reader that shares no code with ours."""

import base64
import hashlib
import hmac
import json
import struct

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from vault_files import ADDRESS, MODEL_KEY, VERIFY_KEY, open_sealed, seal

from fedveil.vault.keylist import SealedKeyList
from fedveil.vault.tensors import Array

GOLDEN = base64.b64decode(
    "RlZMVDIKAAABkXsiY29tbWl0bWVudCI6IjQyMGVjODExYjEyNjdlNWMxZjg3N2ZlNmNkNzMzYjAyMDFkZjI2ZThhZmMy"
    "Yjg0N2Y4NDA3MDAwNjY0YTFjMTgiLCJjcmVhdGVkIjoiMjAzMS0wNS0xN1QwODowMDowMFoiLCJraW5kIjoibW9kZWwi"
    "LCJtZXRhIjp7Imxvc3MiOjAuMjUsIm5vdGUiOiLDqSJ9LCJwbGFpbnRleHRfYnl0ZXMiOjE2MCwicHJldmlvdXMiOiJh"
    "YmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiIiwicm91"
    "bmQiOjcsInJ1biI6ImRpZ2l0cyIsInN0YXRlIjoiY2RjZGNkY2RjZGNkY2RjZGNkY2RjZGNkY2RjZGNkY2RjZGNkY2Rj"
    "ZGNkY2RjZGNkY2RjZGNkY2RjZGNkY2RjZCIsInN0b3JlIjoiMDEyMzQ1Njc4OWFiY2RlZiIsInZlcnNpb24iOjJ9MjU1"
    "YzUyZWQ5NjFlNTczY5OUqqbE7KWk0t2wljORVls18gsHROujqj66LY6uwHRoHdadvGFUj3leLz70BVWPJIbmjj0qTdAC"
    "Zx1/IwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA+2sKltJqGj3sGv5mj9CB1Gm5"
    "Ig/kJlHsnt1Y4JERNlmiYG0AlWWsP3CWK1Fsmt3+SuiMcPVBrIXaO2HQUdZw6FpnubpOTjbxC5HkDP50lW5wBL0QslaA"
    "Qun1uMx4aBIOKHRJp48MTTW3nIcbj+ZkfthNvaMkA4BLr0Po1WyNQ7hk2ZYe1HPbQ/WlMx3aigDSllhbjpMXORUFHjxN"
    "SPLl0zhAuKmuBK7LSQ6iCDddrkOEi7sRAlOgRAQPrBXRlc3F0OD7u9sGmlBfxYtrfigIvPt2J6YwYXc1xho0AuB0xQvq"
    "t5/0WokEvs+ZSXk+nw6E2L+YBVsVaCp8rAmcoG1ErKBevcGzTNxbw+MSB+dxL5jhmGhC+m5MHBWND46jp8U7rGb1wW70"
    "YjgO7SGyKJ34xU8ZSPvBHFeh"
)
MIB = 1 << 20


def independent(data: bytes, model_key_id: str, model_key: bytes, verify_key: bytes) -> bytes:
    """Return the plaintext of a file, from docs/vault.md alone."""

    def derive(key: bytes, salt: bytes | None, info: bytes) -> bytes:
        return HKDF(SHA256(), 32, salt, info).derive(key)

    assert data[:6] == b"FVLT2\n"
    end = 10 + struct.unpack(">I", data[6:10])[0]
    bound, header = data[:end], json.loads(data[10:end])
    slots = [data[end : end + 96], data[end + 96 : end + 192]]
    digest, signature = data[end + 192 : end + 224], data[end + 224 : end + 288]
    stream = data[end + 288 :]

    pieces = [hashlib.sha256(stream[at : at + MIB]).digest() for at in range(0, len(stream), MIB)]
    assert hashlib.sha256(b"".join(pieces)).digest() == digest
    statement = b"fedveil/vault/2/file" + hashlib.sha256(bound).digest() + digest
    Ed25519PublicKey.from_public_bytes(verify_key).verify(signature, statement)

    (slot,) = [slot for slot in slots if slot[:16] == model_key_id.encode()]
    wrap = AESGCM(derive(model_key, None, b"fedveil/vault/2/wrap"))
    data_key = wrap.decrypt(slot[16:28], slot[28:76], bound)
    assert derive(data_key, None, b"fedveil/vault/2/commit").hex() == header["commitment"]

    assert stream[0] == 40
    cipher = AESGCM(derive(data_key, stream[1:33], bound))
    cuts = [40, *range(MIB, len(stream), MIB), len(stream)]
    plain = b""
    for i in range(len(cuts) - 1):
        nonce = stream[33:40] + struct.pack(">IB", i, i == len(cuts) - 2)
        plain += cipher.decrypt(nonce, stream[cuts[i] : cuts[i + 1]], None)
    assert len(plain) == header["plaintext_bytes"]
    return plain


def read(data: bytes) -> tuple[dict[str, dict[str, object]], bytes]:
    """Return the safetensors header and the arrays behind it."""
    plain = independent(data, MODEL_KEY.key_id, MODEL_KEY.secret, VERIFY_KEY.raw)
    length = struct.unpack("<Q", plain[:8])[0]
    return json.loads(plain[8 : 8 + length]), plain[8 + length :]


def test_a_file_of_once_is_read_by_a_reader_of_its_own() -> None:
    fields, arrays = read(GOLDEN)
    assert fields["step"] == {"dtype": "I64", "shape": [], "data_offsets": [0, 8]}
    assert struct.unpack("<q", arrays[:8]) == (7,)
    assert struct.unpack("<6f", arrays[8:]) == (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)


def test_a_file_of_once_is_read_by_us() -> None:
    header, tensors = open_sealed(GOLDEN)
    assert header.address() == ADDRESS
    assert header.created == "2031-05-17T08:00:00Z"
    assert (header.previous, header.state) == ("ab" * 32, "cd" * 32)
    assert dict(header.meta) == {"loss": 0.25, "note": "é"}
    np.testing.assert_array_equal(tensors["weight"], np.arange(6, dtype=np.float32).reshape(2, 3))
    assert tensors["step"] == 7


def test_the_bytes_in_clear_are_the_documented_ones() -> None:
    assert GOLDEN[:10] == b"FVLT2\n\0\0" + (len(HEADER)).to_bytes(2, "big")
    assert GOLDEN[10 : 10 + len(HEADER)] == HEADER
    assert GOLDEN[10 + len(HEADER) :][:16] == b"255c52ed961e573c"
    assert GOLDEN[10 + len(HEADER) + 76 :][: 20 + 96] == bytes(116)


HEADER = (
    '{"commitment":"420ec811b1267e5c1f877fe6cd733b0201df26e8afc2b847f8407000664a1c18","created"'
    ':"2031-05-17T08:00:00Z","kind":"model","meta":{"loss":0.25,"note":"é"},"plaintext_bytes":1'
    '60,"previous":"abababababababababababababababababababababababababababababababab","round":7'
    ',"run":"digits","state":"cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"'
    ',"store":"0123456789abcdef","version":2}'
).encode()


@pytest.mark.parametrize("size", [0, MIB // 4, MIB])
def test_what_we_write_is_read_by_a_reader_of_its_own(size: int) -> None:
    """From one segment to five."""
    array: Array = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    fields, arrays = read(seal({"w": array}))
    assert fields["w"]["shape"] == [size]
    np.testing.assert_array_equal(np.frombuffer(arrays, np.float32), array)


GOLDEN_KEYS = """{
  "clearing": false,
  "current": {
    "key_id": "255c52ed961e573c",
    "wraps": [
      {
        "blob": "AAECAwQF",
        "key_id": "09133044cd3ab807",
        "parameters": {},
        "provider": "file"
      },
      {
        "blob": "eA==",
        "key_id": "é",
        "parameters": {
          "version": 2
        },
        "provider": "strange"
      }
    ]
  },
  "format": "fedveil-keys-2",
  "mac": "d2f82a1e8342864690db581100561a8591ef22ba153960bcd7eaa400f10be4ed",
  "store": "0123456789abcdef",
  "upcoming": {
    "key_id": "abababababababab",
    "wraps": [
      {
        "blob": "eQ==",
        "key_id": "09133044cd3ab807",
        "parameters": {},
        "provider": "file"
      }
    ]
  }
}
""".encode()


def test_a_key_list_of_once_is_checked_by_a_reader_of_its_own() -> None:
    key = HKDF(SHA256(), 32, None, b"fedveil/vault/2/key-list").derive(MODEL_KEY.secret)
    fields = json.loads(GOLDEN_KEYS)
    mac = fields.pop("mac")
    text = json.dumps(fields, ensure_ascii=False, sort_keys=True, indent=2) + "\n"
    assert hmac.new(key, text.encode(), hashlib.sha256).hexdigest() == mac


def test_a_key_list_of_once_is_checked_by_us() -> None:
    listed = SealedKeyList.from_bytes(GOLDEN_KEYS)
    listed.check(MODEL_KEY)
    assert listed.keys.current.key_id == MODEL_KEY.key_id
    assert listed.keys.seal(MODEL_KEY).to_bytes() == GOLDEN_KEYS
