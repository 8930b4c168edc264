"""Who a client is to the others, and what it insists on: from files, or made up in a simulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Context

from fedveil.home import default_identity_file, default_roster_file
from fedveil.rosters import load_identity, read_roster
from fedveil.secagg.errors import FloorError
from fedveil.secagg.floors import Floors
from fedveil.secagg.identity import Identity, Roster

__all__ = ["Credentials", "credentials_of_node", "needs_secure_aggregation"]

_FLOORS = {
    "secagg-min-clients": "min_clients",
    "secagg-min-bits": "min_bits",
    "secagg-max-clip-norm": "max_clip_norm",
    "secagg-corrupt-share": "corrupt_share",
    "secagg-sparse-corrupt-share": "sparse_corrupt_share",
}


@dataclass(frozen=True)
class Credentials:
    """What a client takes part in a secure aggregation with.

    Parameters
    ----------
    identity : Identity
        Who it is.
    roster : Roster
        Whom it knows, itself included.
    floors : Floors
        What it insists on.
    """

    identity: Identity
    roster: Roster
    floors: Floors = field(default_factory=Floors)


def credentials_of_node(context: Context) -> Credentials:
    """Read the credentials of a deployed client.

    The node's configuration may name ``identity`` and ``roster``; otherwise they lie in
    ``$FEDVEIL_HOME``. It may also set floors: ``secagg-min-clients``, ``secagg-min-bits``,
    ``secagg-max-clip-norm``, ``secagg-corrupt-share``, ``secagg-sparse-corrupt-share``. Only
    paths stand in the configuration, which Flower keeps; never a key.

    Raises
    ------
    FedveilError
        If a file is missing or refused, or a floor makes no sense.
    """
    identity_file, roster_file = _files(context)
    identity, known = load_identity(identity_file), read_roster(roster_file)
    # Whoever knows the others need not list itself; a wrong key under its name stays wrong.
    roster = Roster({identity.name: identity.public_key, **known.keys})
    return Credentials(identity, roster, _floors(context.node_config))


def needs_secure_aggregation(context: Context) -> bool:
    """Tell whether this node answers no other way: unless its own configuration says otherwise.

    The data owner switches it off with ``secagg="off"``; the server has no say in it.
    """
    return context.node_config.get("secagg") != "off"


def _files(context: Context) -> tuple[Path, Path]:
    named = context.node_config
    return (
        Path(str(named.get("identity") or default_identity_file())),
        Path(str(named.get("roster") or default_roster_file())),
    )


def _floors(node_config: Mapping[str, object]) -> Floors:
    given: dict[str, float] = {}
    for key, name in _FLOORS.items():
        if key not in node_config:
            continue
        value = node_config[key]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FloorError(f"{key} = {value!r} in the node's configuration must be a number")
        given[name] = value
    for name in ("min_clients", "min_bits"):
        if given.get(name, 0) != int(given.get(name, 0)):
            raise FloorError(f"{name} = {given[name]:g} must be a whole number")
    return Floors(**given)  # type: ignore[arg-type]  # whole numbers where they belong, checked
