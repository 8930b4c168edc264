"""What an engine is, whichever runs the clients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

__all__ = ["AppMaker", "Engine", "Work"]

Work = tuple[Message, Context]
"""A message and the context of the node that it is for."""


class AppMaker(Protocol):
    """Makes the app that every node runs; can be pickled, which an app cannot."""

    def app(self) -> ClientApp:
        """Return the app."""


class Engine(Protocol):
    """Runs the clients of a simulation."""

    def run(self, work: Sequence[Work]) -> Iterator[Message]:
        """Answer messages, and yield each reply when it is there, in any order."""

    def close(self) -> None:
        """Stop whatever runs for the engine."""
