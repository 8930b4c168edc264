"""What the commands that start from a kit share."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedveil.errors import FedveilError
from fedveil.logs import LogFormat

if TYPE_CHECKING:
    from fedveil.server.provisioning import CoordinatorKit

__all__ = [
    "KitArgument",
    "LogFormatOption",
    "UnsoundKitError",
    "coordinator_environment",
    "coordinator_kit",
    "require_sound",
]

KitArgument = Annotated[
    Path, typer.Argument(metavar="KIT", help="Folder that `fedveil provision` made for this party.")
]
LogFormatOption = Annotated[
    LogFormat, typer.Option("--log-format", help="Lines for people, or one JSON object a line.")
]

_log = logging.getLogger(__name__)


class UnsoundKitError(FedveilError):
    """A kit is not fit to be started from."""


def require_sound(folder: Path) -> None:
    """Refuse a kit with something wrong in it; log what is merely odd.

    Raises
    ------
    UnsoundKitError
        With the first thing that is wrong.
    """
    from fedveil.server.provisioning import check_kit

    findings = check_kit(folder)
    wrong = [finding for finding in findings if finding.is_wrong]
    for finding in findings:
        if not finding.is_wrong:
            _log.warning("%s", finding.text)
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UnsoundKitError(
            f"{wrong[0].text}{more}; `fedveil kit check {folder}` lists all of it"
        )


def coordinator_kit(folder: Path) -> CoordinatorKit:
    """Read a coordinator's kit, made to fit where it lies now.

    Raises
    ------
    FedveilError
        If it is none, or something is wrong with it.
    """
    from fedveil.server.provisioning import CoordinatorKit, read_kit, settle

    kit = read_kit(folder, CoordinatorKit)
    settle(folder)
    require_sound(folder)
    return kit


def coordinator_environment(folder: Path) -> Mapping[str, str]:
    """Return the environment of Flower's processes that work from a coordinator's kit."""
    from fedveil.cli_server import superlink_environment
    from fedveil.server.provisioning import layout

    own = {"FEDVEIL_HOME": str(folder), "FLWR_HOME": str(folder / layout.FLOWER_HOME)}
    # What a process prints is logged when it is said, not when a buffer is full.
    return superlink_environment(os.environ) | own | {"PYTHONUNBUFFERED": "1"}
