"""Old copies of a store: everything in them is authentic, and they are refused all the same."""

import fcntl
import json
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vault_crash import Act, after, before, copy_folder, crashes
from vault_files import KEK, SIGNING_KEY

from fedveil.vault.errors import HeaderError, RollbackError, StoreError
from fedveil.vault.kek.key_file import KeyFileKek
from fedveil.vault.keyfile import Key
from fedveil.vault.marks import Mark, MarkFile
from fedveil.vault.reader import StoreReader
from fedveil.vault.store import ModelStore

STORE = "0123456789abcdef"
HASH = "ab" * 32
KEYS = ("0123456789abcdee",)


def arrays(value: int) -> dict[str, np.ndarray]:
    return {"weight": np.full(30, value, dtype=np.float32)}


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    return tmp_path / "home" / "marks"


@pytest.fixture
def folder(tmp_path: Path, marks: Path) -> Path:
    folder = tmp_path / "model"
    with ModelStore.create(folder, KEK, "run", marks=marks, signing_key=SIGNING_KEY) as store:
        for number in (1, 2, 3):
            store.save(number, arrays(number), {}, None)
    return folder


def writer(folder: Path, marks: Path | None) -> ModelStore:
    return ModelStore(folder, KEK, marks=marks, signing_key=SIGNING_KEY)


def reader(folder: Path, marks: Path | None) -> StoreReader:
    return StoreReader(folder, KEK, marks=marks)


def mark_path(folder: Path, marks: Path) -> Path:
    return marks / f"{reader(folder, None).store}.json"


def assert_refused(folder: Path, marks: Path, match: str) -> None:
    """Check that all who look for the newest round are told, and nothing is written."""
    before = {path: path.read_bytes() for path in folder.rglob("*.fvlt")}
    for attempt in (
        reader(folder, marks).latest,
        reader(folder, marks).newest,
        writer(folder, marks).claim,
        lambda: writer(folder, marks).save(9, arrays(9), {}, None),
        lambda: writer(folder, marks).gc(1),
        lambda: writer(folder, marks).rotate_model_key(),
    ):
        with pytest.raises(RollbackError, match=match) as caught:
            attempt()
        line = str(caught.value)
        assert "\n" not in line
        assert f"remove {mark_path(folder, marks)}" in line
    assert {path: path.read_bytes() for path in folder.rglob("*.fvlt")} == before


def test_the_mark_is_the_documented_one(folder: Path, marks: Path) -> None:
    path = mark_path(folder, marks)
    assert json.loads(path.read_text()) == {
        "format": "fedveil-mark-2",
        "store": reader(folder, None).store,
        "round": 3,
        "header": reader(folder, None).show(3).header.fingerprint(),
        "model_keys": list(reader(folder, None).show(3).model_keys),
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(marks.stat().st_mode) == 0o700


def test_an_old_backup_that_is_put_back_is_refused(folder: Path, marks: Path) -> None:
    backup = copy_folder(folder, folder.parent / "backup")
    with writer(folder, marks) as store:
        store.save(4, arrays(4), {}, None)
    folder.rename(folder.parent / "away")
    backup.rename(folder)
    assert reader(folder, None).latest().header.round == 3, "the attack works where nobody looks"
    assert_refused(folder, marks, "ends with round 3, but round 4 was seen in it")


def test_a_newest_round_that_was_removed_is_missed(folder: Path, marks: Path) -> None:
    (folder / "round-000003.fvlt").unlink()
    assert_refused(folder, marks, "ends with round 2, but round 3 was seen in it")
    for path in folder.glob("round-*"):
        path.unlink()
    assert_refused(folder, marks, "has no round, but round 3 was seen in it")


def test_another_history_is_refused(folder: Path, marks: Path) -> None:
    """A backup from which the run went on to another round of the same number, and further."""
    backup = copy_folder(folder, folder.parent / "backup")
    with writer(folder, marks) as store:
        store.save(4, arrays(4), {}, None)
    with writer(backup, None) as store:
        store.save(4, arrays(-4), {}, None)
    folder.rename(folder.parent / "away")
    backup.rename(folder)
    assert_refused(folder, marks, "round 4 of .* is not the one that was seen there")
    with writer(folder, None) as store:
        store.save(5, arrays(-5), {}, None)
    assert_refused(folder, marks, "round 4 of .* is not the one that was seen there")


def test_a_reader_remembers_what_it_saw(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    backup = copy_folder(folder, tmp_path / "backup")
    with writer(folder, None) as store:
        store.save(4, arrays(4), {}, None)
    assert reader(folder, own).newest() == 4
    folder.rename(tmp_path / "away")
    backup.rename(folder)
    assert_refused(folder, own, "ends with round 3, but round 4")


def test_a_mark_that_was_removed_on_purpose_accepts_the_store(folder: Path, marks: Path) -> None:
    (folder / "round-000003.fvlt").unlink()
    mark_path(folder, marks).unlink()
    with writer(folder, marks) as store:
        assert store.latest().header.round == 2
        store.save(3, arrays(33), {}, None)
    assert reader(folder, marks).newest() == 3


def test_marks_of_a_round_that_was_removed_by_gc_are_fine(folder: Path, marks: Path) -> None:
    with writer(folder, None) as store:
        store.save(4, arrays(4), {}, None)
        store.gc(1)
    assert reader(folder, marks).newest() == 4


def test_stores_do_not_share_marks(folder: Path, marks: Path, tmp_path: Path) -> None:
    with ModelStore.create(tmp_path / "b", KEK, "run", marks=marks, signing_key=None) as other:
        other.save(1, arrays(1), {}, None)
    assert reader(folder, marks).newest() == 3
    assert reader(tmp_path / "b", marks).newest() == 1
    assert len(list(marks.iterdir())) == 2


def test_a_moved_store_keeps_its_mark(folder: Path, marks: Path) -> None:
    moved = folder.rename(folder.parent / "moved")
    assert reader(moved, marks).newest() == 3
    (moved / "round-000003.fvlt").unlink()
    assert_refused(moved, marks, "ends with round 2")


def test_an_exchange_of_the_model_key_keeps_the_mark(folder: Path, marks: Path) -> None:
    with writer(folder, marks) as store:
        store.rotate_model_key()
    assert reader(folder, marks).newest() == 3


def test_a_forged_round_does_not_raise_the_mark(folder: Path, marks: Path) -> None:
    path = folder / "round-000009.fvlt"
    path.write_bytes((folder / "round-000003.fvlt").read_bytes())
    with pytest.raises(StoreError, match="wrong place"):
        reader(folder, marks).newest()
    path.unlink()
    assert reader(folder, marks).newest() == 3


def test_a_commit_between_two_looks_is_no_rollback(
    folder: Path, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer commits a round after the reader has listed them."""
    late, real = reader(folder, marks), StoreReader.rounds

    def rounds(self: StoreReader) -> list[int]:
        found = real(self)
        if self is late:
            monkeypatch.undo()
            with writer(folder, marks) as store:
                store.save(4, arrays(4), {}, None)
        return found

    monkeypatch.setattr(StoreReader, "rounds", rounds)
    assert late.newest() == 3
    assert json.loads(mark_path(folder, marks).read_text())["round"] == 4, "never lowered"
    assert late.newest() == 4


def test_a_mark_is_never_lowered(tmp_path: Path) -> None:
    file = MarkFile(tmp_path, STORE)
    assert file.read() is None
    for number in (3, 2, 3, 5, 1):
        file.raise_to(Mark(number, HASH, KEYS))
    assert file.read() == Mark(5, HASH, KEYS)
    file.raise_to(Mark(5, "cd" * 32, KEYS))
    assert file.read() == Mark(5, HASH, KEYS)


def test_a_mark_that_was_raised_while_waiting_is_not_lowered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process holds the lock, and raises the mark before it gives the lock back."""
    file, real = MarkFile(tmp_path, STORE), fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        monkeypatch.undo()
        MarkFile(tmp_path, STORE).raise_to(Mark(5, HASH, KEYS))
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    file.raise_to(Mark(3, HASH, KEYS))
    assert file.read() == Mark(5, HASH, KEYS)


RAISER = """
import sys
from pathlib import Path
from fedveil.vault.marks import Mark, MarkFile
keys = ("0123456789abcdee",)
for number in range(int(sys.argv[2]), 60, 4):
    MarkFile(Path(sys.argv[1]), "0123456789abcdef").raise_to(Mark(number, "ab" * 32, keys))
"""


def test_many_who_raise_a_mark_at_once_leave_the_highest(tmp_path: Path) -> None:
    raisers = [
        subprocess.Popen([sys.executable, "-c", RAISER, str(tmp_path), str(first)])
        for first in range(4)
    ]
    try:
        assert [raiser.wait(timeout=60) for raiser in raisers] == [0] * 4
    finally:
        for raiser in raisers:
            raiser.kill()
            raiser.wait()
    assert MarkFile(tmp_path, STORE).read() == Mark(59, HASH, KEYS)


def mark_text(**changes: object) -> bytes:
    fields = {"format": "fedveil-mark-2", "store": STORE, "round": 3, "header": HASH}
    return json.dumps({**fields, "model_keys": list(KEYS), **changes}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"\xff",
        b"[" * 4000,
        mark_text(format="fedveil-mark-1"),
        mark_text(store="f" * 16),
        mark_text(round=-1),
        mark_text(round="3"),
        mark_text(round=True),
        mark_text(header="ab"),
        mark_text(header=None),
        mark_text(round=None),
        mark_text(model_keys=None),
        mark_text(model_keys=[]),
        mark_text(model_keys=[["a"]]),
        mark_text(model_keys="0123456789abcdee"),
        mark_text(more=1),
    ],
)
def test_a_malformed_mark_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / f"{STORE}.json").write_bytes(content)
    with pytest.raises(StoreError, match="not a mark of the format fedveil-mark-2"):
        MarkFile(tmp_path, STORE).read()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=100))
def test_any_mark_gives_one_line_at_worst(tmp_path: Path, content: bytes) -> None:
    (tmp_path / f"{STORE}.json").write_bytes(content)
    with pytest.raises(StoreError) as caught:
        MarkFile(tmp_path, STORE).read()
    assert "\n" not in str(caught.value)


def test_a_mark_that_cannot_be_kept_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot read the mark"):
        reader(folder, tmp_path / "file").newest()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / mark_path(folder, tmp_path).name).symlink_to("elsewhere")
    with pytest.raises(StoreError, match="symbolic link"):
        reader(folder, tmp_path / "own").newest()


def test_values_that_a_mark_cannot_hold_are_refused() -> None:
    with pytest.raises(HeaderError):
        Mark(-1, HASH, KEYS)
    with pytest.raises(HeaderError):
        Mark(1, "", KEYS)
    with pytest.raises(HeaderError):
        Mark(None, HASH, KEYS)
    for keys in ((), (*KEYS, *KEYS, *KEYS), ("not a name",)):
        with pytest.raises(HeaderError):
            Mark(1, HASH, keys)


RETIRED = KeyFileKek(Key(bytes(range(9, 41))))


def test_an_exchange_of_the_model_key_cannot_be_undone(folder: Path, marks: Path) -> None:
    """The newest round is the same before and after it, so that alone tells nothing."""
    with writer(folder, marks) as store:
        store.add_kek(RETIRED)
    backup = copy_folder(folder, folder.parent / "backup")
    with writer(folder, marks) as store:
        store.retire_kek(RETIRED.key_id)
        old = store.show(3).model_keys[0]
        store.rotate_model_key()
    folder.rename(folder.parent / "away")
    backup.rename(folder)
    with writer(copy_folder(folder, folder.parent / "blind"), None) as store:
        store.save(4, arrays(4), {}, None)
    blind = StoreReader(folder.parent / "blind", RETIRED, marks=None)
    assert (blind.load(4).tensors["weight"] == 4).all(), "the attack works where nobody looks"
    assert_refused(folder, marks, f"the model key of .* is {old}, but .* was seen")


def test_a_store_in_hand_is_refused_when_it_is_put_back(folder: Path, marks: Path) -> None:
    """Also by who has the new model key in memory, and meets files of the old one."""
    backup = copy_folder(folder, folder.parent / "backup")
    with writer(folder, marks) as store:
        store.rotate_model_key()
        late = reader(folder, marks)
        assert late.newest() == 3
        folder.rename(folder.parent / "away")
        backup.rename(folder)
        for attempt in (late.newest, late.latest, store.claim, late.check_mark):
            with pytest.raises(RollbackError, match="the model key of"):
                attempt()
        with pytest.raises(RollbackError, match="the model key of"):
            store.save(4, arrays(4), {}, None)


def test_an_exchange_that_somebody_put_back_is_not_gone_on_with(folder: Path, marks: Path) -> None:
    with writer(folder, marks) as store:
        store.claim()

    def rotate(copy: Path) -> None:
        with writer(copy, None) as store:
            store.rotate_model_key()

    # The second list is that of the exchange; before it there are two keys, after it one.
    stuck = list(crashes(folder, "replace", before, rotate))[1]
    with writer(folder, marks) as store:
        store.rotate_model_key()
    folder.rename(folder.parent / "away")
    stuck.rename(folder)
    keys = (folder / "keys.json").read_bytes()
    assert b'"upcoming": {' in keys
    assert_refused(folder, marks, "the model key of")
    assert (folder / "keys.json").read_bytes() == keys


@pytest.mark.parametrize("name", ["pwrite", "fsync", "replace"])
@pytest.mark.parametrize("act", [before, after])
def test_a_crash_in_an_exchange_is_no_false_alarm(folder: Path, name: str, act: Act) -> None:
    """The mark lies in the store here, to be copied with it."""

    def rotate(copy: Path) -> None:
        with writer(copy, copy / "marks") as store:
            store.rotate_model_key()

    reader(folder, folder / "marks").newest()
    count = 0
    for copy in crashes(folder, name, act, rotate):
        count += 1
        assert reader(copy, copy / "marks").newest() == 3
        with writer(copy, copy / "marks") as store:
            store.save(4, arrays(4), {}, None)
            (key_id,) = store.show(4).model_keys
        text = mark_path(copy, copy / "marks").read_text()
        assert json.loads(text)["model_keys"] == [key_id]
    # Three lists and two marks; a write and two syncs each, and three files twice.
    assert count == {"pwrite": 11 + 1, "fsync": 16 + 1, "replace": 5 + 1}[name]


def test_readers_with_the_same_marks_follow_an_exchange(folder: Path, marks: Path) -> None:
    late = reader(folder, marks)
    assert late.newest() == 3
    for _ in range(2):
        with writer(folder, marks) as store:
            store.rotate_model_key()
    assert late.newest() == 3
    assert late.latest().header.round == 3


def test_an_exchange_while_a_reader_looks_is_no_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has an old key, reads the mark, and then the key is exchanged once more."""
    folder, marks = tmp_path / "model", tmp_path / "marks"
    ModelStore.create(folder, KEK, "run", marks=marks, signing_key=SIGNING_KEY)
    late, real = reader(folder, marks), MarkFile.read
    with writer(folder, marks) as store:
        store.rotate_model_key()
    calls: list[int] = []

    def read(self: MarkFile) -> Mark | None:
        found = real(self)
        calls.append(1)
        if len(calls) == 2:
            with monkeypatch.context() as inner:
                inner.setattr(MarkFile, "read", real)
                with writer(folder, marks) as store:
                    store.rotate_model_key()
        return found

    monkeypatch.setattr(MarkFile, "read", read)
    assert late.check_mark() is None
    assert len(calls) > 2


def test_an_empty_store_has_a_mark_of_its_own(tmp_path: Path) -> None:
    folder, marks = tmp_path / "model", tmp_path / "marks"
    with ModelStore.create(folder, KEK, "run", marks=marks, signing_key=SIGNING_KEY) as store:
        assert store.check_mark() is None
        backup = copy_folder(folder, tmp_path / "backup")
        store.rotate_model_key()
        assert store.check_mark() is None
    assert reader(folder, marks).check_mark() is None
    with pytest.raises(StoreError, match="has no round yet"):
        reader(folder, marks).newest()
    folder.rename(tmp_path / "away")
    backup.rename(folder)
    assert_refused(folder, marks, "the model key of")


def test_a_store_that_was_emptied_is_refused(folder: Path, marks: Path) -> None:
    assert reader(folder, marks).check_mark() == 3
    for path in folder.glob("round-*"):
        path.unlink()
    with pytest.raises(RollbackError, match="has no round, but round 3 was seen in it"):
        reader(folder, marks).check_mark()
    assert_refused(folder, marks, "has no round, but round 3 was seen in it")


def test_a_round_is_remembered_by_check_mark(folder: Path, tmp_path: Path) -> None:
    assert reader(folder, tmp_path / "own").check_mark() == 3
    (folder / "round-000003.fvlt").unlink()
    with pytest.raises(RollbackError, match="ends with round 2"):
        reader(folder, tmp_path / "own").check_mark()
