"""What Fedveil needs of Flower beyond its public interface, in one place.

Tested with Flower 1.41, to which `pyproject.toml` holds us.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.supercore.constant import PULL_MAX_TIME
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedveil.errors import FedveilError

__all__ = [
    "CLIENT_APP_CRASHED",
    "CLIENT_APP_RAISED",
    "FIRST_PULL_PAUSE",
    "LONGEST_PULL_PAUSE",
    "UNREACHABLE_CODES",
    "Run",
    "pull_impatiently",
    "pulls_end_at",
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

FIRST_PULL_PAUSE, LONGEST_PULL_PAUSE = 0.02, 1.0
"""Seconds before a part of a message is asked for again, in the place of Flower's one and ten.

Most are there within milliseconds: the message was seen while it was being uploaded.
"""

_pulls_end: ContextVar[float] = ContextVar("pulls_end", default=math.inf)


def set_identity(run_id: int, node_id: int, task_id: int = 1) -> None:
    """Say whose messages this process makes, as Flower does when it starts an app."""
    TaskIdentity.task_id = task_id
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = node_id


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its id, as a SuperLink would."""
    message.metadata.__dict__["_message_id"] = message_id


@contextmanager
def pulls_end_at(deadline: float) -> Iterator[None]:
    """Let the pulls of Flower's grid end at a time, whatever is still being uploaded then.

    A SuperLink gives a reply out as soon as its upload has begun, and the grid waits for the rest
    of it before it looks at any other: for three minutes after the client has died, for two hours
    where the client goes on slowly. After the deadline each part is asked for once, so that such
    a reply becomes an error and whole ones still come.

    Parameters
    ----------
    deadline : float
        Of `time.monotonic`.
    """
    from flwr.superlink.grid import http_grid

    vars(http_grid)["pull_objects"] = pull_impatiently
    before = _pulls_end.set(deadline)
    try:
        yield
    finally:
        _pulls_end.reset(before)


def pull_impatiently(
    object_ids: list[str], pull_object_fn: Callable[[str], bytes]
) -> dict[str, bytes]:
    """Pull the parts of a message as Flower does, but for its pauses and its patience.

    Time alone ends it: Flower's limit of tries is one of time, too, at its own pauses.
    """
    left = _pulls_end.get() - time.monotonic()
    return pull_objects(
        object_ids,
        pull_object_fn,
        max_time=min(max(0.0, left), PULL_MAX_TIME),
        max_tries_per_object=None,
        initial_backoff=FIRST_PULL_PAUSE,
        backoff_cap=LONGEST_PULL_PAUSE,
    )


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
