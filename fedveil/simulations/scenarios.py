"""The built-in scenarios and how settings are overridden."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import get_args

from fedveil.config import Config, Mode, parse_config
from fedveil.settings import ConfigError, Tree, apply_override, flatten, read_toml

__all__ = ["Scenario", "built_in_scenarios", "find_scenario"]

_ABOUT = "about"
_MODES = "modes"


@dataclass(frozen=True)
class Scenario:
    """Settings under a name.

    Parameters
    ----------
    name : str
        Name of a built-in scenario, or the path of a file.
    about : str
        What it shows, in one line.
    tree : dict
        The settings, as in the file.
    modes : Mapping of str to dict
        By privacy mode, settings that make sense in that mode only.
    """

    name: str
    about: str
    tree: Tree
    modes: Mapping[str, Tree] = field(default_factory=dict)

    def config(
        self, overrides: Iterable[tuple[str, object]] = (), mode: str | None = None
    ) -> Config:
        """Return the settings, checked.

        The scenario's own come first, then what it says of the mode that is chosen, then the
        overrides, later ones over earlier ones.

        Parameters
        ----------
        overrides : iterable of (str, object)
            Dotted keys and values; ``dp.unit`` and ``dp.noise`` choose a mode too.
        mode : str, optional
            A privacy mode, such as ``client/distributed``.

        Raises
        ------
        ConfigError
            If there is no such mode, or a setting is wrong.
        """
        overrides = [*_choice(mode), *overrides]
        chosen = _mode_of(_with(self.tree, overrides))
        tree = self.tree
        if chosen != _mode_of(self.tree):
            tree = _with(tree, flatten(self.modes.get(chosen, {}), keep_empty=True).items())
        return parse_config(_with(tree, overrides), f"scenario {self.name}")


def built_in_scenarios() -> dict[str, Scenario]:
    """Return the scenarios that come with the package, by name."""
    folder = files("fedveil.simulations") / "scenarios"
    found = sorted(
        (Path(str(entry)) for entry in folder.iterdir() if entry.name.endswith(".toml")),
        key=lambda path: path.name,
    )
    return {path.stem: _read(path, path.stem) for path in found}


def find_scenario(name: str) -> Scenario:
    """Return a built-in scenario by name, or one from a TOML file.

    Raises
    ------
    ConfigError
        If there is neither.
    """
    built_in = built_in_scenarios()
    if name in built_in:
        return built_in[name]
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        return _read(path, name)
    raise ConfigError(
        f"there is no scenario {name!r}; built in: {', '.join(built_in)}; or name a TOML file"
    )


def _choice(mode: str | None) -> list[tuple[str, object]]:
    """Return a mode as settings."""
    if mode is None:
        return []
    if mode not in get_args(Mode):
        raise ConfigError(f"there is no mode {mode!r}; there are {', '.join(get_args(Mode))}")
    unit, _, noise = mode.partition("/")
    return [("dp.unit", unit), *([("dp.noise", noise)] if noise else [])]


def _with(tree: Tree, overrides: Iterable[tuple[str, object]]) -> Tree:
    for key, value in overrides:
        tree = apply_override(tree, key, value)
    return tree


def _mode_of(tree: Tree) -> str:
    """Return the mode that unchecked settings name, or what is no mode."""
    flat = flatten(tree)
    unit, noise = flat.get("dp.unit", "record"), flat.get("dp.noise", "local")
    return "none" if unit == "none" else f"{unit}/{noise}"


def _read(path: Path, name: str) -> Scenario:
    tree = read_toml(path)
    about = tree.pop(_ABOUT, "")
    if not isinstance(about, str):
        raise ConfigError(f"{path}: about must be a text")
    return Scenario(name, about, tree, _modes(tree.pop(_MODES, {}), path))


def _modes(found: object, path: Path) -> dict[str, Tree]:
    blocks = found if isinstance(found, dict) else {"": found}
    modes = dict[str, Tree]()
    for mode, block in blocks.items():
        if mode not in get_args(Mode) or not isinstance(block, dict):
            raise ConfigError(
                f"{path}: {_MODES} holds a section for each of some modes, which are "
                f'{", ".join(get_args(Mode))}; write one as [{_MODES}."client/central".dp]'
            )
        wrong = {"dp.unit", "dp.noise"} & set(flatten(block))
        if wrong:
            raise ConfigError(
                f"{path}: {_MODES}.{mode} is what holds when that mode is chosen; it must not "
                f"choose another with {min(wrong)}"
            )
        modes[mode] = block
    return modes
