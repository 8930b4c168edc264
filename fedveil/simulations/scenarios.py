"""The built-in scenarios and how settings are overridden."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from fedveil.config import Config, parse_config
from fedveil.settings import ConfigError, Tree, apply_override, read_toml

__all__ = ["Scenario", "built_in_scenarios", "find_scenario"]

_ABOUT = "about"


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
    """

    name: str
    about: str
    tree: Tree

    def config(self, overrides: Iterable[tuple[str, object]] = ()) -> Config:
        """Return the settings, later overrides over earlier ones, checked.

        Raises
        ------
        ConfigError
            If a setting is wrong.
        """
        tree = self.tree
        for key, value in overrides:
            tree = apply_override(tree, key, value)
        return parse_config(tree, f"scenario {self.name}")


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


def _read(path: Path, name: str) -> Scenario:
    tree = read_toml(path)
    about = tree.pop(_ABOUT, "")
    if not isinstance(about, str):
        raise ConfigError(f"{path}: about must be a text")
    return Scenario(name, about, tree)
