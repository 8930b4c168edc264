"""Connections fit into the files that may be open."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from fedveil.server.inference.errors import ServeError
from fedveil.server.inference.oip import Limits
from fedveil.server.inference.open_files import files_for, limits_within, raise_limit


@pytest.mark.parametrize(
    ("files", "listeners", "connections", "of_one"),
    [
        (65_536, 2, 1024, 512),
        (2304, 2, 1024, 512),
        (2303, 2, 1023, 511),
        (1024, 1, 768, 384),
        (1024, 2, 384, 192),
        (272, 1, 16, 8),
    ],
)
def test_there_are_files_left_when_every_connection_is_taken(
    files: int, listeners: int, connections: int, of_one: int
) -> None:
    found = limits_within(files, listeners, Limits())
    assert (found.connections, found.peer_connections) == (connections, of_one)
    assert files - listeners * found.connections >= 256


def test_a_limit_that_leaves_no_room_is_refused_with_what_would() -> None:
    with pytest.raises(ServeError, match=r"287 files may be open .* let it be 3328, with: ulimit"):
        limits_within(287, 2, Limits())


def test_what_is_wanted_has_room_for_every_connection() -> None:
    for listeners in (1, 2):
        assert limits_within(files_for(Limits(), listeners), listeners, Limits()) == Limits()


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "found"),
    [(100, 300, 1000, 300), (100, 300, 200, 200), (300, 300, 1000, 300), (300, 300, 100, 300)],
)
def test_the_soft_limit_is_raised_as_far_as_it_helps(
    soft: int, hard: int, wanted: int, found: int
) -> None:
    code = (
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "from fedveil.server.inference.open_files import raise_limit\n"
        f"print(raise_limit({wanted}), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == [str(found), str(found), str(hard)]


def test_a_system_that_refuses_leaves_the_limit_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_limit(2000) == 1024
