"""Why a node's answer is not used: in words for people, and as one of few kinds for figures."""

from __future__ import annotations

from enum import StrEnum

from flwr.app import Message

from fedveil.errors import FedveilError
from fedveil.flower import CLIENT_APP_CRASHED, UNREACHABLE_CODES

__all__ = ["Failure", "FailureKind", "failure_in", "failure_of", "kind_of", "one_line"]

_LONGEST_REASON = 300


class FailureKind(StrEnum):
    """What kind of failure it is; few, so that figures can be counted by it."""

    SILENT = "silent"
    """No answer in time, or the node is gone."""
    CRASHED = "crashed"
    """The process that should answer has ended, or took more than its owner allows."""
    POLICY = "policy"
    """The owner's policy, or what is left of the budget, does not allow it."""
    REQUEST = "request"
    """The client cannot honour the request, or its own settings do not fit."""
    FAILED = "failed"
    """The app raised something else."""
    PROTOCOL = "protocol"
    """The secure aggregation was refused or broken, on either side."""
    RESTARTED = "restarted"
    """The client was started anew and has lost the keys of the set-up."""
    UNUSABLE = "unusable"
    """The answer is one that must not reach the model."""
    EXCLUDED = "excluded"
    """It was not asked, for what happened before."""
    PLACE = "place"
    """It says a place that is taken, or that the run does not have."""
    OTHER = "other"


_KIND_OF_ERROR = {
    "PolicyRefusedError": FailureKind.POLICY,
    "RequestError": FailureKind.REQUEST,
    "ProtocolError": FailureKind.PROTOCOL,
    "RosterError": FailureKind.PROTOCOL,
    "UnknownSessionError": FailureKind.RESTARTED,
}
"""By the name of the class that a client's error says that it has."""


class Failure(str):
    """The words, which can be used as they are, and the kind.

    Parameters
    ----------
    kind : FailureKind
        What kind of failure.
    words : str
        One line.
    """

    kind: FailureKind

    def __new__(cls, kind: FailureKind, words: str) -> Failure:
        """Make it of both."""
        made = super().__new__(cls, words)
        made.kind = kind
        return made

    def __getnewargs__(self) -> tuple[FailureKind, str]:  # type: ignore[override]  # of str's own
        return self.kind, str(self)


def failure_in(reply: Message) -> Failure:
    """Return why a client failed: its own words, on one printable line."""
    # Flower wraps what a ClientApp raised as "<class 'x.Y'>:<'text'>".
    reason = reply.error.reason or f"error code {reply.error.code}"
    before, wrapped, text = reason.partition(">:<")
    words = one_line(text.rstrip(">").strip("'\"") if wrapped else reason)
    if reply.error.code in UNREACHABLE_CODES:
        return Failure(FailureKind.SILENT, words)
    if reply.error.code == CLIENT_APP_CRASHED:
        return Failure(FailureKind.CRASHED, words)
    raised = before.rstrip("'").rpartition(".")[2] if wrapped else ""
    return Failure(_KIND_OF_ERROR.get(raised, FailureKind.FAILED), words)


def failure_of(error: FedveilError, kind: FailureKind) -> Failure:
    """Return the failure that an error was raised with; one of `kind` if with plain words."""
    words = error.args[0] if error.args else ""
    return words if isinstance(words, Failure) else Failure(kind, str(error))


def kind_of(reason: str) -> FailureKind:
    """Return the kind of a failure; of plain words it is not known."""
    return reason.kind if isinstance(reason, Failure) else FailureKind.OTHER


def one_line(words: str) -> str:
    """Return what comes from outside as it may be shown in a terminal: one printable line."""
    line = "".join(c if c.isprintable() else " " for c in words)
    return line if len(line) <= _LONGEST_REASON else line[:_LONGEST_REASON] + " ..."
