"""A tap on what passes between the server and the clients of a simulation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedveil.simulations.engines import answering, cohort, sequential

Answer = Callable[[ClientApp, Message, Context], Message]


def tap(
    monkeypatch: pytest.MonkeyPatch,
    intercept: Callable[[Answer, ClientApp, Message, Context], Message],
) -> None:
    """Let `intercept` answer, which is given the true way to; in any engine of this process.

    Taps stand one before the other.
    """
    before = sequential.answer
    assert before is cohort.answer

    def answer(app: ClientApp, message: Message, context: Context) -> Message:
        return intercept(before, app, message, context)

    for module in (answering, cohort, sequential):
        monkeypatch.setattr(module, "answer", answer)
