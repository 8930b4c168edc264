"""A command that is typed wrong is told in one line, and help shows what arguments are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import command


def fedveil(*arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    return command(*arguments, environment={"COLUMNS": "100"}, answer=answer)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["serve", "r", "--interval", "0.01"],
            "--interval: 0.01 is not in the range x>=0.05; see: fedveil serve --help",
        ),
        (["serve", "r", "--port", "70000"], "--port: 70000 is not in the range 0<=x<=65535; see"),
        (["models", "gc", "r", "--keep-last", "0"], "see: fedveil models gc --help"),
        (["serve"], "missing argument 'RUN'; see: fedveil serve --help"),
        (["serve", "r", "--prot", "1"], "no such option '--prot'"),
        (["serve", "r", "two\nlines"], "unexpected extra argument (two lines)"),
        (["srve"], "no such command 'srve'. Did you mean 'serve'"),
        (["serve", "r", "--port", "[bold]"], "--port: '[bold]' is not a valid integer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_command_that_is_typed_wrong_is_one_line(arguments: list[str], says: str) -> None:
    done = fedveil(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert done.stderr.count("Did you mean") <= 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve"], "A run folder, for example runs/RUN."),
        (["predict"], "The service, for example http://127.0.0.1:8080."),
        (["tokens", "new"], "Whose it is, for example web-shop."),
        (["simulate"], "A built-in scenario"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_help_tells_what_an_argument_is(arguments: list[str], says: str) -> None:
    shown = fedveil(*arguments, "--help")
    assert shown.returncode == 0
    box = re.search(r"─ Arguments ─.*?╰", shown.stdout, re.DOTALL)
    assert box is not None
    assert says in box[0]


def test_nothing_is_asked_of_who_says_no(tmp_path: Path) -> None:
    done = fedveil("models", "destroy", str(tmp_path), answer="n\n")
    assert done.returncode == 1
    assert done.stderr == "error: stopped: the question was not answered with yes\n"


@pytest.mark.parametrize("arguments", [[], ["models"]], ids=["fedveil", "models"])
def test_without_words_there_is_help_and_no_more(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fedveil.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Usage: fedveil" in done.stdout
    assert (done.returncode, done.stderr) == (2, "")
