"""Bearer tokens: who may ask for what. The file keeps their hashes, never a token."""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedveil.server.inference.errors import ForbiddenError, TokenError, UnauthenticatedError
from fedveil.vault.errors import KeyFileError, KeyFileMissingError
from fedveil.vault.files import replace_file
from fedveil.vault.keyfile import read_secret_file

__all__ = [
    "SCOPES",
    "Scope",
    "Token",
    "TokenFile",
    "add_token",
    "empty_tokens",
    "read_tokens",
    "remove_token",
]

Scope = Literal["infer", "metadata", "admin"]
SCOPES: tuple[str, ...] = get_args(Scope)

_PREFIX = "fvt_"
_SECRET_BYTES = 32
_MOST_BYTES = 1 << 20
_LOOK_SECONDS = 1.0
_UNREAD = (0, 0, 0)

_log = logging.getLogger(__name__)


class Token(BaseModel):
    """One token, without the token.

    Parameters
    ----------
    name : str
        Whose it is.
    sha256 : str
        Of the token, 64 hexadecimal characters. A token has 256 random bits, so that a fast hash
        gives nothing away.
    scopes : tuple of {"infer", "metadata", "admin"}
        What it is good for.
    created : str
        When it was made, UTC.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    created: str

    def check(self, scope: Scope) -> None:
        """Pass if it is good for something.

        Raises
        ------
        ForbiddenError
            If it is not.
        """
        if scope not in self.scopes:
            raise ForbiddenError(f"the token of {self.name} is not good for {scope}")


class _Tokens(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["fedveil-tokens-1"] = "fedveil-tokens-1"
    tokens: tuple[Token, ...] = ()


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Return the tokens of a file.

    Raises
    ------
    TokenError
        If it is not there, is malformed, or others may use it.
    """
    try:
        content = read_secret_file(path, _MOST_BYTES)
    except KeyFileMissingError:
        raise TokenError(
            f"{path}: there is no such file of tokens; make one with: fedveil tokens new NAME"
        ) from None
    except KeyFileError as error:
        raise TokenError(f"tokens refused: {error}") from None
    try:
        return _Tokens.model_validate_json(content).tokens
    except ValidationError:
        raise TokenError(f"{path}: is no file of tokens that this Fedveil reads") from None


def empty_tokens() -> bytes:
    """Return a file without a token: it lets nobody in."""
    return _content(())


def add_token(path: Path, name: str, scopes: tuple[Scope, ...]) -> str:
    """Make a token and return it; it cannot be had again.

    Raises
    ------
    TokenError
        If the name is taken or malformed, or the file cannot be written.
    """
    known = read_tokens(path) if path.exists() else ()
    if any(token.name == name for token in known):
        raise TokenError(f"{path}: has a token named {name} already; revoke it first")
    secret = _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        token = Token(name=name, sha256=_hash(secret), scopes=scopes, created=created)
    except ValidationError:
        raise TokenError(
            f"{name!r} is no name of a token: take 1 to 64 letters, digits, dots, dashes or "
            "underscores"
        ) from None
    _write(path, (*known, token))
    return secret


def remove_token(path: Path, name: str) -> None:
    """Revoke a token: a running service knows within seconds.

    Raises
    ------
    TokenError
        If there is no such token, or the file cannot be written.
    """
    known = read_tokens(path)
    kept = tuple(token for token in known if token.name != name)
    if len(kept) == len(known):
        names = ", ".join(token.name for token in known) or "none"
        raise TokenError(f"{path}: has no token named {name}; it has: {names}")
    _write(path, kept)


class TokenFile:
    """Tells whose token a caller shows, by a file that may change at any time.

    A file that cannot be read any more lets nobody in.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    TokenError
        If it cannot be used now.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reading = threading.Lock()
        self._fault = ""
        self._mark = self._changed()
        self._tokens = _by_hash(read_tokens(path))
        self._look_at = time.monotonic() + _LOOK_SECONDS

    def find(self, header: str | None) -> Token:
        """Return the token that an ``Authorization`` header carries.

        Raises
        ------
        UnauthenticatedError
            If it carries none that is known.
        """
        self._reload()
        kind, _, secret = (header or "").partition(" ")
        if kind.lower() != "bearer" or not secret:
            raise UnauthenticatedError("send a token: Authorization: Bearer TOKEN")
        # How long this takes says something of a hash at most, and from a hash of 256 random bits
        # no way leads to the token.
        found = self._tokens.get(_hash(secret.strip()))
        if found is None:
            raise UnauthenticatedError("the token is not known, or was revoked")
        return found

    def _reload(self) -> None:
        if time.monotonic() < self._look_at:
            return
        with self._reading:
            now = time.monotonic()
            if now < self._look_at:
                return
            self._look_at = now + _LOOK_SECONDS
            mark = self._changed()
            if mark == self._mark:
                return
            self._mark = mark
            try:
                self._tokens = _by_hash(read_tokens(self._path))
                self._fault = ""
            except TokenError as error:
                self._tokens = {}
                # It may be no fault of the file, which then does not change when that is over.
                self._mark = _UNREAD
                if str(error) != self._fault:
                    self._fault = str(error)
                    _log.error("nobody is let in: %s", error)

    def _changed(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        # Unlike the time of its content, nobody sets this one back, and a change of mode is seen.
        return (status.st_ino, status.st_ctime_ns, status.st_size)


def _write(path: Path, tokens: tuple[Token, ...]) -> None:
    content = _content(tokens)
    if not path.parent.is_dir():
        raise TokenError(f"{path}: there is no folder {path.parent}; make it, or correct the path")
    try:
        replace_file(path, lambda sink: sink.write(memoryview(content)))
    except OSError as error:
        raise TokenError(f"{path}: cannot be written ({error.strerror})") from None


def _content(tokens: tuple[Token, ...]) -> bytes:
    return (_Tokens(tokens=tokens).model_dump_json(indent=2) + "\n").encode()


def _by_hash(tokens: tuple[Token, ...]) -> dict[str, Token]:
    return {token.sha256: token for token in tokens}


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
