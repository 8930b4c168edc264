"""What Fedveil needs of Flower beyond its public interface, in one place.

Tested with Flower 1.41, to which `pyproject.toml` holds us.
"""

from __future__ import annotations

import logging

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedveil.errors import FedveilError

__all__ = [
    "CLIENT_APP_CRASHED",
    "CLIENT_APP_RAISED",
    "UNREACHABLE_CODES",
    "Run",
    "set_identity",
    "set_message_id",
    "show_errors_in_one_line",
]

CLIENT_APP_RAISED = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
"""Flower's code of the error reply for a ClientApp that raised."""

CLIENT_APP_CRASHED = ErrorCode.CLIENT_APP_CRASHED
"""Flower's code of the error reply for a ClientApp whose process ended."""

UNREACHABLE_CODES = frozenset(
    {
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        ErrorCode.NODE_UNAVAILABLE,
    }
)
"""Flower's codes of the error replies that a SuperLink gives in the place of a node."""


def set_identity(run_id: int, node_id: int, task_id: int = 1) -> None:
    """Say whose messages this process makes, as Flower does when it starts an app."""
    TaskIdentity.task_id = task_id
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = node_id


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its id, as a SuperLink would."""
    message.metadata.__dict__["_message_id"] = message_id


def show_errors_in_one_line() -> None:
    """Let Flower log a `FedveilError` that an app raised as one line, without a traceback.

    The error still reaches Flower, which marks the run or the message as failed.
    """
    logging.getLogger("flwr").addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, FedveilError):
        record.msg, record.args = "%s: %s", (record.getMessage(), error)
        record.exc_info = None
    return True
