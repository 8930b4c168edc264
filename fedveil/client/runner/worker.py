"""The process that answers the messages: the app, the model and the data stay in its memory."""

from __future__ import annotations

import argparse
import importlib
import logging
import signal
import socket
import sys
from contextlib import suppress

from flwr.clientapp import ClientApp

from fedveil.children import die_with_parent
from fedveil.client.flower_runtime import ClaimedTask, OpenedTask, SuperNodeGoneError
from fedveil.client.runner.channel import Channel, Done, Go, Ready, Refused, Take, Taken
from fedveil.client.runner.limits import TaskLimits, is_out_of_memory
from fedveil.client.runner.outcomes import Outcome, outcome_of_error, refusal_in_reply
from fedveil.errors import FedveilError
from fedveil.flower import CLIENT_APP_RAISED
from fedveil.hygiene import forbid_core_dumps

__all__ = ["AppError", "load_app", "main"]

_log = logging.getLogger(__name__)


class AppError(FedveilError):
    """The app that the owner named cannot be loaded."""


def main(arguments: list[str] | None = None) -> None:
    """Answer tasks until the runner closes the channel."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--app", required=True)
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--parent", type=int, required=True)
    given = parser.parse_args(arguments)
    die_with_parent(given.parent)
    forbid_core_dumps()
    # The runner ends this process; a Ctrl-C is for the runner alone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s : %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    limits = TaskLimits(given.memory, given.seconds)
    limits.hold()
    channel = Channel(socket.socket(fileno=given.channel))
    try:
        app = load_app(given.app)
    except AppError as error:
        channel.send(Refused(str(error)))
        return
    channel.send(Ready())
    task = ClaimedTask(given.address)
    # Until the runner closes the channel.
    with suppress(EOFError):
        while True:
            line = channel.receive(None)
            if isinstance(line, Take):
                task.use(line.token)
                channel.send(_work(app, task, channel, limits))


def load_app(named: str) -> ClientApp:
    """Import the app that the owner named, from what is installed on this machine.

    Parameters
    ----------
    named : str
        ``package.module:attribute``.

    Raises
    ------
    AppError
        If there is none of that name, or it is no `ClientApp`.
    """
    module, _, attribute = named.partition(":")
    try:
        found: object = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # noqa: BLE001  # an import may raise anything
        raise AppError(
            f"the app {named} cannot be imported ({type(error).__name__}: {error}); install it in "
            f"{sys.prefix}, or name another as package.module:attribute"
        ) from None
    if not isinstance(found, ClientApp):
        raise AppError(f"the app {named} is a {type(found).__name__}, not a Flower ClientApp")
    return found


def _work(app: ClientApp, task: ClaimedTask, channel: Channel, limits: TaskLimits) -> Done:
    try:
        opened = task.open()
        channel.send(Taken(opened.envelope, opened.what, opened.run, opened.bundle))
        if channel.receive(None) != Go():
            raise EOFError
        return _answer(app, task, opened, limits)
    except SuperNodeGoneError as error:
        _log.warning("%s", error)
        return Done(str(error), False, Outcome.GIVEN_UP)


def _answer(app: ClientApp, task: ClaimedTask, opened: OpenedTask, limits: TaskLimits) -> Done:
    try:
        reply = app(task.load(opened), opened.context)
        task.answer(reply, opened.context)
    except SuperNodeGoneError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever an app raises is reported
        if is_out_of_memory(error):
            task.fail(opened.envelope, CLIENT_APP_RAISED, limits.memory_words)
            return Done(limits.memory_words, True, Outcome.OUT_OF_MEMORY)
        if isinstance(error, FedveilError):
            _log.error("%s", error)
        else:
            _log.exception("the app raised an exception")
        # As Flower words it, for whoever reads such replies.
        reason = f"{type(error)}:<'{error}'>"
        task.fail(opened.envelope, CLIENT_APP_RAISED, reason)
        return Done(reason, False, outcome_of_error(error))
    refusal = refusal_in_reply(reply)
    return Done(refusal, False, Outcome.REFUSED if refusal else Outcome.OK)


if __name__ == "__main__":
    main()
