"""Who takes part from now on: the federation's file against what was provisioned before."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from fedveil.server.provisioning.errors import ProvisionError
from fedveil.server.provisioning.federation_file import FederationFile
from fedveil.server.provisioning.layout import AUTHORITY, COORDINATOR
from fedveil.server.provisioning.parties import Party

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """Who takes part.

    Parameters
    ----------
    places : dict of str to int
        The clients in the file's order, each with its part of the data.
    revoked : tuple of str
        Who no longer takes part, as of now.
    renewed : tuple of str
        Whose certificate is made anew.
    """

    places: Mapping[str, int]
    revoked: tuple[str, ...]
    renewed: tuple[str, ...]

    @property
    def partitions(self) -> int:
        """Parts that the data is divided among; places of revoked clients in between count."""
        return max(self.places.values()) + 1


def make_plan(
    file: FederationFile,
    parties: Mapping[str, Party],
    revoke: Collection[str] = (),
    renew: Collection[str] = (),
) -> Plan:
    """Return who takes part from now on.

    Parameters
    ----------
    file : FederationFile
        Who shall.
    parties : Mapping
        Who was provisioned before, by name, revoked ones included.
    revoke : collection of str
        Who shall no longer, though provisioned.
    renew : collection of str
        Whose certificate to make anew.

    Raises
    ------
    ProvisionError
        If the file and what was provisioned contradict each other, or a name is unknown.
    """
    _check_names(file, parties)
    _check_clients(file, parties)
    revoked = _revoked(file, parties, revoke)
    servers = {AUTHORITY, COORDINATOR, *file.inference}
    for name in renew:
        if name in file.clients:
            raise ProvisionError(
                f"--renew {name}: a client has no certificate; if its keys leaked, revoke it and "
                "add it under another name"
            )
        if name not in servers:
            raise ProvisionError(
                f"--renew {name}: is not in the file; one of {', '.join(sorted(servers))}"
            )
    return Plan(_places(file, parties), revoked, tuple(dict.fromkeys(renew)))


def _check_names(file: FederationFile, parties: Mapping[str, Party]) -> None:
    for kind, names in (("client", file.clients), ("inference", file.inference)):
        for name in names:
            party = parties.get(name)
            if party is None:
                continue
            if party.revoked is not None:
                raise ProvisionError(
                    f"{name} was revoked on {party.revoked[:10]}, and old rosters may still know "
                    "its key; call it another name"
                )
            if party.kind != kind:
                raise ProvisionError(
                    f"{name} was provisioned as {party.kind} and is {kind} in the file; call it "
                    "another name"
                )


def _check_clients(file: FederationFile, parties: Mapping[str, Party]) -> None:
    keys: dict[str, str] = {}
    for name, entry in file.clients.items():
        party = parties.get(name)
        if party is not None:
            if entry.place is not None and entry.place != party.place:
                raise ProvisionError(
                    f"{name} has place {party.place} since it was provisioned, and the file says "
                    f"{entry.place}; a place stays"
                )
            given = (entry.identity, entry.supernode_key)
            if entry.identity is not None and given != (party.identity, party.supernode_key):
                raise ProvisionError(
                    f"the file has other keys for {name} than it was provisioned with; revoke it "
                    "and add it under another name"
                )
        for key in (entry.identity, entry.supernode_key):
            if key is not None and keys.setdefault(key, name) != name:
                raise ProvisionError(
                    f"{keys[key]} and {name} have the same key; each needs its own"
                )


def _revoked(
    file: FederationFile, parties: Mapping[str, Party], revoke: Collection[str]
) -> tuple[str, ...]:
    there = {COORDINATOR, *file.clients, *file.inference}
    for name in revoke:
        if name == COORDINATOR:
            raise ProvisionError("--revoke coordinator: a federation has one; make new kits")
        if name in there:
            raise ProvisionError(f"--revoke {name}: take {name} out of the file as well")
        if name not in parties:
            known = _listed(parties)
            raise ProvisionError(f"--revoke {name}: was never provisioned; known are {known}")
    gone = [name for name, party in parties.items() if party.revoked is None and name not in there]
    forgotten = [name for name in gone if name not in revoke]
    if forgotten:
        options = " ".join(f"--revoke {name}" for name in forgotten)
        raise ProvisionError(
            f"{_listed(forgotten)} has a kit and is not in the file; put it back, or say {options}"
        )
    return tuple(gone)


def _places(file: FederationFile, parties: Mapping[str, Party]) -> dict[str, int]:
    known = {name: p.place for name, p in parties.items() if p.place is not None}
    taken = {entry.place: name for name, entry in file.clients.items() if entry.place is not None}
    for name in file.clients:
        had = known.get(name)
        if had is not None and taken.setdefault(had, name) != name:
            raise ProvisionError(f"{taken[had]} wants place {had}, which {name} has")
    # Of a revoked client too: reports add up what a place released.
    following = max([*taken, *known.values()], default=-1) + 1
    places: dict[str, int] = {}
    for name, entry in file.clients.items():
        place = known.get(name, entry.place)
        if place is None:
            place, following = following, following + 1
        places[name] = place
    return places


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
