from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from fedveil.logs import LogFormat, log_to


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield
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
