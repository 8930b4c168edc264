"""Identities and rosters by command: what is made, what is shown, what is refused."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess

import pytest
from command_line import command


def fedveil(home: Path, *arguments: str) -> CompletedProcess[str]:
    return command(*arguments, environment={"FEDVEIL_HOME": str(home), "COLUMNS": "200"})


def test_two_data_owners_learn_of_each_other(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    made = fedveil(ours, "keys", "new-identity", "hospital-a")
    assert made.returncode == 0, made.stderr
    assert (ours / "identity.json").stat().st_mode & 0o777 == 0o600
    line = made.stdout.splitlines()[-1].split()
    assert line[:4] == ["fedveil", "roster", "add", "hospital-a"]
    assert fedveil(ours, "keys", "show-identity").stdout.split() == line
    assert fedveil(theirs, *line[1:]).returncode == 0
    assert fedveil(theirs, *line[1:]).returncode == 0, "twice is once"
    listed = fedveil(theirs, "roster", "list")
    assert "hospital-a" in listed.stdout
    assert line[4] in listed.stdout
    assert fedveil(theirs, "roster", "remove", "hospital-a").returncode == 0
    assert "hospital-a" not in fedveil(theirs, "roster", "list").stdout


KEY = "3q2+7wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
OTHER = "q83vAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["keys", "new-identity", "a"], "exists already and is left as it is"),
        (["keys", "new-identity", "a b", "--out", "x"], "without spaces"),
        (["keys", "show-identity", "--identity", "nowhere"], "there is no identity at nowhere"),
        (["roster", "add", "b", OTHER], "with another key"),
        (["roster", "add", "c", KEY], "b and c have the same public key"),
        (["roster", "add", "c", "short"], "is no public key"),
        (["roster", "remove", "c"], "c is not in"),
        (["roster", "list", "--roster", "nowhere"], "there is no roster at nowhere; add the other"),
    ],
)
def test_a_mistake_is_one_line_and_loses_nothing(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    assert fedveil(tmp_path, "keys", "new-identity", "a").returncode == 0
    assert fedveil(tmp_path, "roster", "add", "b", KEY).returncode == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = fedveil(tmp_path, *arguments)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
