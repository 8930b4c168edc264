"""An engine that runs one client after another in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flwr.app import Message
from flwr.clientapp import ClientApp

from fedveil.simulations.engines.answering import answer
from fedveil.simulations.engines.interface import Work

__all__ = ["SequentialEngine"]


class SequentialEngine:
    """Answers each message when its reply is asked for.

    Parameters
    ----------
    app : ClientApp
        What every node runs.
    """

    def __init__(self, app: ClientApp) -> None:
        self._app = app

    def run(self, work: Sequence[Work]) -> Iterator[Message]:
        """Answer messages, and yield each reply when it is there."""
        for message, context in work:
            yield answer(self._app, message, context)

    def close(self) -> None:
        """Do nothing: there is nothing to stop."""
