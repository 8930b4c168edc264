"""Clients for tests of engines, which any process can import."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedveil.errors import FedveilError

REFUSES, FAILS = 1, 3


class StubbornError(Exception):
    """An error that does not survive the way between two processes."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one)


@dataclass(frozen=True)
class Counting:
    """Clients that count how often they were asked; two of five refuse."""

    place: Path | None = None

    def app(self) -> ClientApp:
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            client = partition(context)
            if client == REFUSES:
                raise FedveilError("client 1 refuses")
            seen = context.state.metric_records.setdefault("seen", MetricRecord({"calls": 0}))
            seen["calls"] = int(seen["calls"]) + 1  # type: ignore[arg-type]
            if client == FAILS:
                raise FedveilError("client 3 fails")
            told = MetricRecord({"client": client, "calls": seen["calls"]})
            return Message(RecordDict({"metrics": told}), reply_to=message)

        @app.query()
        def defect(message: Message, context: Context) -> Message:
            raise StubbornError("a defect of client", str(partition(context)))

        @app.query("die")
        def die(message: Message, context: Context) -> Message:
            os._exit(1)

        @app.query("linger")
        def linger(message: Message, context: Context) -> Message:
            assert self.place is not None
            (self.place / str(os.getpid())).touch()
            time.sleep(120)
            return Message(RecordDict(), reply_to=message)

        return app


def partition(context: Context) -> int:
    return int(context.node_config["partition-id"])  # type: ignore[arg-type]
