"""The SuperLink of a kit, with the SuperNodes registered that the kit names, until told to stop."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedveil.audit_log.trail import AuditTrail
from fedveil.children import Child, ended_how, python_module, until_told_to_stop
from fedveil.errors import FedveilError
from fedveil.server.flower_cli import FlowerCli
from fedveil.server.provisioning import SignedRoster
from fedveil.server.reachable import answers
from fedveil.server.registration import Registration

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
        Folder of the clients' public keys, ``NAME.pub``.
    roster : callable
        Reads the signed roster; of the keys, those of its clients are registered.
    registered : Path
        Where it is written who is registered.
    trail : AuditTrail
        Where it is written down who was registered when.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    host: str
    port: int
    connection: str
    keys: Path
    roster: Callable[[], SignedRoster]
    registered: Path
    trail: AuditTrail


def serve_superlink(settings: SuperLinkSettings) -> None:
    """Serve until SIGTERM or SIGINT; register who is in folder of keys and roster, end who leaves.

    The SuperLink's memory is its own: whoever starts it anew finds all parties registered again.

    Raises
    ------
    ServiceEndedError
        If the SuperLink ends by itself.
    AuditError
        If start or stop cannot be written down.
    """
    settings.trail.write("server-start", superlink=f"{settings.host}:{settings.port}")
    try:
        with until_told_to_stop(_log):
            _serve(settings)
    finally:
        settings.trail.write("server-stop")


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
    parties = Registration(
        settings.keys,
        settings.roster,
        settings.registered,
        partial(FlowerCli, settings.environment),
        settings.connection,
        settings.trail,
    )
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
