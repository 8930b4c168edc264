"""From the name of a KEK, as a user gives it, to its provider: entry points of `fedveil.kek`."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint, entry_points
from typing import TypeGuard

from fedveil.errors import FedveilError
from fedveil.vault.errors import KekError
from fedveil.vault.kek.interface import KekProvider

__all__ = ["GROUP", "SPECS_HELP", "open_kek", "provider_names"]

GROUP = "fedveil.kek"
SPECS_HELP = (
    "file:PATH (key file of mode 0600); passphrase: (prompt or FEDVEIL_PASSPHRASE) or "
    "passphrase:PATH (file of mode 0600 with the passphrase); vault:[MOUNT/]KEY (HashiCorp Vault, "
    "VAULT_ADDR and VAULT_TOKEN); aws:KEY (AWS KMS: key id, alias/NAME or ARN)"
)

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_MOST_SPEC = 4096
# Which extra of Fedveil brings the package that a provider needs.
_EXTRAS = {"hvac": "vault", "requests": "vault", "boto3": "aws", "botocore": "aws"}


def provider_names() -> list[str]:
    """Return the names of the installed providers, ascending; imports none of them."""
    return sorted(entry_points(group=GROUP).names)


def open_kek(spec: str) -> KekProvider:
    """Return the KEK of this name; the code of no other provider is imported.

    Parameters
    ----------
    spec : str
        Provider, colon, and what that provider makes of the rest: `SPECS_HELP` lists the forms.

    Returns
    -------
    KekProvider
        The KEK, its settings checked. A service is not asked before it is used.

    Raises
    ------
    KekError
        If the provider is unknown, is installed twice, cannot be imported or used, or refuses the
        rest.
    """
    name, _, rest = spec.partition(":")
    if not _NAME.fullmatch(name) or len(spec) > _MOST_SPEC or not spec.isprintable():
        # Not shown: it may be a passphrase that was given in the wrong place.
        raise KekError(f"a key-encryption key is named by its provider: {SPECS_HELP}")
    entry = _entry(name)
    factory = _load(entry)
    if not callable(factory):
        raise KekError(f"the KEK provider {name!r} ({entry.value}) is broken: it is no function")
    try:
        provider = factory(rest)
    except FedveilError:
        raise
    except Exception as error:  # noqa: BLE001
        # Neither its message nor its traceback: a plugin's may hold a secret.
        raise KekError(
            f"the KEK provider {name!r} ({entry.value}) is broken: it failed with "
            f"{type(error).__name__}"
        ) from None
    if not _is_provider(provider, name):
        raise KekError(
            f"the KEK provider {name!r} ({entry.value}) is broken: {type(provider).__name__} is no "
            f"KekProvider of the name {name!r}"
        )
    return provider


def _entry(name: str) -> EntryPoint:
    found = entry_points(group=GROUP, name=name)
    if not found:
        known = ", ".join(provider_names()) or "none"
        raise KekError(f"there is no KEK provider {name!r}; installed are: {known}")
    if len(found) > 1:
        # Which code gets the keys must never hang on the order of the import path.
        targets = ", ".join(sorted(entry.value for entry in found))
        raise KekError(f"the KEK provider {name!r} is installed twice ({targets}); remove one")
    return next(iter(found))


def _load(entry: EntryPoint) -> object:
    try:
        loaded: object = entry.load()
    except Exception as error:
        missing = (error.name or "").split(".")[0] if isinstance(error, ImportError) else ""
        if missing in _EXTRAS and entry.module.startswith("fedveil."):
            raise KekError(
                f"the KEK provider {entry.name!r} needs {missing}: "
                f"pip install 'fedveil[{_EXTRAS[missing]}]'"
            ) from None
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise KekError(
            f"the KEK provider {entry.name!r} ({entry.value}) cannot be imported: {reason}"
        ) from error
    return loaded


def _is_provider(found: object, name: str) -> TypeGuard[KekProvider]:
    # By its type, for `key_id` may ask a service.
    kind = type(found)
    methods = all(callable(getattr(kind, each, None)) for each in ("wrap", "unwrap", "rewrap"))
    return methods and hasattr(kind, "key_id") and getattr(kind, "name", None) == name
