"""What became of a message, for the audit log: answered, refused, or failed, and why."""

from __future__ import annotations

from enum import StrEnum

from flwr.app import Message

from fedveil.envelope import is_sealed, open_envelope
from fedveil.errors import FedveilError, PublicError
from fedveil.secagg.errors import SecAggError
from fedveil.secagg.messages import Refusal
from fedveil.secagg.wire import kind_of

__all__ = ["Outcome", "outcome_of_error", "refusal_in_reply"]


class Outcome(StrEnum):
    """How a message ended."""

    OK = "ok"
    REFUSED = "refused"
    """This client's policy, its app or the secure aggregation said no."""
    ERROR = "error"
    """The app raised something else."""
    CRASHED = "crashed"
    OUT_OF_MEMORY = "out-of-memory"
    OUT_OF_TIME = "out-of-time"
    GIVEN_UP = "given-up"
    """The SuperNode no longer wanted an answer."""


def outcome_of_error(error: BaseException) -> Outcome:
    """Return whether an app that raised has refused, or failed."""
    said_no = isinstance(error, PublicError | SecAggError)
    return Outcome.REFUSED if said_no else Outcome.ERROR


def refusal_in_reply(reply: Message) -> str:
    """Return why a reply refuses under secure aggregation; empty where it does not."""
    if reply.has_error() or not is_sealed(reply.content):
        return ""
    try:
        data = open_envelope(reply.content)
        return Refusal.decode(data).reason if kind_of(data) == Refusal.KIND else ""
    except FedveilError:
        # What an app of another maker has sealed is its own affair.
        return ""
