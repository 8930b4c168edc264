"""A save that is interrupted: at every step, by a crash, a full disk or a failing one."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from vault_crash import STEPS, Act, Step, after, before, copy_folder, crashes, patch, torn
from vault_files import KEK, KEK_SECRET, SIGNING_KEY

from fedveil.vault.checks import check_signatures
from fedveil.vault.errors import StoreError, VaultError
from fedveil.vault.store import ModelStore
from fedveil.vault.tensors import Array

KNOWN = b"weights in clear that no disk may see.. "


def model(round_: int) -> dict[str, Array]:
    return {
        "weight": np.full(100, round_, dtype=np.float32),
        "known": np.frombuffer(KNOWN * 10, dtype=np.uint8),
    }


def state(round_: int) -> dict[str, Array]:
    return {"momentum": np.full(50, -round_, dtype=np.float64), **model(round_)}


def open_store(folder: Path) -> ModelStore:
    """Open a store with its mark beside it, which is copied with it."""
    return ModelStore(folder, KEK, marks=folder / "marks", signing_key=SIGNING_KEY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three rounds; the next save also has a leftover and an old state to remove."""
    folder = tmp_path / "model"
    ModelStore.create(folder, KEK, "run", marks=None, signing_key=SIGNING_KEY)
    with open_store(folder) as store:
        for number in (1, 2, 3):
            store.save(number, model(number), {}, state(number))
    (folder / ".round-000004.fvlt.00.tmp").write_bytes(b"left")
    return folder


def save_fourth(folder: Path) -> None:
    with open_store(folder) as store:
        store.save(4, model(4), {}, state(4))


def assert_no_secret(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert KNOWN[:16] not in content
            assert KEK_SECRET not in content
            assert SIGNING_KEY.secret not in content


def assert_sound(folder: Path) -> list[int]:
    """Check what must hold after any interruption; return the rounds that are committed."""
    store = open_store(folder)
    saved = store.rounds()
    assert saved in ([1, 2, 3], [1, 2, 3, 4])
    assert all(check.problem is None for check in store.verify())
    assert all(check.problem is None for check in check_signatures(folder, SIGNING_KEY.verify_key))
    for kept in (store.latest(), store.load_state(saved[-1])):
        assert kept.header.round == saved[-1]
        assert (kept.tensors["weight"] == saved[-1]).all()
    assert_no_secret(folder)
    return saved


def assert_next_save_works(folder: Path, saved: list[int]) -> None:
    number = saved[-1] + 1
    with open_store(folder) as store:
        store.save(number, model(number), {}, state(number))
        assert store.rounds() == [*saved, number]
        assert (store.load_state(number).tensors["momentum"] == -number).all()
    assert not list(folder.glob("*.tmp"))
    assert len(list((folder / "state").iterdir())) == 2
    assert assert_sound_chain(folder)


def assert_sound_chain(folder: Path) -> bool:
    return all(check.problem is None for check in open_store(folder).verify())


@pytest.mark.parametrize("name", [step for step in STEPS if step != "link"])
@pytest.mark.parametrize("act", [before, after])
def test_a_crash_at_any_step_leaves_the_last_good_round(folder: Path, name: str, act: Act) -> None:
    outcomes: list[list[int]] = []
    for copy in crashes(folder, name, act, save_fourth):
        saved = assert_sound(copy)
        outcomes.append(saved)
        assert_next_save_works(copy, saved)
    assert [1, 2, 3] in outcomes, "some crash must come before the commit"
    assert outcomes[-1] == [1, 2, 3, 4]
    assert len(outcomes) >= 3


def test_a_torn_write_leaves_the_last_good_round(folder: Path) -> None:
    outcomes = [assert_sound(copy) for copy in crashes(folder, "pwrite", torn, save_fourth)]
    # Head, one segment and the seal, for state and model.
    assert outcomes[:6] == [[1, 2, 3]] * 6
    # The mark comes after the commit.
    assert outcomes[6:] == [[1, 2, 3, 4]] * 2


@pytest.mark.parametrize("name", ["pwrite", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failing_disk_gives_one_line_at_any_step(
    folder: Path, name: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(real: Step, args: tuple[object, ...]) -> object:
        raise OSError(code, os.strerror(code))

    for at in range(1, 100):
        copy = copy_folder(folder, folder.parent / f"copy-{at}")
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
            assert (
                "the round is there, but a power failure may still undo it" in line
                or "cannot keep the mark" in line
            )
        assert not list(copy.rglob("*.tmp")), "what was written must be given back to the disk"
        assert_next_save_works(copy, saved)
    raise AssertionError("the save never came to its end")


def test_a_disk_that_fills_up_slowly_leaves_the_last_good_round(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes become short before they fail, as the operating system does it."""
    real, free = os.pwrite, 3000

    def pwrite(descriptor: int, data: memoryview, position: int) -> int:
        nonlocal free
        if free == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = real(descriptor, data[: min(free, 700)], position)
        free -= done
        return done

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(StoreError, match=r"No space left.*rounds saved before it are unharmed"):
        save_fourth(folder)
    monkeypatch.undo()
    assert assert_sound(folder) == [1, 2, 3]
    free = 1 << 20
    monkeypatch.setattr(os, "pwrite", pwrite)
    save_fourth(folder)
    assert assert_sound(folder) == [1, 2, 3, 4], "short writes alone are no failure"


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


def test_a_mark_that_cannot_be_kept_does_not_undo_the_round(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if "marks" in str(target):
            raise OSError(errno.EACCES, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(StoreError, match=r"cannot keep the mark.*round 4 itself is saved"):
        save_fourth(folder)
    monkeypatch.undo()
    assert assert_sound(folder) == [1, 2, 3, 4]


def test_the_state_is_durable_before_the_round_is_committed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both files are synced before their renames, each folder after its own, the mark last."""
    events: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append(f"sync {'folder' if target.is_dir() else 'file'} {target.parent.name}")
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        events.append(f"rename {target.parent.name}")
        real_replace(source, target)

    with open_store(folder) as store:
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
        "sync file marks",
        "rename marks",
        "sync folder model",
    ]


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("act", [before, after])
def test_a_creation_that_crashes_makes_a_store_or_none(tmp_path: Path, name: str, act: Act) -> None:
    def create(folder: Path) -> None:
        ModelStore.create(folder, KEK, "run", marks=None, signing_key=SIGNING_KEY)

    (tmp_path / "empty").mkdir()
    made = []
    for copy in crashes(tmp_path / "empty", name, act, create):
        try:
            store = ModelStore(copy, KEK, marks=None, signing_key=SIGNING_KEY)
        except StoreError as error:
            assert "is not a model store" in str(error)  # noqa: PT017 - or it is there
            create(copy)
            store = ModelStore(copy, KEK, marks=None, signing_key=SIGNING_KEY)
            made.append(False)
        else:
            made.append(True)
        with store:
            store.save(1, model(1), {}, None)
        assert (store.load(1).tensors["weight"] == 1).all()
    assert made[-1]


def test_two_creations_at_once_make_one_store(tmp_path: Path) -> None:
    """The second finds the first one's lock or the first one's store, never a mixture."""
    folder = tmp_path / "model"
    real = os.link
    lines: list[str] = []

    def link(source: Path, target: Path) -> None:
        if not lines:
            lines.append("")
            try:
                ModelStore.create(folder, KEK, "second", marks=None, signing_key=None)
            except VaultError as error:
                lines.append(str(error))
        real(source, target)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(os, "link", link)
        store = ModelStore.create(folder, KEK, "first", marks=None, signing_key=None)
    assert "another writer holds" in lines[1]
    assert store.run == "first"
    with store:
        store.save(1, model(1), {}, None)
    assert (store.load(1).tensors["weight"] == 1).all()
