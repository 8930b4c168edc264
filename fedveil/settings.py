"""Settings before they are checked: TOML in, dotted keys, overrides."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from fedveil.errors import FedveilError

__all__ = [
    "ConfigError",
    "Tree",
    "apply_override",
    "flatten",
    "parse_override",
    "read_toml",
    "unflatten",
]

Tree = dict[str, object]


class ConfigError(FedveilError):
    """A setting is unknown, has the wrong type, or contradicts another."""


def read_toml(path: Path) -> Tree:
    """Read a TOML file into a tree of settings, or raise `ConfigError`."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML ({error})") from None


def parse_override(text: str) -> tuple[str, object]:
    """Split ``key=value``; the value is read as TOML and, failing that, as plain text.

    Raises
    ------
    ConfigError
        If there is no key or no ``=``.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"--set {text!r}: write it as key=value, for example dp.target_epsilon=3")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value.strip()


def apply_override(tree: Mapping[str, object], key: str, value: object) -> Tree:
    """Return a copy of `tree` in which the dotted `key` is `value`.

    The noise multiplier and the target epsilon are two ways to say one thing: setting either
    takes the other out, so that the last word holds.
    """
    flat = flatten(tree, keep_empty=True)
    for prefix in [name for name in flat if name == key or name.startswith(key + ".")]:
        del flat[prefix]
    rivals = {
        "dp.noise_multiplier": "dp.target_epsilon",
        "dp.target_epsilon": "dp.noise_multiplier",
    }
    flat.pop(rivals.get(key, ""), None)
    return unflatten({**flat, key: value})


def flatten(
    tree: Mapping[str, object], prefix: str = "", *, keep_empty: bool = False
) -> dict[str, object]:
    """Return nested settings as one level of dotted keys.

    Parameters
    ----------
    tree : Mapping
        The settings.
    prefix : str
        Stands before each key.
    keep_empty : bool
        Whether a section without settings stays, as a value: that it is there may mean something.
    """
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and (value or not keep_empty):
            flat.update(flatten(value, f"{prefix}{key}.", keep_empty=keep_empty))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, object]) -> Tree:
    """Return dotted keys as nested settings; the inverse of `flatten`.

    Raises
    ------
    ConfigError
        If one key is a section in one place and a value in another.
    """
    tree: Tree = {}
    for dotted, value in flat.items():
        *sections, name = dotted.split(".")
        node = tree
        for section in sections:
            child = node.setdefault(section, {})
            if not isinstance(child, dict):
                raise ConfigError(f"{dotted}: {section} is a value, not a section")
            node = child
        if value == {}:
            # A section without settings, which must not be the caller's own.
            value = node.get(name, {})
        elif isinstance(node.get(name), dict):
            raise ConfigError(f"{dotted}: is a section, not a value")
        node[name] = value
    return tree
