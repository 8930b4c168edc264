"""Looks for new rounds of a run that may still be trained, and lets good ones take over."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from fedveil.errors import FedveilError
from fedveil.server.inference.engine import Engine, ServedRound
from fedveil.server.inference.errors import RoundRefusedError
from fedveil.server.inference.model_holder import ModelHolder
from fedveil.vault.reader import StoreReader

__all__ = ["Watcher"]

_RETRY_SECONDS = 30.0

_log = logging.getLogger(__name__)

_State = tuple[int, int, int, int]


class Watcher:
    """Follows the store of a run.

    A round that fails any check is refused, in one line of the log, and what is served goes on
    being served. It is tried again when its file changes, and now and then in case that the
    key-encryption key could not be reached.

    Parameters
    ----------
    reader : StoreReader
        The store.
    engine : Engine
        Loads a round.
    holder : ModelHolder
        Where a good round goes.
    interval : float
        Seconds between two looks.
    swapped, refused : callable
        Told of a swap, and of a refusal.
    """

    def __init__(
        self,
        reader: StoreReader,
        engine: Engine,
        holder: ModelHolder[ServedRound],
        interval: float,
        swapped: Callable[[ServedRound], None] = lambda _: None,
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        self._reader = reader
        self._engine = engine
        self._holder = holder
        self._interval = interval
        self._swapped = swapped
        self._refused = refused
        self._highest = holder.current.round
        self._seen: _State | None = None
        self._retry_at: float | None = None
        self._last_line = ""
        self._looking = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="fedveil-watcher", daemon=True)

    def start(self) -> None:
        """Look again and again, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after the look that it may be at."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> bool:
        """Look once; return whether another round took over."""
        with self._looking:
            try:
                return self._follow()
            except FedveilError as error:
                self._refuse(str(error))
            except Exception as error:  # noqa: BLE001  # a round must never end the service
                self._refuse(f"a round cannot be served: {type(error).__name__}")
            return False

    def _follow(self) -> bool:
        state = self._state()
        is_due = self._retry_at is not None and time.monotonic() >= self._retry_at
        if state == self._seen and not is_due:
            return False
        self._seen = state
        served = self._engine.load_newest()
        if served.round < self._highest:
            raise RoundRefusedError(
                f"{self._reader.directory} ends with round {served.round}, but round "
                f"{self._highest} was served from it; if older rounds are meant, start the service "
                "anew"
            )
        is_new = served.round > self._highest
        if is_new:
            self._holder.swap(served)
            self._highest = served.round
            self._swapped(served)
            _log.info("round %d of run %s is served now", served.round, served.run)
        self._retry_at, self._last_line = None, ""
        return is_new

    def _state(self) -> _State | None:
        """Return what tells the newest file from any other, without opening it."""
        rounds = self._reader.rounds()
        if not rounds:
            return None
        try:
            status = self._reader.path(rounds[-1]).stat()
        except OSError:
            return None
        return (rounds[-1], status.st_ino, status.st_mtime_ns, status.st_size)

    def _refuse(self, line: str) -> None:
        now = time.monotonic()
        if line == self._last_line and self._retry_at is not None and now < self._retry_at:
            return
        self._retry_at = now + _RETRY_SECONDS
        self._refused()
        if line != self._last_line:
            self._last_line = line
            _log.error("refused: %s; round %d goes on", line, self._holder.current.round)

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self.look()
