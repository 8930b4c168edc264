"""The log of a process that runs for long: a line a record, for people or as JSON."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise
from types import TracebackType
from typing import TextIO

__all__ = ["JsonLines", "LogFormat", "asks_for_json", "is_json", "log_to"]

_OPTION = "--log-format"

_log = logging.getLogger(__name__)


class LogFormat(StrEnum):
    """How a record is written."""

    TEXT = "text"
    JSON = "json"


class JsonLines(logging.Formatter):
    """Writes a record as one JSON object: ``time``, ``level``, ``source``, ``message``.

    What a record is given as ``extra={"fields": {...}}`` stands beside these.
    """

    default_msec_format = "%s.%03d"

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a traceback stands in ``traceback``."""
        fields = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "source": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        more = getattr(record, "fields", {})
        return json.dumps(fields | more | fields)


def log_to(stream: TextIO | None, form: LogFormat) -> None:
    """Write this process's log to a stream, by default standard error.

    As JSON, so are warnings of libraries and what ends the process or a thread of it unforeseen.

    Parameters
    ----------
    stream : file, optional
        Takes the lines.
    form : LogFormat
        For people or for a collector of logs.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
    handler.setFormatter(JsonLines() if form is LogFormat.JSON else text)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if form is LogFormat.JSON:
        logging.captureWarnings(True)
        sys.excepthook = _log_exception
        threading.excepthook = _log_thread_exception


def is_json() -> bool:
    """Return whether this process writes its log as JSON."""
    return any(isinstance(h.formatter, JsonLines) for h in logging.getLogger().handlers)


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Return whether a command line asks for a log as JSON, whatever else is wrong with it."""
    asked = f"{_OPTION}={LogFormat.JSON}"
    return any(f"{a}={b}" == asked or b == asked for a, b in pairwise(["", *arguments]))


def _log_exception(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    _log.critical("this process ends unforeseen", exc_info=(kind, error, trace))


def _log_thread_exception(told: threading.ExceptHookArgs) -> None:
    error = told.exc_value
    if error is not None:
        _log.critical(
            "a thread ended unforeseen", exc_info=(told.exc_type, error, told.exc_traceback)
        )
