from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator

import pytest

from fedveil.logs import LogFormat, asks_for_json, is_json, log_to


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    hooks = sys.excepthook, threading.excepthook
    yield
    logging.captureWarnings(False)
    sys.excepthook, threading.excepthook = hooks
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_a_record_is_one_json_object_whatever_it_says() -> None:
    out = io.StringIO()
    log_to(out, LogFormat.JSON)
    error = ValueError("seven")
    logging.getLogger("a.b").error('it said "%s"\nand more', "no", exc_info=error)
    (line,) = out.getvalue().splitlines()
    found = json.loads(line)
    assert (found["level"], found["source"]) == ("error", "a.b")
    assert found["message"] == 'it said "no"\nand more'
    assert "ValueError: seven" in found["traceback"]
    assert found["time"][:2] == "20"
    assert found["time"][-5] in "+-"


def test_for_people_a_record_is_a_line() -> None:
    out = io.StringIO()
    log_to(out, LogFormat.TEXT)
    logging.getLogger("a.b").warning("%d clients", 3)
    logging.getLogger("a.b").debug("nothing")
    (line,) = out.getvalue().splitlines()
    assert line.endswith("WARNING a.b: 3 clients")


def test_figures_stand_beside_the_message_and_replace_none_of_it() -> None:
    out = io.StringIO()
    log_to(out, LogFormat.JSON)
    fields = {"round": 3, "epsilon": 1.5, "message": "another"}
    logging.getLogger("a").info("done", extra={"fields": fields})
    found = json.loads(out.getvalue())
    assert (found["message"], found["round"], found["epsilon"]) == ("done", 3, 1.5)


def test_warnings_and_what_nobody_caught_are_json_too() -> None:
    out = io.StringIO()
    log_to(out, LogFormat.JSON)
    assert is_json()
    warnings.warn("seven\nand more", stacklevel=1)
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    sys.excepthook(ValueError, ValueError("no"), None)
    told = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [record["level"] for record in told] == ["warning", "critical", "critical"]
    assert "seven" in told[0]["message"]
    assert "ZeroDivisionError" in told[1]["traceback"]
    assert "ValueError: no" in told[2]["traceback"]


def test_for_people_nothing_is_json() -> None:
    log_to(io.StringIO(), LogFormat.TEXT)
    assert not is_json()


@pytest.mark.parametrize(
    ("arguments", "is_asked"),
    [
        (["run", "kit", "--log-format", "json"], True),
        (["run", "--log-format=json", "kit", "--no-such"], True),
        (["run", "kit", "--log-format", "text"], False),
        (["run", "json"], False),
        ([], False),
    ],
)
def test_a_command_line_asks_for_json_whatever_else_it_says(
    arguments: list[str], is_asked: bool
) -> None:
    assert asks_for_json(arguments) is is_asked
