"""Where a passphrase is read from, and the one form that it is brought into."""

from __future__ import annotations

import getpass
import os
import unicodedata
import warnings
from pathlib import Path

from fedveil.vault.errors import KekError
from fedveil.vault.keyfile import read_secret_file

__all__ = ["VARIABLE", "ask_passphrase", "normalised", "read_passphrase_file"]

VARIABLE = "FEDVEIL_PASSPHRASE"

_MOST_BYTES = 1024


def normalised(passphrase: str) -> str:
    """Return a passphrase in Unicode's normalisation form C (UAX 15).

    Raises
    ------
    KekError
        If it is empty or over 1024 bytes of UTF-8, or holds a control character or what is no
        Unicode.
    """
    form = unicodedata.normalize("NFC", passphrase)
    if not form:
        raise KekError("the passphrase is empty")
    # Surrogates are what Python makes of bytes that are no UTF-8.
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in form):
        raise KekError(
            "the passphrase holds a control character, for example a line end inside it, or is no "
            "UTF-8; it is one line of text"
        )
    if len(form.encode()) > _MOST_BYTES:
        raise KekError(f"the passphrase has more than {_MOST_BYTES} bytes")
    return form


def read_passphrase_file(path: Path) -> str:
    """Read a passphrase from a file; one line end at its end does not count.

    Raises
    ------
    KekError
        If there is no such file, or it is refused as `read_secret_file` does, or is no UTF-8.
    """
    # Whoever gives the passphrase itself in the place of a path must not find it in a log.
    if not os.path.lexists(path):
        raise KekError(
            "passphrase: is followed by the path of a file, never by a passphrase, and what "
            f"follows it here is no file; for a prompt or {VARIABLE}, give passphrase: alone"
        )
    content = read_secret_file(path, _MOST_BYTES + 1)
    if len(content) > _MOST_BYTES + 1:
        raise KekError(f"the passphrase file {path} has more than {_MOST_BYTES} bytes")
    try:
        return content.decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise KekError(f"the passphrase file {path} is not UTF-8 text") from None


def ask_passphrase(prompt: str) -> str:
    """Ask for a passphrase in the terminal, without showing it.

    Raises
    ------
    KekError
        If the terminal would show it, or nothing is entered.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass(prompt)
        except getpass.GetPassWarning:
            raise KekError(
                f"this terminal would show the passphrase; set {VARIABLE} or name a file as "
                "passphrase:PATH"
            ) from None
        except EOFError:
            raise KekError("no passphrase was entered") from None
