"""A KEK in somebody's head: a passphrase, through Argon2id."""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from fedveil.vault.errors import KekError, TamperedError, WrongKeyError
from fedveil.vault.kek.interface import WrappedKey
from fedveil.vault.kek.passphrase_input import (
    VARIABLE,
    ask_passphrase,
    normalised,
    read_passphrase_file,
)
from fedveil.vault.kek.sealing import check_wrapped, open_sealed, seal

__all__ = ["LEAST_CHARACTERS", "Costs", "PassphraseKek", "open_passphrase"]

LEAST_CHARACTERS = 12

_SALT_BYTES = 16
_KEY_BYTES = 32
_NAMES = frozenset({"salt", "memory_kib", "passes", "lanes"})
_MIB = 1024


@dataclass(frozen=True)
class Costs:
    """What one guess at a passphrase costs: the parameters of Argon2id.

    The defaults are the second recommended option of RFC 9106, section 4. The limits hold both
    ways: below them a stolen file is guessed too cheaply, above them a file that somebody else
    wrote could take the machine's memory.

    Parameters
    ----------
    memory_kib : int
        Memory in KiB, from 19456 (19 MiB) to 1048576 (1 GiB).
    passes : int
        Passes over the memory, 2 to 16.
    lanes : int
        Degree of parallelism, 1 to 16.

    Raises
    ------
    KekError
        If a value is outside these limits.
    """

    memory_kib: int = 64 * _MIB
    passes: int = 3
    lanes: int = 4

    def __post_init__(self) -> None:
        for what, value, least, most in (
            ("memory_kib", self.memory_kib, 19 * _MIB, 1024 * _MIB),
            ("passes", self.passes, 2, 16),
            ("lanes", self.lanes, 1, 16),
        ):
            if type(value) is not int or not least <= value <= most:
                raise KekError(
                    f"Argon2id's {what} must be {least} to {most}, not {value!r:.20}; restore the "
                    "file that it comes from"
                )


class PassphraseKek:
    """Wraps with AES-256-GCM under a key that Argon2id (RFC 9106) derives from a passphrase.

    An object draws a random salt of 16 bytes: passphrase, salt and costs are the KEK, and
    ``passphrase-`` with the first 8 bytes of the salt in hexadecimal is its public name. What
    another object wrapped stands under another salt, so whether a wrapped key is this
    passphrase's is found out by `unwrap`. Salt (base64) and costs are the parameters of a wrapped
    key. Derived keys are kept as long as the object is.

    The passphrase is asked for once, when it is first needed. It is brought into Unicode's
    normalisation form C, so that it is the same from every keyboard, and is UTF-8 from there on;
    spaces count.

    Parameters
    ----------
    read : callable
        Returns the passphrase.
    confirm : callable, optional
        Returns it once more. It is called before the first `wrap`, unless an `unwrap` has shown
        by then that the passphrase is right.
    costs : Costs
        What to wrap with; unwrapping goes by what stands in the wrapped key.
    """

    name: ClassVar[str] = "passphrase"

    def __init__(
        self,
        read: Callable[[], str],
        confirm: Callable[[], str] | None = None,
        costs: Costs | None = None,
    ) -> None:
        self._read = read
        self._confirm = confirm
        self._costs = costs or Costs()
        self._salt = secrets.token_bytes(_SALT_BYTES)
        self._passphrase: str | None = None
        self._derived: dict[tuple[bytes, Costs], bytes] = {}

    @property
    def key_id(self) -> str:
        """Public name of the KEK that this object wraps with."""
        return f"passphrase-{self._salt[:8].hex()}"

    def wrap(self, secret: bytes, context: bytes) -> WrappedKey:
        """Encrypt a secret of 32 bytes; see `KekProvider.wrap`.

        Raises
        ------
        KekError
            If the passphrase cannot be read, has fewer than 12 characters, or is not confirmed.
        """
        passphrase = self._known_passphrase()
        if len(passphrase) < LEAST_CHARACTERS:
            raise KekError(
                f"the passphrase has {len(passphrase)} characters and needs at least "
                f"{LEAST_CHARACTERS}; take five or more random words"
            )
        if self._confirm is not None:
            again = normalised(self._confirm())
            if not hmac.compare_digest(again.encode(), passphrase.encode()):
                raise KekError("the two passphrases differ; nothing was wrapped, try again")
            self._confirm = None
        blob = seal(self._key(self._salt, self._costs), secret, self.name, self.key_id, context)
        parameters: dict[str, str | int] = {
            "salt": base64.b64encode(self._salt).decode("ascii"),
            "memory_kib": self._costs.memory_kib,
            "passes": self._costs.passes,
            "lanes": self._costs.lanes,
        }
        return WrappedKey(self.name, self.key_id, blob, parameters)

    def unwrap(self, wrapped: WrappedKey, context: bytes) -> bytes:
        """Return the secret that `wrap` was given; see `KekProvider.unwrap`.

        Raises
        ------
        WrongKeyError
            If it is another passphrase, or the wrapped key or the context was changed: these
            cannot be told apart.
        KekError
            If the passphrase cannot be read, or salt or costs are not allowed; nothing has been
            computed by then.
        """
        check_wrapped(wrapped, self.name, None, _NAMES)
        key = self._key(*_parse(wrapped))
        try:
            secret = open_sealed(key, wrapped.blob, self.name, wrapped.key_id, context)
        except TamperedError:
            raise WrongKeyError(
                f"wrong passphrase for {wrapped.key_id!r:.80}, or the wrapped key was changed or "
                "belongs to another store; these cannot be told apart"
            ) from None
        self._confirm = None
        return secret

    def rewrap(self, wrapped: WrappedKey, context: bytes) -> WrappedKey:
        """Wrap the same secret anew, under this object's salt and costs; see `unwrap`."""
        return self.wrap(self.unwrap(wrapped, context), context)

    def _known_passphrase(self) -> str:
        if self._passphrase is None:
            self._passphrase = normalised(self._read())
        return self._passphrase

    def _key(self, salt: bytes, costs: Costs) -> bytes:
        if (salt, costs) not in self._derived:
            kdf = Argon2id(
                salt=salt,
                length=_KEY_BYTES,
                iterations=costs.passes,
                lanes=costs.lanes,
                memory_cost=costs.memory_kib,
            )
            passphrase = self._known_passphrase().encode()
            try:
                self._derived[salt, costs] = kdf.derive(passphrase)
            except MemoryError:
                raise KekError(
                    f"there is too little memory for Argon2id, which needs {costs.memory_kib} KiB "
                    "here; free some and try again"
                ) from None
        return self._derived[salt, costs]


def open_passphrase(path: str) -> PassphraseKek:
    """Return the KEK of a passphrase, from the first of these sources that is given.

    A file of mode 0600 at the path; the environment variable ``FEDVEIL_PASSPHRASE``; a prompt, if
    standard input is a terminal.

    Raises
    ------
    KekError
        If there is no source, or the file is refused.
    """
    if path:
        passphrase = read_passphrase_file(Path(path))
        return PassphraseKek(lambda: passphrase)
    given = os.environ.get(VARIABLE)
    if given is not None:
        return PassphraseKek(lambda: given)
    # Python without a standard input has None there.
    if sys.stdin is not None and sys.stdin.isatty():
        return PassphraseKek(
            lambda: ask_passphrase("Passphrase: "), lambda: ask_passphrase("Passphrase, again: ")
        )
    raise KekError(
        f"there is no passphrase: set {VARIABLE}, name a file of mode 0600 as passphrase:PATH, or "
        "run this in a terminal"
    )


def _parse(wrapped: WrappedKey) -> tuple[bytes, Costs]:
    malformed = KekError(
        f"the salt of {wrapped.key_id!r:.80} is not {_SALT_BYTES} bytes in base64; restore the "
        "file that it comes from"
    )
    values = wrapped.parameters
    memory_kib, passes, lanes = values["memory_kib"], values["passes"], values["lanes"]
    if not (isinstance(memory_kib, int) and isinstance(passes, int) and isinstance(lanes, int)):
        raise KekError(
            f"the costs of {wrapped.key_id!r:.80} are not numbers; restore the file that they "
            "come from"
        )
    costs = Costs(memory_kib, passes, lanes)
    encoded = values["salt"]
    if not isinstance(encoded, str):
        raise malformed
    try:
        salt = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error):
        raise malformed from None
    if len(salt) != _SALT_BYTES:
        raise malformed
    return salt, costs
