"""Interrupting what writes to a disk, at every call of the operating system in turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Step = Callable[..., object]
Act = Callable[[Step, tuple[object, ...]], object]

STEPS = ["open", "pwrite", "fsync", "replace", "unlink", "link"]
CRASHED = 42


def patch(monkeypatch: pytest.MonkeyPatch, name: str, at: int, act: Act) -> list[int]:
    """Let the at-th call of an os function be `act`'s; return a list that counts the calls."""
    real: Step = getattr(os, name)
    calls: list[int] = []

    def step(*args: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == at:
            return act(real, args)
        return real(*args, **options)

    monkeypatch.setattr(os, name, step)
    return calls


def before(real: Step, args: tuple[object, ...]) -> object:
    """Crash before the call."""
    os._exit(CRASHED)


def after(real: Step, args: tuple[object, ...]) -> object:
    """Crash after the call, also when it fails."""
    try:
        return real(*args)
    finally:
        os._exit(CRASHED)


def torn(real: Step, args: tuple[object, ...]) -> object:
    """Crash within a write."""
    descriptor, data, position = args
    real(descriptor, memoryview(data)[: len(memoryview(data)) // 2], position)  # type: ignore[arg-type]
    os._exit(CRASHED)


def in_a_child(work: Callable[[], object]) -> int:
    """Run in a forked process, so that a crash runs no clean-up; return its exit status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - nothing of the child may reach pytest
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def copy_folder(source: Path, target: Path) -> Path:
    """Copy a folder of files."""
    for path in [source, *sorted(source.rglob("*"))]:
        there = target / path.relative_to(source)
        if path.is_dir():
            there.mkdir()
        else:
            there.write_bytes(path.read_bytes())
            there.chmod(0o600)
    return target


def crashes(folder: Path, name: str, act: Act, work: Callable[[Path], object]) -> Iterator[Path]:
    """Yield a copy beside the folder for every call of an os function at which work crashed.

    The last one is that in which the work came to its end.
    """
    for at in range(1, 200):
        copy = copy_folder(folder, folder.parent / f"{folder.name}-{name}-{act.__name__}-{at}")

        def run(copy: Path = copy, at: int = at) -> None:
            with pytest.MonkeyPatch.context() as monkeypatch:
                patch(monkeypatch, name, at, act)
                work(copy)

        status = in_a_child(run)
        assert status in (0, CRASHED)
        yield copy
        if status == 0:
            return
    raise AssertionError("the work never came to its end")
