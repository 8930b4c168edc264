"""One message answered by the app in this process."""

from __future__ import annotations

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from fedveil.errors import FedveilError
from fedveil.flower import CLIENT_APP_RAISED

__all__ = ["answer"]


def answer(app: ClientApp, message: Message, context: Context) -> Message:
    """Return the app's reply, or what a deployed node replies where the app refuses.

    A defect is raised: a deployed node would answer with an error, but in a simulation its
    traceback is worth more than the run.
    """
    try:
        return app(message, context)
    except FedveilError as error:
        # In Flower's words.
        reason = f"{type(error)}:<'{error}'>"
        return Message(Error(code=CLIENT_APP_RAISED, reason=reason), reply_to=message)
