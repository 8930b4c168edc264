"""The SuperLink of a kit, with the SuperNodes registered that the kit names, until told to stop."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedveil.children import Child, ended_how, python_module, until_told_to_stop
from fedveil.errors import FedveilError
from fedveil.server.flower_cli import FlowerCli, FlowerCliError
from fedveil.server.reachable import answers
from fedveil.vault.files import replace_file

__all__ = [
    "REGISTERED",
    "ServiceEndedError",
    "SuperLinkSettings",
    "read_registered",
    "serve_superlink",
]

REGISTERED = "registered.json"
"""In the kit: the number that the SuperLink gave each party, for `fedveil status`."""

_MODULE = "fedveil.server.superlink"
_ACCESS = "[uvicorn.access]"
"""In the line of each request: several a second from each client."""
_LOOK = 2.0
_STARTS_WITHIN = 60.0
_TRY_AGAIN = 10.0

_log = logging.getLogger(__name__)


class ServiceEndedError(FedveilError):
    """The SuperLink ended by itself."""


@dataclass(frozen=True)
class SuperLinkSettings:
    """What a SuperLink is started with.

    Parameters
    ----------
    arguments : tuple of str
        As `flower-superlink` takes them.
    environment : mapping of str to str
        Its environment.
    host, port
        Where it listens.
    connection : str
        Its name in the Flower configuration that the environment points at.
    keys : Path
        Folder of the public keys of those who may take part, ``NAME.pub``.
    registered : Path
        Where it is written who is registered.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    host: str
    port: int
    connection: str
    keys: Path
    registered: Path


def serve_superlink(settings: SuperLinkSettings) -> None:
    """Serve until SIGTERM or SIGINT; register who comes into the folder of keys, end who leaves.

    The SuperLink's memory is its own: whoever starts it anew finds all parties registered again.

    Raises
    ------
    ServiceEndedError
        If the SuperLink ends by itself.
    """
    with until_told_to_stop(_log):
        _serve(settings)


def read_registered(kit: Path) -> dict[str, str]:
    """Return the SuperLink's number of each party of a kit; empty before the first start."""
    try:
        found = json.loads((kit / REGISTERED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(number) for name, number in dict(found).items()}


def _serve(settings: SuperLinkSettings) -> None:
    command = python_module(_MODULE, str(os.getpid()), *settings.arguments)
    log = logging.getLogger("fedveil.superlink")
    child = Child(command, settings.environment, log, quiet=_ACCESS)
    parties = _Parties(settings)
    try:
        _wait_for_port(child, settings.host, settings.port)
        while child.code is None:
            parties.follow()
            time.sleep(_LOOK)
        raise _ended(child)
    finally:
        child.end()


def _wait_for_port(child: Child, host: str, port: int) -> None:
    deadline = time.monotonic() + _STARTS_WITHIN
    while child.code is None:
        if answers(host, port):
            return
        if time.monotonic() > deadline:
            raise ServiceEndedError(
                f"the SuperLink does not listen on {host}, port {port}, after {_STARTS_WITHIN:g} s"
            )
        time.sleep(0.1)
    raise _ended(child)


def _ended(child: Child) -> ServiceEndedError:
    code = child.code
    assert code is not None  # noqa: S101  # it has ended
    return ServiceEndedError(f"the SuperLink {ended_how(code)}; its last lines are in the log")


class _Parties:
    """Who is registered at the SuperLink, held against the folder of keys."""

    def __init__(self, settings: SuperLinkSettings) -> None:
        self._settings = settings
        self._known: dict[str, tuple[str, bytes]] = {}
        self._not_before = 0.0
        # What an earlier SuperLink knew went with it.
        self._write()

    def follow(self) -> None:
        """Register whose key has come, and end the registration of whose key is gone or another."""
        wanted = {path.stem: path.read_bytes() for path in self._settings.keys.glob("*.pub")}
        leave = [name for name, (_, key) in self._known.items() if wanted.get(name) != key]
        come = [name for name in sorted(wanted) if name not in self._known or name in leave]
        if not (leave or come) or time.monotonic() < self._not_before:
            return
        try:
            with FlowerCli(self._settings.environment) as flower:
                for name in leave:
                    self._unregister(flower, name)
                for name in come:
                    self._register(flower, name, wanted[name])
        except FlowerCliError as error:
            _log.error("%s; tried again in %g s", error, _TRY_AGAIN)
            self._not_before = time.monotonic() + _TRY_AGAIN
        self._write()

    def _register(self, flower: FlowerCli, name: str, key: bytes) -> None:
        path = self._settings.keys / f"{name}.pub"
        connection = self._settings.connection
        found = flower.ask("supernode", "register", str(path), connection, "--name", name)
        self._known[name] = (str(found["node-id"]), key)
        _log.info("%s is registered (SuperNode %s)", name, found["node-id"])

    def _unregister(self, flower: FlowerCli, name: str) -> None:
        number, _ = self._known[name]
        flower.ask("supernode", "unregister", number, self._settings.connection)
        del self._known[name]
        _log.info("%s is no longer registered", name)

    def _write(self) -> None:
        numbers = {name: number for name, (number, _) in self._known.items()}
        content = memoryview(json.dumps(numbers, indent=1).encode())
        replace_file(self._settings.registered, lambda sink: sink.write(content))
