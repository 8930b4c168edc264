"""The log of a process that runs for long: a line a record, for people or as JSON."""

from __future__ import annotations

import json
import logging
import sys
from enum import StrEnum
from typing import TextIO

__all__ = ["JsonLines", "LogFormat", "log_to"]


class LogFormat(StrEnum):
    """How a record is written."""

    TEXT = "text"
    JSON = "json"


class JsonLines(logging.Formatter):
    """Writes a record as one JSON object: ``time``, ``level``, ``source``, ``message``."""

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
        return json.dumps(fields)


def log_to(stream: TextIO | None, form: LogFormat) -> None:
    """Write this process's log to a stream, by default standard error.

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
