"""What a kit says of the machine that it lies on, and Flower's configuration of a client's node."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from fedveil.server.provisioning.errors import KitError
from fedveil.server.provisioning.kit_file import (
    AnyKit,
    ClientKit,
    CoordinatorKit,
    read_any_kit,
    read_kit,
)
from fedveil.server.provisioning.layout import (
    FLOWER_CONFIG,
    IDENTITY,
    LEDGER,
    NODE,
    POLICY,
    ROSTER,
    unit_file,
)
from fedveil.server.provisioning.services import flower_config, systemd_unit
from fedveil.server.provisioning.signed_roster import read_signed_roster
from fedveil.server.provisioning.writing import replace, writing_to
from fedveil.settings import ConfigError, read_toml

__all__ = ["node_config", "node_config_text", "settle", "settled_files"]

_OWN = ("partition-id", "num-partitions", "identity", "roster", "policy", "ledger")


def settled_files(kit: AnyKit, folder: Path) -> dict[str, bytes]:
    """Return the files that hold paths of this machine, for a kit that lies at `folder`."""
    unit = unit_file(kit.federation, kit.name)
    files = {unit: systemd_unit(kit, folder, unit)}
    if isinstance(kit, CoordinatorKit):
        files[FLOWER_CONFIG] = flower_config(kit, folder)
    return files


def settle(folder: Path) -> list[Path]:
    """Write the paths of this machine into a kit, where they are not right yet.

    Returns
    -------
    list of Path
        The files that were written.

    Raises
    ------
    KitError
        If the folder is no kit.
    ProvisionError
        If a file cannot be written.
    """
    written = []
    for name, content in settled_files(read_any_kit(folder), folder).items():
        path = folder / name
        with writing_to(folder):
            if not path.is_file() or path.read_bytes() != content:
                replace(path, content)
                written.append(path)
    return written


def node_config(folder: Path) -> dict[str, str | int | float | bool]:
    """Return Flower's node configuration of a client's kit: its owner's, and where its files lie.

    Raises
    ------
    KitError
        If the folder is no kit of a client, or `node.toml` or the roster cannot be used.
    """
    kit = read_kit(folder, ClientKit)
    here = folder.resolve()
    roster = read_signed_roster(here / ROSTER)
    found = {
        **_owners_part(here / NODE),
        "partition-id": kit.place,
        "num-partitions": roster.places,
        "identity": str(here / IDENTITY),
        "roster": str(here / ROSTER),
        "policy": str(here / POLICY),
        "ledger": str(here / LEDGER),
    }
    for key, value in found.items():
        _check(here, key, value)
    return found


def node_config_text(folder: Path) -> str:
    """Return the same in one line, as ``flower-supernode --node-config`` takes it.

    Raises
    ------
    KitError
        As `node_config` does.
    """
    return " ".join(f"{key}={_value(value)}" for key, value in node_config(folder).items())


def _owners_part(path: Path) -> dict[str, str | int | float | bool]:
    try:
        tree = read_toml(path)
    except ConfigError as error:
        raise KitError(str(error)) from None
    found: dict[str, str | int | float | bool] = {}
    for key, value in tree.items():
        if key in _OWN:
            raise KitError(f"{path}: {key} follows from the kit; leave it out")
        if not isinstance(value, str | int | float | bool):
            raise KitError(f"{path}: {key} must be a text, a number or a truth value")
        found[key] = value
    return found


def _check(folder: Path, key: str, value: str | int | float | bool) -> None:
    """Refuse what Flower would read as something else."""
    is_plain = re.fullmatch(r"[A-Za-z0-9_-]+", key) is not None
    if isinstance(value, str):
        is_plain = is_plain and value.isprintable() and not set(value) & {'"', "\\"}
    elif isinstance(value, float):
        is_plain = is_plain and math.isfinite(value)
    if not is_plain:
        raise KitError(
            f"{folder}: {key} = {value!r:.80} cannot stand in Flower's node configuration; change "
            f"{NODE}, or move the kit to a plainer path"
        )


def _value(value: str | int | float | bool) -> str:
    # Of what Flower reads as TOML, JSON writes these the same.
    return json.dumps(value, ensure_ascii=False)
