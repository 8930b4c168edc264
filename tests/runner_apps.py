"""ClientApps that a data owner might have installed, well-behaved and not."""

from __future__ import annotations

import os
import signal
import sys
import time

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedveil.errors import PublicError

app = ClientApp()
not_an_app = 7
_seen = 0


def told(message: Message, **facts: str | int) -> Message:
    return Message(RecordDict({"told": ConfigRecord(dict(facts))}), reply_to=message)


@app.query("who")
def who(message: Message, context: Context) -> Message:
    """Say in which process this is, how often it was asked, and what the state has counted."""
    global _seen
    _seen += 1
    counted = context.state.config_records.get("counted", ConfigRecord({"n": 0}))
    n = int(str(counted["n"])) + 1
    context.state["counted"] = ConfigRecord({"n": n})
    modules = " ".join(sorted(name for name in sys.modules if "hostile" in name))
    return told(message, pid=os.getpid(), seen=_seen, counted=n, hostile=modules)


@app.query("crash")
def crash(message: Message, context: Context) -> Message:
    context.state["counted"] = ConfigRecord({"n": 1000})
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


@app.query("leave")
def leave(message: Message, context: Context) -> Message:
    os._exit(3)


@app.query("quit")
def quit_(message: Message, context: Context) -> Message:
    sys.exit("had enough")


@app.query("fail")
def fail(message: Message, context: Context) -> Message:
    raise ValueError("seven is no prime")


@app.query("refuse")
def refuse(message: Message, context: Context) -> Message:
    raise PublicError("not with my data")


@app.query("hang")
def hang(message: Message, context: Context) -> Message:
    while True:
        time.sleep(1.0)


@app.query("eat")
def eat(message: Message, context: Context) -> Message:
    return told(message, size=len(bytearray(3 << 30)))


@app.query("eat_torch")
def eat_torch(message: Message, context: Context) -> Message:
    import torch

    try:
        return told(message, size=torch.ones(3 << 28).numel())
    except RuntimeError:
        raise ValueError("hidden") from None


@app.query("core")
def core(message: Message, context: Context) -> Message:
    import resource

    return told(message, limit=resource.getrlimit(resource.RLIMIT_CORE)[1])
