"""An engine and a watcher on a run, looked with by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from served_run import (
    answer,
    some_rows,
)

from fedveil.server.inference.devices import AS_TRAINED, Acceleration
from fedveil.server.inference.engine import Engine, ServedRound
from fedveil.server.inference.model_holder import ModelHolder
from fedveil.server.inference.oip import Limits
from fedveil.server.inference.source import open_source
from fedveil.server.inference.watcher import Watcher

__all__ = ["Follower"]


class Follower:
    """A watcher with what it watches, looked with by hand."""

    def __init__(
        self, path: Path, acceleration: Acceleration = AS_TRAINED, limits: Limits | None = None
    ) -> None:
        source = open_source(path, None, None)
        self.engine = Engine(source, acceleration, limits or Limits())
        self.holder: ModelHolder[ServedRound] = ModelHolder(self.engine.load_newest())
        self.refusals = 0
        self.watcher = Watcher(
            source.reader, self.engine, self.holder, 60.0, refused=self._count_refusal
        )

    def _count_refusal(self) -> None:
        self.refusals += 1

    def answers_as(self, round_: int) -> bool:
        current = self.holder.current
        rows = some_rows(5)
        return current.round == round_ and all(
            np.array_equal(self.engine.run(current, rows, replica), answer(round_, rows))
            for replica in range(len(self.engine.devices))
        )
