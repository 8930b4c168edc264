"""Where Fedveil keeps what belongs to the user rather than to a run."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

__all__ = [
    "default_identity_file",
    "default_key_file",
    "default_roster_file",
    "default_runs_dir",
    "default_signing_key_file",
    "default_tokens_file",
    "home",
    "make_private",
    "marks_dir",
]


def home() -> Path:
    """Return ``$FEDVEIL_HOME``, or the user's configuration directory for Fedveil."""
    named = os.environ.get("FEDVEIL_HOME")
    return Path(named) if named else Path(platformdirs.user_config_dir("fedveil"))


def make_private(folder: Path) -> None:
    """Make a folder and those above it that are not there, all of mode 0700.

    Raises
    ------
    OSError
        If one cannot be made.
    """
    if not folder.is_dir():
        # `mkdir(parents=True)` gives those above whatever mode the umask leaves.
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def default_key_file() -> Path:
    """Return the key file that model stores are encrypted with unless another is named."""
    return home() / "keys" / "model.key"


def default_signing_key_file() -> Path:
    """Return the key that this coordinator signs the rounds of its model stores with."""
    return home() / "keys" / "signing.key"


def marks_dir() -> Path:
    """Return where it is kept what was seen last in each model store, apart from the stores."""
    return home() / "marks"


def default_runs_dir() -> Path:
    """Return where a deployed server leaves its run folders unless told otherwise."""
    return home() / "runs"


def default_identity_file() -> Path:
    """Return the identity of this machine's client unless its node names another."""
    return home() / "identity.json"


def default_roster_file() -> Path:
    """Return the roster of this machine's client unless its node names another."""
    return home() / "roster.toml"


def default_tokens_file() -> Path:
    """Return the tokens that callers of an inference service send, unless another file is named."""
    return home() / "tokens.json"
