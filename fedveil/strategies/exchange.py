"""Messages out, replies in, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from flwr.app import Message
from flwr.serverapp.grid import Grid

from fedveil.flower import pulls_end_at

__all__ = ["exchange"]

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0


def exchange(
    grid: Grid,
    messages: Iterable[Message],
    timeout: float,
    on_reply: Callable[[int], None] = lambda _: None,
) -> list[Message]:
    """Send messages and return the replies that come in time, ordered by node.

    Polls with back-off; `Grid.send_and_receive` would sleep three seconds between looks.

    Parameters
    ----------
    grid : Grid
        Where to.
    messages : iterable of Message
        One a node.
    timeout : float
        Seconds to wait; later replies are lost to this exchange.
    on_reply : callable
        Told the number of replies so far, whenever it grows.

    Returns
    -------
    list of Message
        With content or with an error, at most one a message sent.
    """
    # In the order in which they were sent, and quick to leave: replies may come one at a time.
    waiting = dict.fromkeys(filter(None, grid.push_messages(list(messages))))
    deadline = time.monotonic() + timeout
    replies: dict[str, Message] = {}
    pause = _FIRST_PAUSE
    while waiting:
        with pulls_end_at(deadline):
            pulled = grid.pull_messages(list(waiting))
        arrived = {
            reply.metadata.reply_to_message_id: reply
            for reply in pulled
            if reply.metadata.reply_to_message_id in waiting
        }
        if arrived:
            for message_id in arrived:
                del waiting[message_id]
            replies |= arrived
            on_reply(len(replies))
            pause = _FIRST_PAUSE
            continue
        if time.monotonic() >= deadline:
            break
        time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(2.0 * pause, _LONGEST_PAUSE)
    return sorted(replies.values(), key=lambda reply: reply.metadata.src_node_id)
