"""The key list: the model key of a store, encrypted under every key-encryption key that opens it.

While the model key is being exchanged there are two, or the files still have slots of one that is
gone; the list says so, so that whoever comes next can finish. The list bears a code under the
current model key: who once had another one cannot change what it says.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedveil.vault.errors import HeaderError, KekError, StoreError, TamperedError
from fedveil.vault.header import check_fingerprint, check_public_id
from fedveil.vault.kek.interface import WrappedKey
from fedveil.vault.kek.passphrase import PassphraseKek
from fedveil.vault.keyfile import Key

__all__ = [
    "KEYS_FORMAT",
    "MOST_KEKS",
    "MOST_PASSPHRASES",
    "KeyList",
    "SealedKeyList",
    "WrappedModelKey",
]

KEYS_FORMAT = "fedveil-keys-2"
MOST_KEKS = 16
MOST_PASSPHRASES = 4
"""Opening stretches a passphrase once a wrap, which may take 1 GiB and many seconds each."""

_MAC_BYTES = 32
_MAC_LABEL = b"fedveil/vault/2/key-list"


@dataclass(frozen=True)
class WrappedModelKey:
    """A model key, encrypted under each of some key-encryption keys.

    Parameters
    ----------
    key_id : str
        Public name of the model key, 16 hexadecimal characters.
    wraps : tuple of WrappedKey
        One a KEK, 1 to 16, no two of one name, at most 4 passphrases.

    Raises
    ------
    HeaderError, KekError
        If a value is not allowed.
    """

    key_id: str
    wraps: tuple[WrappedKey, ...]

    def __post_init__(self) -> None:
        check_public_id("model key", self.key_id)
        if not 1 <= len(self.wraps) <= MOST_KEKS:
            raise KekError(f"a store has 1 to {MOST_KEKS} key-encryption keys")
        names = [wrapped.key_id for wrapped in self.wraps]
        for name in names:
            if names.count(name) > 1:
                raise KekError(f"there is a key-encryption key {name} already")
        providers = [wrapped.provider for wrapped in self.wraps]
        if providers.count(PassphraseKek.name) > MOST_PASSPHRASES:
            raise KekError(f"a store has at most {MOST_PASSPHRASES} passphrases")


@dataclass(frozen=True)
class KeyList:
    """What ``keys.json`` says; none of it is secret.

    Every wrapped key is bound to the store and the model key that it is for; all else is to be
    believed only once `SealedKeyList.check` has passed.

    Parameters
    ----------
    store : str
        Public name of the store, 16 hexadecimal characters.
    current : WrappedModelKey
        The key that every file has a slot for.
    upcoming : WrappedModelKey or None
        The key that files are being given a slot for, while the model key is being exchanged.
    clearing : bool
        Whether files may still have slots of the key before `current`.

    Raises
    ------
    HeaderError, KekError
        If a value is not allowed.
    """

    store: str
    current: WrappedModelKey
    upcoming: WrappedModelKey | None = None
    clearing: bool = False

    def __post_init__(self) -> None:
        check_public_id("store", self.store)
        if type(self.clearing) is not bool:
            raise KekError("clearing is true or false")
        if self.upcoming is not None and (
            self.clearing or self.upcoming.key_id == self.current.key_id
        ):
            raise KekError("a store has one other model key at a time")

    def model_keys(self) -> Iterator[WrappedModelKey]:
        """Yield the current model key and the upcoming one, if any."""
        yield self.current
        if self.upcoming is not None:
            yield self.upcoming

    def fields(self) -> dict[str, object]:
        """Return what the code is computed over, as JSON has it."""
        return {
            "format": KEYS_FORMAT,
            "store": self.store,
            "current": _key_fields(self.current),
            "upcoming": None if self.upcoming is None else _key_fields(self.upcoming),
            "clearing": self.clearing,
        }

    def seal(self, key: Key) -> SealedKeyList:
        """Return the list with its code under the current model key."""
        code = _code(self, key).finalize()
        return SealedKeyList(self, code.hex())


@dataclass(frozen=True)
class SealedKeyList:
    """The content of ``keys.json``: the list and its code.

    Parameters
    ----------
    keys : KeyList
        The list.
    mac : str
        HMAC-SHA256 of its canonical JSON, 64 hexadecimal characters.

    Raises
    ------
    HeaderError
        If a value is not allowed.
    """

    keys: KeyList
    mac: str

    def __post_init__(self) -> None:
        check_fingerprint("mac", self.mac)

    def check(self, key: Key) -> None:
        """Refuse the list unless a holder of the current model key wrote it, in constant time.

        Raises
        ------
        TamperedError
            If it was changed, or the key is another one.
        """
        try:
            _code(self.keys, key).verify(bytes.fromhex(self.mac))
        except InvalidSignature:
            raise TamperedError(
                f"its code does not fit the model key {key.key_id}: it was changed by somebody "
                "without that key"
            ) from None

    def to_bytes(self) -> bytes:
        """Return the canonical JSON: sorted names, indented by two, a newline at the end."""
        return _canonical({**self.keys.fields(), "mac": self.mac})

    @classmethod
    def from_bytes(cls, encoded: bytes) -> SealedKeyList:
        """Parse canonical JSON, and nothing else.

        Raises
        ------
        StoreError
            If it is not a key list, or not in its one form.
        """
        try:
            return _parse(encoded)
        except (StoreError, HeaderError, KekError) as error:
            raise StoreError(f"not a key list of the format {KEYS_FORMAT}: {error}") from None
        except (ValueError, RecursionError, TypeError, KeyError):
            raise StoreError(f"not a key list of the format {KEYS_FORMAT}") from None


def _code(keys: KeyList, key: Key) -> HMAC:
    kdf = HKDF(algorithm=SHA256(), length=_MAC_BYTES, salt=None, info=_MAC_LABEL)
    code = HMAC(kdf.derive(key.secret), SHA256())
    code.update(_canonical(keys.fields()))
    return code


def _canonical(fields: object) -> bytes:
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False, sort_keys=True, indent=2)
    return f"{text}\n".encode()


def _parse(encoded: bytes) -> SealedKeyList:
    fields = json.loads(encoded.decode("utf-8"))
    if not isinstance(fields, dict):
        raise StoreError("it is no JSON object")
    if set(fields) != {"format", "store", "current", "upcoming", "clearing", "mac"}:
        raise StoreError("it has other fields")
    if fields["format"] != KEYS_FORMAT:
        raise StoreError(f"it says {fields['format']!r:.40}")
    upcoming = None if fields["upcoming"] is None else _parse_key(fields["upcoming"])
    keys = KeyList(fields["store"], _parse_key(fields["current"]), upcoming, fields["clearing"])
    listed = SealedKeyList(keys, fields["mac"])
    # Last, and from the values found: writing what was merely parsed may take any memory.
    if listed.to_bytes() != encoded:
        raise StoreError("it is not canonical JSON")
    return listed


def _key_fields(key: WrappedModelKey) -> Mapping[str, object]:
    wraps = [
        {
            "provider": wrapped.provider,
            "key_id": wrapped.key_id,
            "blob": base64.b64encode(wrapped.blob).decode("ascii"),
            "parameters": dict(wrapped.parameters),
        }
        for wrapped in key.wraps
    ]
    return {"key_id": key.key_id, "wraps": wraps}


def _parse_key(fields: object) -> WrappedModelKey:
    if not isinstance(fields, dict) or set(fields) != {"key_id", "wraps"}:
        raise StoreError("it describes a model key wrongly")
    key_id, wraps = fields["key_id"], fields["wraps"]
    if not isinstance(key_id, str) or not isinstance(wraps, list):
        raise StoreError("it describes a model key wrongly")
    return WrappedModelKey(key_id, tuple(_parse_wrap(each) for each in wraps))


def _parse_wrap(fields: object) -> WrappedKey:
    wrong = StoreError("it describes a wrapped key wrongly")
    if not isinstance(fields, dict) or set(fields) != {"provider", "key_id", "blob", "parameters"}:
        raise wrong
    provider, key_id, blob, parameters = (
        fields[name] for name in ("provider", "key_id", "blob", "parameters")
    )
    if not (isinstance(provider, str) and isinstance(key_id, str) and isinstance(blob, str)):
        raise wrong
    if not isinstance(parameters, dict):
        raise wrong
    raw = base64.b64decode(blob.encode("ascii"), validate=True)
    if base64.b64encode(raw).decode("ascii") != blob:
        raise wrong
    return WrappedKey(provider, key_id, raw, parameters)
