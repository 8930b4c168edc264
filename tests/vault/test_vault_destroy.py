"""Destroying the model key: afterwards nothing opens, and it is never half done in silence."""

import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from vault_crash import Act, after, before, crashes, patch, torn
from vault_files import KEK, SIGNING_KEY, VERIFY_KEY

from fedveil.vault.checks import check_signatures
from fedveil.vault.destroy import destroy_store
from fedveil.vault.errors import (
    StoreDestroyedError,
    StoreError,
    StoreLockedError,
    VaultError,
)
from fedveil.vault.store import ModelStore


def arrays(value: int) -> dict[str, np.ndarray]:
    return {"weight": np.full(30, value, dtype=np.float32)}


def open_store(folder: Path) -> ModelStore:
    return ModelStore(folder, KEK, marks=None, signing_key=SIGNING_KEY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a store with what an interrupted change of the key list leaves."""
    folder = tmp_path / "model"
    with ModelStore.create(folder, KEK, "run", marks=None, signing_key=SIGNING_KEY) as store:
        for number in (1, 2):
            store.save(number, arrays(number), {}, arrays(number))
    (folder / ".keys.json.0123.tmp").write_bytes((folder / "keys.json").read_bytes())
    return folder


def wrapped(folder: Path) -> bytes:
    """Return the wrapped model key as it stands in the list."""
    fields = json.loads((folder / "keys.json").read_bytes())
    return str(fields["current"]["wraps"][0]["blob"]).encode()


def assert_destroyed(folder: Path, blob: bytes) -> None:
    with pytest.raises(StoreDestroyedError, match=r"was destroyed on 2.*can be read again"):
        open_store(folder)
    for path in folder.rglob("*"):
        assert not path.is_file() or blob not in path.read_bytes()
    assert not list(folder.glob("*keys.json*"))


def test_nothing_opens_afterwards(folder: Path) -> None:
    blob = wrapped(folder)
    rounds = {path: path.read_bytes() for path in folder.rglob("*.fvlt")}
    date = destroy_store(folder)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", date)
    assert_destroyed(folder, blob)
    assert {path: path.read_bytes() for path in folder.rglob("*.fvlt")} == rounds
    with pytest.raises(StoreDestroyedError, match=date):
        open_store(folder)


def test_signatures_can_still_be_checked(folder: Path) -> None:
    destroy_store(folder)
    assert [check.problem for check in check_signatures(folder, VERIFY_KEY)] == [None, None]


def test_it_needs_no_key_and_may_be_repeated(folder: Path) -> None:
    blob = wrapped(folder)
    (folder / "keys.json").write_bytes(b"damaged")
    assert destroy_store(folder) == destroy_store(folder)
    assert_destroyed(folder, blob)


def test_the_list_is_overwritten_where_it_lies(folder: Path) -> None:
    """A file that was open before shows what stays on the disk."""
    blob, size = wrapped(folder), (folder / "keys.json").stat().st_size
    with (folder / "keys.json").open("rb", buffering=0) as file:
        destroy_store(folder)
        left = file.read()
    assert len(left) == size
    assert blob not in left
    assert b"fedveil" not in left
    assert len(set(left)) > 50, "random bytes"


def test_the_list_is_overwritten_on_the_disk_before_its_name_goes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_pwrite, real_fsync, real_unlink = os.pwrite, os.fsync, os.unlink

    def pwrite(descriptor: int, data: bytes, position: int) -> int:
        events.append(f"write {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        return real_pwrite(descriptor, data, position)

    def fsync(descriptor: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        real_fsync(descriptor)

    def unlink(path: Path) -> None:
        events.append(f"remove {Path(path).name}")
        real_unlink(path)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "unlink", unlink)
    destroy_store(folder)
    assert events[-7:] == [
        "write keys.json",
        "sync keys.json",
        "remove keys.json",
        "write .keys.json.0123.tmp",
        "sync .keys.json.0123.tmp",
        "remove .keys.json.0123.tmp",
        "sync model",
    ]
    assert "write keys.json" not in events[:-7]
    assert events[:-7][-1] == "sync model", "the note is durable first"


def test_an_open_reader_ends_at_the_next_look_for_keys(folder: Path) -> None:
    store = open_store(folder)
    destroy_store(folder)
    with pytest.raises(StoreDestroyedError):
        store.keks()
    with pytest.raises(StoreDestroyedError):
        store.save(3, arrays(3), {}, None)


def test_a_writer_keeps_its_store(folder: Path) -> None:
    keys = (folder / "keys.json").read_bytes()
    with open_store(folder) as store:
        store.claim()
        with pytest.raises(StoreLockedError):
            destroy_store(folder)
        assert (folder / "keys.json").read_bytes() == keys
        assert not (folder / "destroyed.json").exists()
    destroy_store(folder)


@pytest.mark.parametrize("act", [before, after, torn])
def test_a_crash_leaves_a_store_that_opens_or_says_that_it_is_not_done(
    folder: Path, act: Act
) -> None:
    blob = wrapped(folder)
    names = ["pwrite"] if act is torn else ["open", "link", "pwrite", "fsync", "unlink"]
    for name in names:
        outcomes = []
        for copy in crashes(folder, name, act, destroy_store):
            try:
                store = open_store(copy)
                assert (store.load(2).tensors["weight"] == 2).all()
                outcomes.append("whole")
            except StoreDestroyedError as error:
                outcomes.append(
                    "begun" if "not finished; destroy it again" in str(error) else "gone"
                )
            if outcomes[-1] == "gone":
                assert_destroyed(copy, blob)
            destroy_store(copy)
            assert_destroyed(copy, blob)
        assert outcomes[-1] == "gone"
        assert outcomes == sorted(outcomes, key=["whole", "begun", "gone"].index)


@pytest.mark.parametrize("name", ["pwrite", "fsync", "unlink"])
def test_a_disk_that_refuses_gives_one_line(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(real: object, args: tuple[object, ...]) -> object:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    blob = wrapped(folder)
    lines = 0
    for at in range(1, 20):
        with monkeypatch.context() as patched:
            calls = patch(patched, name, at, fail)
            try:
                destroy_store(folder)
            except StoreError as error:
                line = str(error)
            else:
                assert len(calls) < at
                break
        assert "Read-only file system" in line
        assert "it may still be there, so try again" in line or "destroy it again" in line
        lines += 1
    assert lines > 0
    destroy_store(folder)
    assert_destroyed(folder, blob)


def test_what_is_no_store_is_not_destroyed(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_bytes(b"somebody else's")
    with pytest.raises(StoreError, match="not a model store"):
        destroy_store(tmp_path)
    assert (tmp_path / "keys.json").read_bytes() == b"somebody else's"


def test_a_link_in_the_place_of_the_list_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (folder / "keys.json").unlink()
    (folder / "keys.json").symlink_to(tmp_path / "precious")
    with pytest.raises(StoreError, match="removed and not overwritten"):
        destroy_store(folder)
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_second_name_of_the_list_is_told_and_not_overwritten(
    folder: Path, tmp_path: Path
) -> None:
    """It may be somebody's precious file, or a copy in a backup, which only they can destroy."""
    os.link(folder / "keys.json", tmp_path / "same")
    blob = wrapped(folder)
    with pytest.raises(StoreError, match=r"second name \(a hard link\).*find the other one"):
        destroy_store(folder)
    assert blob in (tmp_path / "same").read_bytes()
    assert_destroyed(folder, blob)


def test_links_in_the_place_of_temporaries_do_no_harm(folder: Path, tmp_path: Path) -> None:
    blob = wrapped(folder)
    (tmp_path / "precious").write_bytes(b"precious")
    os.link(tmp_path / "precious", folder / ".keys.json.a.tmp")
    (folder / ".keys.json.b.tmp").symlink_to(tmp_path / "precious")
    os.mkfifo(folder / ".keys.json.c.tmp")
    destroy_store(folder)
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert_destroyed(folder, blob)


def test_a_temporary_that_stays_does_not_save_the_list(folder: Path) -> None:
    """Anybody who can write to the folder could stop every destruction otherwise."""
    blob = wrapped(folder)
    (folder / ".keys.json.!.tmp").mkdir()
    for _ in range(2):
        with pytest.raises(StoreError, match=r"keys\.json\.!\.tmp .*remove them, and destroy it"):
            destroy_store(folder)
        assert [path.name for path in folder.glob("*keys.json*")] == [".keys.json.!.tmp"]
        with pytest.raises(StoreDestroyedError, match="not finished"):
            open_store(folder)
    (folder / ".keys.json.!.tmp").rmdir()
    destroy_store(folder)
    assert_destroyed(folder, blob)


def test_a_pipe_in_the_place_of_the_list_does_not_wait(folder: Path) -> None:
    (folder / "keys.json").unlink()
    os.mkfifo(folder / "keys.json")
    with pytest.raises(StoreError, match=r"no regular file .*removed and not overwritten"):
        destroy_store(folder)
    assert not os.path.lexists(folder / "keys.json")


def test_a_missing_description_does_not_save_the_list(folder: Path) -> None:
    blob = wrapped(folder)
    (folder / "store.json").rename(folder / "away")
    destroy_store(folder)
    assert destroy_store(folder)
    (folder / "away").rename(folder / "store.json")
    assert_destroyed(folder, blob)


@pytest.mark.parametrize(
    "content", [b"", b"null", b"\xff", b'{"date": "\\u001b[31m"}', b"[" * 4000]
)
def test_a_note_that_cannot_be_read_still_refuses(folder: Path, content: bytes) -> None:
    (folder / "destroyed.json").write_bytes(content)
    with pytest.raises(StoreDestroyedError) as caught:
        open_store(folder)
    assert "an unknown date" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_new_store_is_not_made_over_it(folder: Path) -> None:
    destroy_store(folder)
    with pytest.raises(VaultError, match="is a model store already"):
        ModelStore.create(folder, KEK, "run", marks=None, signing_key=None)
