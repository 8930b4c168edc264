"""Where Fedveil keeps what belongs to the user rather than to a run."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import platformdirs

from fedveil.errors import FedveilError

__all__ = [
    "HomeError",
    "audit_heads_dir",
    "default_budgets_file",
    "default_identity_file",
    "default_key_file",
    "default_ledger_file",
    "default_policy_file",
    "default_roster_file",
    "default_runs_dir",
    "default_signing_key_file",
    "default_tokens_file",
    "home",
    "make_private",
    "marks_dir",
    "own_file",
]


class HomeError(FedveilError):
    """The user's folder for Fedveil can be changed by other users."""


def home() -> Path:
    """Return ``$FEDVEIL_HOME``, or the user's configuration directory for Fedveil.

    Raises
    ------
    HomeError
        If it is there and others may write in it: they could put keys, rosters and marks of their
        own in the place of the user's.
    """
    named = os.environ.get("FEDVEIL_HOME")
    folder = Path(named) if named else Path(platformdirs.user_config_dir("fedveil"))
    try:
        status = folder.stat()
    except OSError:
        return folder
    if status.st_uid not in (os.geteuid(), 0):
        raise HomeError(
            f"{folder}: belongs to user {status.st_uid}, not to you; set FEDVEIL_HOME to a folder "
            "of your own"
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o022:
        raise HomeError(
            f"{folder}: has mode {mode:04o}, so that others may put keys of their own in it; if "
            f"nobody has, run: chmod go-w {folder}"
        )
    return folder


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


def own_file(path: Path) -> Path:
    """Return a path in the user's folder for Fedveil, which is made if it is not there.

    Raises
    ------
    HomeError
        If it cannot be made.
    """
    try:
        make_private(path.parent)
    except OSError as error:
        raise HomeError(
            f"{path.parent}: cannot be made ({error.strerror}); set FEDVEIL_HOME to a folder that "
            "can be"
        ) from None
    return path


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


def default_policy_file() -> Path:
    """Return what this machine's client allows unless its node names another policy."""
    return home() / "policy.toml"


def default_ledger_file() -> Path:
    """Return where this machine's client keeps what it released unless its node names another."""
    return home() / "ledger.db"


def default_budgets_file() -> Path:
    """Return where it is counted what callers of an inference service have asked for."""
    return home() / "budgets.sqlite3"


def audit_heads_dir() -> Path:
    """Return where the ends of audit logs are kept, apart from the logs."""
    return home() / "audit"


def default_tokens_file() -> Path:
    """Return the tokens that callers of an inference service send, unless another file is named."""
    return home() / "tokens.json"
