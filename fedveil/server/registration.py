"""Who is registered at a SuperLink: whose key lies in the kit and whose name the roster has."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from fedveil.audit_log.errors import AuditError
from fedveil.audit_log.trail import AuditTrail
from fedveil.errors import FedveilError
from fedveil.server.flower_cli import FlowerCliError
from fedveil.server.provisioning import KitError, SignedRoster
from fedveil.vault.files import replace_file

__all__ = ["Flower", "Registration"]

_TRY_AGAIN = 10.0

_log = logging.getLogger(__name__)


class Flower(Protocol):
    """Asks a SuperLink, as `FlowerCli` does."""

    def ask(self, *command: str) -> Mapping[str, object]:
        """Run a command of Flower's."""


class Registration:
    """Holds who is registered against the folder of keys and the signed roster.

    A key whose client is not in the roster is not registered, and one that was, no longer: a file
    that a revoked client left behind opens nothing. Where the roster cannot be trusted, or is older
    than one that was seen, nobody is let in who was not before.

    Parameters
    ----------
    keys : Path
        Folder of the clients' public keys, ``NAME.pub``.
    roster : callable
        Reads the signed roster; may raise `KitError`.
    registered : Path
        Where it is written who is registered.
    flower : callable
        Returns who asks the SuperLink, as a context manager.
    connection : str
        The SuperLink's name in Flower's configuration.
    trail : AuditTrail
        Told first; what cannot be written down is tried again later.
    """

    def __init__(
        self,
        keys: Path,
        roster: Callable[[], SignedRoster],
        registered: Path,
        flower: Callable[[], AbstractContextManager[Flower]],
        connection: str,
        trail: AuditTrail,
    ) -> None:
        self._keys = keys
        self._roster = roster
        self._registered = registered
        self._flower = flower
        self._connection = connection
        self._trail = trail
        self._known: dict[str, tuple[str, bytes]] = {}
        self._told: set[str] = set()
        self._serial = 0
        self._not_before = 0.0
        # What an earlier SuperLink knew went with it.
        self._write()

    def follow(self) -> None:
        """Register who has come, and end the registration of who is gone or has another key."""
        if time.monotonic() < self._not_before:
            return
        wanted = self._wanted()
        leave = [name for name, (_, key) in self._known.items() if wanted.get(name) != key]
        come = [name for name in sorted(wanted) if name not in self._known or name in leave]
        if not (leave or come):
            return
        try:
            with self._flower() as flower:
                for name in leave:
                    self._unregister(flower, name)
                for name in come:
                    self._register(flower, name, wanted[name])
        except (FlowerCliError, AuditError) as error:
            _log.error("%s; tried again in %g s", error, _TRY_AGAIN)
            self._not_before = time.monotonic() + _TRY_AGAIN
        self._write()

    def _wanted(self) -> dict[str, bytes]:
        """Return the keys of those who shall be registered, by name."""
        found = {}
        for path in self._keys.glob("*.pub"):
            try:
                found[path.stem] = path.read_bytes()
            except OSError as error:
                # Taken away at this moment, or not ours to read; the next look tells.
                self._tell_once(f"{path}: cannot be read ({error.strerror})")
        admitted = self._admitted()
        for name in sorted(found.keys() - admitted):
            self._tell_once(
                f"{self._keys / name}.pub: {name} is not in the signed roster (revoked?), so that "
                "it is not registered; remove the file"
            )
        return {name: key for name, key in found.items() if name in admitted}

    def _admitted(self) -> frozenset[str]:
        try:
            roster = self._roster()
            if roster.serial < self._serial:
                raise KitError(
                    f"the roster has number {roster.serial}, and {self._serial} was seen before; "
                    "put the newer one back"
                )
        except FedveilError as error:
            self._tell_once(f"{error}; until then nobody is registered who is not")
            return frozenset(self._known)
        self._serial = roster.serial
        return frozenset(roster.roster.keys)

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            _log.error("%s", text)

    def _register(self, flower: Flower, name: str, key: bytes) -> None:
        self._trail.write("register", client=name, key_sha256=hashlib.sha256(key).hexdigest())
        path = self._keys / f"{name}.pub"
        found = flower.ask("supernode", "register", str(path), self._connection, "--name", name)
        self._known[name] = (str(found["node-id"]), key)
        _log.info("%s is registered (SuperNode %s)", name, found["node-id"])

    def _unregister(self, flower: Flower, name: str) -> None:
        number, _ = self._known[name]
        self._trail.write("unregister", client=name, node=number)
        flower.ask("supernode", "unregister", number, self._connection)
        del self._known[name]
        _log.info("%s is no longer registered", name)

    def _write(self) -> None:
        numbers = {name: number for name, (number, _) in self._known.items()}
        content = memoryview(json.dumps(numbers, indent=1).encode())
        replace_file(self._registered, lambda sink: sink.write(content))
