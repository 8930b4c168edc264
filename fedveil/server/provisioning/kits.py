"""`fedveil provision`: makes the kits of a federation, and changes them when it changes.

What is secret is written once, into a folder aside that is then renamed, and never again. All else
follows from the federation's file and the authority's records, so that a run which was interrupted
is completed by the next one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from fedveil.config import Config
from fedveil.rosters import parse_public_key
from fedveil.secagg.identity import Roster
from fedveil.server.provisioning.authority import Authority, create_authority, open_authority
from fedveil.server.provisioning.certificates import load_certificate, trouble_with
from fedveil.server.provisioning.contents import Federation, starting_policy
from fedveil.server.provisioning.errors import ProvisionError
from fedveil.server.provisioning.federation_file import FederationFile
from fedveil.server.provisioning.kit_file import read_any_kit
from fedveil.server.provisioning.layout import (
    AUTHORITY,
    COORDINATOR,
    KIT,
    MODEL_KEY,
    REVOKED,
    SERVER_CERTIFICATE,
    service_key_file,
)
from fedveil.server.provisioning.making import Maker, adopt
from fedveil.server.provisioning.outcome import Change, Outcome
from fedveil.server.provisioning.parties import Party, read_parties, write_party
from fedveil.server.provisioning.plan import Plan, make_plan
from fedveil.server.provisioning.settle import settled_files
from fedveil.server.provisioning.writing import (
    KitFolder,
    alone_in,
    move_aside,
    publish,
    replace,
    staging,
    writing_to,
)
from fedveil.vault.keyfile import read_secret_file

__all__ = ["provision"]

_KEYS = "keys/"
_MOST_KEY_BYTES = 4096


def provision(
    file: FederationFile,
    settings: Callable[[int], Config],
    kits: Path,
    *,
    now: datetime,
    revoke: Collection[str] = (),
    renew: Collection[str] = (),
) -> Outcome:
    """Make the kits of a federation, or change those that are there.

    Parameters
    ----------
    file : FederationFile
        The federation.
    settings : callable
        Returns the settings of the run for a number of clients.
    kits : Path
        Where they are, or shall be.
    now : datetime
        When certificates begin and rosters are issued.
    revoke : collection of str
        Parties that the file no longer has.
    renew : collection of str
        Servers whose certificate is made anew, for the same key; ``ca`` for the authority's own.

    Raises
    ------
    FedveilError
        If that cannot be done. Nothing is written then, or what was written is whole and the next
        run goes on from there.
    """
    with alone_in(kits), writing_to(kits):
        return _Provisioning(file, settings, kits, now).run(revoke, renew)


class _Provisioning:
    """One run, with the lock held."""

    def __init__(
        self,
        file: FederationFile,
        settings: Callable[[int], Config],
        kits: Path,
        now: datetime,
    ) -> None:
        self._file, self._settings, self._kits, self._now = file, settings, kits, now
        self._changes: list[Change] = []

    def run(self, revoke: Collection[str], renew: Collection[str]) -> Outcome:
        authority = open_authority(self._kits, self._file.name)
        parties = {} if authority is None else self._known(authority)
        plan = make_plan(self._file, parties, revoke, renew)
        config = self._config(plan)
        self._check_folders(parties, authority)
        authority = self._authority(authority, plan)
        with ExitStack() as staged_kits:
            maker = Maker(self._file, authority, self._now)
            staged = {
                name: staged_kits.enter_context(staging(self._kits, name))
                for name in self._file.parties
                if name not in parties
            }
            drawn = {name: self._draw(maker, plan, name, to) for name, to in staged.items()}
            federation = self._federation(authority, plan, config, parties | drawn)
            self._publish(authority, federation, drawn, staged)
        self._revoke(authority, plan, parties)
        for name in self._file.parties:
            is_renewed = name in plan.renewed and name in parties
            self._update(maker, federation, name, is_renewed=is_renewed, is_new=name in drawn)
        self._move_revoked(authority)
        return Outcome(
            authority.folder,
            federation.roster.serial,
            tuple(self._changes),
            tuple(self._notes(authority)),
        )

    def _known(self, authority: Authority) -> dict[str, Party]:
        """Return the parties on record, and those whose kit a crash left without one."""
        parties = read_parties(authority.folder)
        for name in self._file.parties:
            if name not in parties and (self._kits / name / KIT).is_file():
                found = adopt(self._kits / name, self._file)
                parties[name] = write_party(authority.folder, found, {})
        return parties

    def _config(self, plan: Plan) -> Config:
        config = self._settings(plan.partitions)
        least, there = config.federation.min_clients, len(plan.places)
        if there < least:
            raise ProvisionError(
                f"the run needs federation.min_clients = {least}, and the file has {there} clients"
            )
        # What would be refused later is refused before anything is written.
        starting_policy(self._file, config)
        return config

    def _check_folders(self, parties: Mapping[str, Party], authority: Authority | None) -> None:
        for name in self._file.parties:
            folder = self._kits / name
            if folder.is_symlink() or (folder.exists() and not (folder / KIT).is_file()):
                raise ProvisionError(f"{folder}: is there and is no kit; move it away")
            if name not in parties and folder.exists():
                raise ProvisionError(
                    f"{folder}: is a kit, and there is no authority in {self._kits / AUTHORITY}; "
                    "bring its folder back, or name another folder with --out"
                )
            if authority is not None and folder.exists():
                kit = read_any_kit(folder)
                if (kit.name, kit.authority) != (name, authority.public_key):
                    raise ProvisionError(
                        f"{folder}: is the kit of {kit.name} of another authority; move it away"
                    )

    def _authority(self, found: Authority | None, plan: Plan) -> Authority:
        days = self._file.certificates.authority_days
        if found is None:
            made = create_authority(self._kits, self._file.name, days, self._now)
            self._changes.append(Change(AUTHORITY, "made", made.folder))
            return made
        if AUTHORITY not in plan.renewed:
            return found
        self._changes.append(Change(AUTHORITY, "changed", found.folder, ("ca.pem",)))
        return found.renewed(days, self._now)

    def _draw(self, maker: Maker, plan: Plan, name: str, folder: Path) -> Party:
        if name == COORDINATOR:
            return maker.coordinator(folder)
        if name in plan.places:
            return maker.client(name, plan.places[name], folder)
        return maker.inference(name, folder)

    def _federation(
        self, authority: Authority, plan: Plan, config: Config, parties: Mapping[str, Party]
    ) -> Federation:
        identities = {n: parse_public_key(parties[n].identity or "") for n in plan.places}
        return Federation(
            file=self._file,
            config=config,
            certificate=authority.certificate,
            authority=authority.public_key,
            signer=parties[COORDINATOR].signer or "",
            roster=authority.roster(Roster(identities), plan.partitions, self._now),
            places=plan.places,
            supernode_keys={n: parties[n].supernode_key or "" for n in plan.places},
        )

    def _publish(
        self,
        authority: Authority,
        federation: Federation,
        drawn: Mapping[str, Party],
        staged: Mapping[str, Path],
    ) -> None:
        """Complete the new kits, then let them appear one by one."""
        for name, folder in staged.items():
            files = federation.files(name)
            own = federation.own_files(name) if name in self._file.clients else {}
            settled = settled_files(federation.kit(name), self._kits / name)
            for path, content in {**files, **own, **settled}.items():
                replace(folder / path, content)
        for name, folder in staged.items():
            publish(folder, self._kits / name)
            write_party(authority.folder, drawn[name], _digests(federation.files(name)))
            self._changes.append(Change(name, "made", self._kits / name))

    def _revoke(self, authority: Authority, plan: Plan, parties: Mapping[str, Party]) -> None:
        moment = self._now.isoformat(timespec="seconds")
        for name in plan.revoked:
            gone = parties[name].model_copy(update={"revoked": moment})
            write_party(authority.folder, gone, gone.files)

    def _update(
        self, maker: Maker, federation: Federation, name: str, *, is_renewed: bool, is_new: bool
    ) -> None:
        """Bring the files of a party that can be made anew up to date."""
        party = read_parties(maker.authority.folder)[name]
        kit = KitFolder(self._kits, name, party.files)
        files = federation.files(name)
        # First what must no longer be there: a client that is registered and was revoked.
        for path in sorted(set(party.files) - set(files)):
            if not path.startswith(_KEYS):
                kit.remove(path)
        for path, content in files.items():
            kit.put(path, content)
        if name == COORDINATOR:
            for service in self._file.inference:
                key = self._kits / service / MODEL_KEY
                if key.is_file():
                    kit.put(service_key_file(service), read_secret_file(key, _MOST_KEY_BYTES))
        if kit.is_here:
            for path, content in settled_files(federation.kit(name), kit.folder).items():
                kit.put(path, content, is_tracked=False)
        if is_renewed:
            kit.put(SERVER_CERTIFICATE, maker.certificate(party), is_tracked=False)
        write_party(maker.authority.folder, party, kit.files)
        if (kit.changed or kit.removed) and not is_new:
            changed, removed = tuple(kit.changed), tuple(kit.removed)
            self._changes.append(Change(name, "changed", kit.folder, changed, removed))

    def _move_revoked(self, authority: Authority) -> None:
        for name, party in read_parties(authority.folder).items():
            folder = self._kits / name
            if party.revoked is not None and folder.exists():
                move_aside(folder, self._kits / REVOKED / name)
                self._changes.append(Change(name, "revoked", self._kits / REVOKED / name))

    def _notes(self, authority: Authority) -> Iterator[str]:
        """Yield what a certificate that lies here will be refused for."""
        servers = {name: entry.hosts for name, entry in self._file.inference.items()}
        for name, hosts in {COORDINATOR: self._file.coordinator.hosts, **servers}.items():
            path = self._kits / name / SERVER_CERTIFICATE
            if not path.is_file():
                continue
            certificate = load_certificate(path)
            for host in hosts:
                trouble = trouble_with(certificate, authority.certificate, host, self._now)
                if trouble is not None:
                    yield f"{name}: {trouble}; --renew {name} makes a new one"
                    break


def _digests(files: Mapping[str, bytes]) -> dict[str, str]:
    return {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
