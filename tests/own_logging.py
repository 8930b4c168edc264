"""Logging, which belongs to the whole process, as it was before."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = (None, "fedveil", "flwr", "httpx")


@contextmanager
def own_logging() -> Iterator[None]:
    """Put back what a command sets for the whole of its process, for the test after this one."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for one in loggers:
        # Those of commands that other tests have run, whose standard error is no more.
        one.handlers[:] = [h for h in one.handlers if not _is_closed(h)]
    before = [(one.level, one.propagate, list(one.handlers)) for one in loggers]
    hooks = sys.excepthook, threading.excepthook
    try:
        yield
    finally:
        logging.captureWarnings(False)
        sys.excepthook, threading.excepthook = hooks
        for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate = propagate
            logger.handlers[:] = handlers


def _is_closed(handler: logging.Handler) -> bool:
    if isinstance(handler, logging.FileHandler):  # Opens its file when there is something to write.
        return False
    return isinstance(handler, logging.StreamHandler) and bool(handler.stream.closed)
