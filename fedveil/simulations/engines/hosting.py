"""Clients in a process of an engine: the app is made there, and answers there."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping

from flwr.app import Context, Message, RecordDict

from fedveil.flower import set_identity
from fedveil.simulations.engines.answering import answer
from fedveil.simulations.engines.interface import AppMaker

__all__ = ["Answer", "Host", "levels_of_logs"]

_LOGS = ("flwr", "fedveil")
_SERVER_NODE = 1

Answer = tuple[Message, RecordDict] | str
"""A reply and the state of its node after it; or the traceback of a defect."""


def levels_of_logs() -> dict[str, int]:
    """Return what is logged in this process, for a `Host` to log the same."""
    return {name: logging.getLogger(name).level for name in _LOGS}


class Host:
    """Runs clients in this process, which does nothing else.

    Parameters
    ----------
    clients : AppMaker
        Makes the app.
    levels : mapping of str to int
        As `levels_of_logs` returns them.
    """

    def __init__(self, clients: AppMaker, levels: Mapping[str, int]) -> None:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        import torch

        # The processes share the cores, and sums then do not depend on how many there are.
        torch.set_num_threads(1)
        self._app = clients.app()

    def run(self, message: Message, context: Context) -> Answer:
        """Answer a message."""
        set_identity(message.metadata.run_id, _SERVER_NODE)
        try:
            return answer(self._app, message, context), context.state
        except Exception:  # noqa: BLE001  # told whole: not every error survives the way back
            return traceback.format_exc()
