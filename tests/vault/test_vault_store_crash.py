"""A save that is interrupted: at every step, by a crash, a full disk or a failing one."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedveil.vault.errors import StoreError
from fedveil.vault.keyfile import Key
from fedveil.vault.store import ModelStore
from fedveil.vault.tensors import Array

KEY = Key(bytes(range(32)))
KNOWN = b"weights in clear that no disk may see.. "
STEPS = ["open", "write", "fsync", "replace", "unlink"]

Step = Callable[..., object]


def model(round_: int) -> dict[str, Array]:
    return {
        "weight": np.full(100, round_, dtype=np.float32),
        "known": np.frombuffer(KNOWN * 10, dtype=np.uint8),
    }


def state(round_: int) -> dict[str, Array]:
    return {"momentum": np.full(50, -round_, dtype=np.float64), **model(round_)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three rounds; the next save also has a leftover and an old state to remove."""
    folder = tmp_path / "model"
    with ModelStore.create(folder, KEY, "run") as store:
        for number in (1, 2, 3):
            store.save(number, model(number), {}, state(number))
    (folder / ".round-000004.fvlt.00.tmp").write_bytes(b"left")
    return folder


def patch(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    at: int,
    act: Callable[[Step, tuple[object, ...]], object],
) -> list[int]:
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


def save_fourth(folder: Path) -> None:
    with ModelStore(folder, KEY) as store:
        store.save(4, model(4), {}, state(4))


def assert_sound(folder: Path) -> list[int]:
    """Check what must hold after any interruption; return the rounds that are committed."""
    store = ModelStore(folder, KEY)
    saved = store.rounds()
    assert saved in ([1, 2, 3], [1, 2, 3, 4])
    assert all(check.problem is None for check in store.verify())
    for kept in (store.latest(), store.load_state(saved[-1])):
        assert kept.header.round == saved[-1]
        assert (kept.tensors["weight"] == saved[-1]).all()
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert KNOWN[:16] not in content
            assert KEY.secret not in content
    return saved


def assert_next_save_works(folder: Path, saved: list[int]) -> None:
    number = saved[-1] + 1
    with ModelStore(folder, KEY) as store:
        store.save(number, model(number), {}, state(number))
        assert store.rounds() == [*saved, number]
        assert (store.load_state(number).tensors["momentum"] == -number).all()
    assert not list(folder.rglob("*.tmp"))
    assert len(list((folder / "state").iterdir())) == 2


def crash(before: bool) -> Callable[[Step, tuple[object, ...]], object]:
    def act(real: Step, args: tuple[object, ...]) -> object:
        if not before:
            real(*args)
        os._exit(42)

    return act


def torn(real: Step, args: tuple[object, ...]) -> object:
    descriptor, data = args
    assert isinstance(data, memoryview)
    real(descriptor, data[: len(data) // 2])
    os._exit(42)


def in_a_child(work: Callable[[], None]) -> int:
    """Run in a forked process, so that a crash runs no clean-up; return its exit status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - nothing of the child may reach pytest
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_crash_at_any_step_leaves_the_last_good_round(
    folder: Path, name: str, before: bool
) -> None:
    outcomes = crash_at_every_call(folder, name, crash(before))
    assert [1, 2, 3] in outcomes, "some crash must come before the commit"
    if name != "open":
        assert len(outcomes) >= 2


def test_a_torn_write_leaves_the_last_good_round(folder: Path) -> None:
    outcomes = crash_at_every_call(folder, "write", torn)
    assert outcomes == [[1, 2, 3]] * len(outcomes)
    assert len(outcomes) == 6, "header, stream header and one segment, for state and model"


def crash_at_every_call(
    folder: Path, name: str, act: Callable[[Step, tuple[object, ...]], object]
) -> list[list[int]]:
    outcomes: list[list[int]] = []
    for at in range(1, 100):
        copy = folder.parent / f"copy-{at}"
        copy_store(folder, copy)

        def work(copy: Path = copy, at: int = at) -> None:
            with pytest.MonkeyPatch.context() as monkeypatch:
                ModelStore(copy, KEY)
                patch(monkeypatch, name, at, act)
                save_fourth(copy)

        status = in_a_child(work)
        assert status in (0, 42)
        if status == 0:
            assert assert_sound(copy) == [1, 2, 3, 4]
            return outcomes
        saved = assert_sound(copy)
        outcomes.append(saved)
        assert_next_save_works(copy, saved)
    raise AssertionError("the save never came to its end")


def copy_store(source: Path, target: Path) -> None:
    for path in [source, *sorted(source.rglob("*"))]:
        there = target / path.relative_to(source)
        if path.is_dir():
            there.mkdir()
        else:
            there.write_bytes(path.read_bytes())


@pytest.mark.parametrize("name", ["write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failing_disk_gives_one_line_at_any_step(
    folder: Path, name: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(real: Step, args: tuple[object, ...]) -> object:
        raise OSError(code, os.strerror(code))

    for at in range(1, 100):
        copy = folder.parent / f"copy-{at}"
        copy_store(folder, copy)
        with monkeypatch.context() as patched:
            calls = patch(patched, name, at, fail)
            try:
                save_fourth(copy)
            except StoreError as error:
                line = str(error)
            else:
                assert len(calls) < at
                assert at > 2, "nothing was made to fail"
                return
        assert os.strerror(code) in line
        assert "\n" not in line
        saved = assert_sound(copy)
        if len(saved) == 4:
            assert "the round is there, but a power failure may still undo it" in line
        assert not list(copy.rglob("*.tmp")), "what was written must be given back to the disk"
        assert_next_save_works(copy, saved)
    raise AssertionError("the save never came to its end")


def test_an_old_state_that_stays_does_not_undo_the_round(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.unlink

    def unlink(path: Path, *args: object, **options: object) -> None:
        if "state/round" in str(path):
            raise OSError(errno.EACCES, "Permission denied")
        real(path)

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(StoreError, match=r"old strategy state.*round 4 itself is saved"):
        save_fourth(folder)
    monkeypatch.undo()
    assert assert_sound(folder) == [1, 2, 3, 4]
    assert_next_save_works(folder, [1, 2, 3, 4])


def test_the_state_is_durable_before_the_round_is_committed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both files are synced before their renames, and each folder after its own."""
    events: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append(f"sync {'folder' if target.is_dir() else 'file'} {target.parent.name}")
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        events.append(f"rename {target.parent.name}")
        real_replace(source, target)

    with ModelStore(folder, KEY) as store:
        store.save(4, model(4), {}, state(4))
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "replace", replace)
        store.save(5, model(5), {}, state(5))
    outer = folder.parent.name
    assert events == [
        "sync folder model",
        "sync file state",
        "rename state",
        "sync folder model",
        "sync file model",
        "rename model",
        f"sync folder {outer}",
    ]
