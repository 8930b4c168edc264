"""Flower's own command line, asked many times by one process: its import takes seconds, not a call.

Only what Flower documents is used: the commands, their options, and the JSON that they print.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import IO

from fedveil.children import die_with_parent, python_module
from fedveil.errors import FedveilError

__all__ = ["FlowerCli", "FlowerCliError", "main"]

_MODULE = "fedveil.server.flower_cli"
_END = "\x1e"
"""Ends what one command printed (ASCII's record separator)."""

_log = logging.getLogger(__name__)


class FlowerCliError(FedveilError):
    """Flower's command refused; the message is its own."""


class FlowerCli:
    """A process that is asked one command after the other; use as a context manager.

    Parameters
    ----------
    environment : mapping of str to str
        Its environment; ``FLWR_HOME`` names the configuration with the connections.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            python_module(_MODULE, str(os.getpid())),
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> FlowerCli:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.communicate()

    def ask(self, *command: str) -> Mapping[str, object]:
        """Run ``flwr COMMAND --format json`` and return the object that it prints.

        Raises
        ------
        FlowerCliError
            If it did not succeed.
        """
        assert self._process.stdin is not None  # noqa: S101  # both are pipes
        assert self._process.stdout is not None  # noqa: S101
        try:
            self._process.stdin.write(json.dumps([*command, "--format", "json"]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise FlowerCliError(f"flwr {command[0]}: cannot be run") from None
        return _answer(command[0], _printed(self._process.stdout))


def _printed(stream: IO[str]) -> str:
    lines = []
    for line in stream:
        if line.startswith(_END):
            break
        lines.append(line)
    return "".join(lines)


def _answer(name: str, printed: str) -> Mapping[str, object]:
    try:
        found, _ = json.JSONDecoder().raw_decode(printed[printed.index("{") :])
    except ValueError:
        raise FlowerCliError(f"flwr {name}: {printed.strip() or 'said nothing'}") from None
    if not found.get("success"):
        # What it would have printed on the way stands above its error.
        reason = str(found.get("error-message", "")).strip().splitlines()
        raise FlowerCliError(f"flwr {name}: {reason[-1] if reason else 'failed'}")
    return dict(found)


def main() -> None:
    """Run the commands that stand in standard input, a JSON array a line."""
    die_with_parent(int(sys.argv[1]))
    from flwr.cli.app import app

    for line in sys.stdin:
        try:
            app(json.loads(line), standalone_mode=False)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # is told, whatever it is
            print(error)  # noqa: T201
        print(_END, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
