"""The `fedveil` command in this process: what it prints and how it ends, without a start's seconds.

What only a process of its own shows (signals, kills, what an import prints) is tested with one.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from fedveil.cli import main

_LOGGERS = (None, "fedveil", "flwr", "httpx")


def command(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    where: Path | None = None,
    answer: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run `fedveil` as it is typed; what ends a process with a traceback is raised.

    The environment is this process's, with the given variables added.
    """
    told, said = BytesIO(), BytesIO()
    out, err = (TextIOWrapper(stream, "utf-8", write_through=True) for stream in (told, said))
    with pytest.MonkeyPatch.context() as patch, _own_logging():
        for name, value in (environment or {}).items():
            patch.setenv(name, value)
        if where is not None:
            patch.chdir(where)
        patch.setattr(sys, "argv", ["fedveil", *arguments])
        patch.setattr(sys, "stdin", TextIOWrapper(BytesIO(answer.encode()), "utf-8"))
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code
    assert code is None or isinstance(code, int)
    return subprocess.CompletedProcess(
        list(arguments), code or 0, told.getvalue().decode(), said.getvalue().decode()
    )


@contextmanager
def _own_logging() -> Iterator[None]:
    """Put back what a command sets for the whole of its process."""
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
