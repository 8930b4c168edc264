import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedveil.vault.checkpoint import seal
from fedveil.vault.errors import (
    HeaderError,
    NotACheckpointError,
    StoreError,
    StoreLockedError,
    TamperedError,
    TensorError,
    TruncatedError,
    VaultError,
    WrongKeyError,
)
from fedveil.vault.keyfile import Key
from fedveil.vault.store import ModelStore, RoundCheck
from fedveil.vault.tensors import Array

KEY = Key(bytes(range(32)))
KNOWN = b"these bytes must never be on a disk in clear... "


def model(round_: int) -> dict[str, Array]:
    return {
        "weight": np.full((4, 5), round_, dtype=np.float32),
        "known": np.frombuffer(KNOWN * 3, dtype=np.uint8),
    }


def state(round_: int) -> dict[str, Array]:
    return {"momentum": np.full(7, -round_, dtype=np.float64), **model(round_)}


def holds(store: ModelStore, round_: int) -> bool:
    checkpoint = store.load(round_)
    return checkpoint.header.round == round_ and bool(
        (checkpoint.tensors["weight"] == round_).all()
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


@pytest.fixture
def store(folder: Path) -> ModelStore:
    return ModelStore.create(folder, KEY, "digits")


@pytest.fixture
def filled(store: ModelStore) -> ModelStore:
    """Save rounds 1 to 4 with states, and give the lock back."""
    for number in range(1, 5):
        store.save(number, model(number), {"loss": 1.0 / number}, state(number))
    store.close()
    return store


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_new_store_is_empty_and_private(store: ModelStore, folder: Path) -> None:
    assert store.rounds() == []
    assert store.run == "digits"
    assert store.directory == folder
    assert json.loads((folder / "store.json").read_text()) == {
        "format": "fedveil-store-1",
        "run": "digits",
        "key_id": KEY.key_id,
    }
    with pytest.raises(StoreError, match="has no round yet"):
        store.latest()


def test_rounds_are_saved_and_loaded(filled: ModelStore, folder: Path) -> None:
    for opened in (filled, ModelStore(folder, KEY)):
        assert opened.rounds() == [1, 2, 3, 4]
        assert all(holds(opened, number) for number in opened.rounds())
        assert opened.latest().header.round == 4
        assert dict(opened.load(2).header.meta) == {"loss": 0.5}
        assert opened.load(2).header.kind == "model"
        kept = opened.load_state(4)
        assert kept.header.kind == "strategy-state"
        np.testing.assert_array_equal(kept.tensors["momentum"], np.full(7, -4.0))


def test_the_layout_is_the_documented_one(filled: ModelStore, folder: Path) -> None:
    assert files(folder) == [
        ".lock",
        *(f"round-{number:06d}.fvlt" for number in range(1, 5)),
        "state/round-000003.fvlt",
        "state/round-000004.fvlt",
        "store.json",
    ]
    assert filled.path(3) == folder / "round-000003.fvlt"


@pytest.mark.parametrize("umask", [0o000, 0o027])
def test_folders_and_files_are_private(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with ModelStore.create(tmp_path / "model", KEY, "run") as store:
            store.save(0, model(0), {}, state(0))
    finally:
        os.umask(before)
    for path in [tmp_path / "model", *(tmp_path / "model").rglob("*")]:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_no_known_bytes_are_in_any_file(filled: ModelStore, folder: Path) -> None:
    for name in files(folder):
        content = (folder / name).read_bytes()
        for secret in (KNOWN[:16], b"momentum", KEY.secret, np.full(4, 4, np.float32).tobytes()):
            assert secret not in content, name


def test_a_state_needs_not_be_saved(store: ModelStore) -> None:
    store.save(1, model(1), {}, None)
    assert holds(store, 1)
    with pytest.raises(StoreError, match=r"keeps no strategy state of round 1.*none"):
        store.load_state(1)


def test_old_states_are_removed_and_said_to_be(filled: ModelStore) -> None:
    with pytest.raises(StoreError, match="state of round 2; it keeps those of: 3, 4"):
        filled.load_state(2)


def test_a_round_that_is_not_there_is_named(filled: ModelStore) -> None:
    with pytest.raises(StoreError, match="has no round 9; it has 4 between 1 and 4"):
        filled.load(9)


@pytest.mark.parametrize("round_", [4, 3, 0])
def test_saved_rounds_are_never_replaced(filled: ModelStore, folder: Path, round_: int) -> None:
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    with pytest.raises(StoreError, match=f"round {round_} cannot be saved.*round 4 is there"):
        filled.save(round_, model(9), {}, state(9))
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before


def test_what_cannot_be_stored_leaves_the_store_as_it_was(filled: ModelStore, folder: Path) -> None:
    before = files(folder)
    with pytest.raises(HeaderError):
        filled.save(5, model(5), {"loss": float("nan")}, None)
    with pytest.raises(TensorError):
        filled.save(5, {"x": np.array("text")}, {}, None)
    with pytest.raises(HeaderError):
        filled.save(1_000_000, model(5), {}, state(5))
    assert files(folder) == before
    filled.save(5, model(5), {}, state(5))
    assert holds(filled, 5)


def test_a_store_is_never_made_twice(filled: ModelStore, folder: Path) -> None:
    with pytest.raises(StoreError, match="is a model store already"):
        ModelStore.create(folder, Key.generate(), "other")
    assert ModelStore(folder, KEY).run == "digits"


def test_a_wrong_key_is_refused_at_once(filled: ModelStore, folder: Path) -> None:
    other = Key.generate()
    with pytest.raises(StoreError) as caught:
        ModelStore(folder, other)
    line = str(caught.value)
    assert KEY.key_id in line
    assert other.key_id in line
    assert "\n" not in line


@pytest.mark.parametrize("run", ["", "two\nlines"])
def test_a_run_that_cannot_be_named_makes_no_store(folder: Path, run: str) -> None:
    with pytest.raises(HeaderError):
        ModelStore.create(folder, KEY, run)
    assert not folder.exists()


def test_what_is_no_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(StoreError, match="is not a model store"):
            ModelStore(path, KEY)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 4000,
        b'{"format": "fedveil-store-2", "run": "r", "key_id": "0123456789abcdef"}',
        b'{"format": "fedveil-store-1", "run": "", "key_id": "0123456789abcdef"}',
        b'{"format": "fedveil-store-1", "run": "r", "key_id": "0123"}',
        b'{"format": "fedveil-store-1", "run": "r", "key_id": 5}',
        b'{"format": "fedveil-store-1", "run": "r"}',
        b'{"format": "fedveil-store-1", "run": "r", "key_id": "0123456789abcdef", "more": 1}',
    ],
)
def test_a_malformed_description_is_refused(
    filled: ModelStore, folder: Path, content: bytes
) -> None:
    (folder / "store.json").write_bytes(content)
    with pytest.raises(StoreError, match="of the format fedveil-store-1"):
        ModelStore(folder, KEY)


def test_a_renamed_round_is_refused(filled: ModelStore, folder: Path) -> None:
    filled.path(4).rename(folder / "round-000005.fvlt")
    with pytest.raises(StoreError, match=r"wrong place.*round 4.*round 5.*belongs"):
        filled.latest()


def test_a_round_of_another_run_is_refused(filled: ModelStore) -> None:
    filled.path(4).write_bytes(seal(KEY, "model", "other", 4, model(4), {}))
    with pytest.raises(StoreError, match=r"of run 'other'.*of run 'digits' belongs"):
        filled.load(4)


def test_a_state_in_the_place_of_a_model_is_refused(filled: ModelStore, folder: Path) -> None:
    (folder / "state" / "round-000004.fvlt").replace(filled.path(4))
    with pytest.raises(StoreError, match="holds the strategy-state of round 4"):
        filled.load(4)


def test_a_round_under_another_key_is_refused(filled: ModelStore) -> None:
    filled.path(4).write_bytes(seal(Key.generate(), "model", "digits", 4, model(4), {}))
    with pytest.raises(WrongKeyError, match=KEY.key_id):
        filled.load(4)


def test_a_symbolic_link_is_refused(filled: ModelStore, tmp_path: Path) -> None:
    moved = filled.path(4).rename(tmp_path / "moved")
    filled.path(4).symlink_to(moved)
    with pytest.raises(VaultError, match="symbolic link"):
        filled.load(4)


def test_damage_is_named_with_its_file(filled: ModelStore) -> None:
    path = filled.path(4)
    good = path.read_bytes()
    for content, error in [
        (good[:-1], TruncatedError),
        (good[:-1] + bytes([good[-1] ^ 1]), TamperedError),
        (b"text", NotACheckpointError),
        (b"", NotACheckpointError),
    ]:
        path.write_bytes(content)
        with pytest.raises(error) as caught:
            filled.load(4)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_verify_reports_every_round(filled: ModelStore, folder: Path) -> None:
    assert filled.verify() == [RoundCheck(n, n >= 3, None) for n in (1, 2, 3, 4)]
    filled.path(2).write_bytes(b"junk")
    filled.path(3).unlink()
    filled.path(3).mkdir()
    (folder / "state" / "round-000004.fvlt").write_bytes(b"")
    found = {check.round: check.problem for check in filled.verify()}
    assert list(found) == [1, 2, 3, 4]
    assert found[1] is None
    assert "not an encrypted checkpoint" in str(found[2])
    assert "not a regular file" in str(found[3])
    assert "state/round-000004.fvlt" in str(found[4])


def test_verify_reports_a_file_that_cannot_be_read(
    filled: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.readv

    def failing(descriptor: int, buffers: list[memoryview]) -> int:
        if "round-000002" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, buffers)

    monkeypatch.setattr(os, "readv", failing)
    problems = [check.problem for check in filled.verify()]
    assert [problem is None for problem in problems] == [True, False, True, True]
    assert "cannot read" in str(problems[1])
    assert "Input/output error" in str(problems[1])


def test_other_files_are_no_rounds(filled: ModelStore, folder: Path) -> None:
    for name in ("round-7.fvlt", "round-000007.fvlt.bak", "xround-000007.fvlt", "notes.txt"):
        (folder / name).write_bytes(b"")
    assert filled.rounds() == [1, 2, 3, 4]


def test_leftovers_of_a_crash_are_removed_at_the_next_save(
    filled: ModelStore, folder: Path
) -> None:
    (folder / ".round-000005.fvlt.0123.tmp").write_bytes(b"half")
    (folder / "state" / ".round-000005.fvlt.0123.tmp").write_bytes(b"half")
    lonely = folder / "state" / "round-000005.fvlt"
    lonely.write_bytes(seal(KEY, "strategy-state", "digits", 5, state(99), {}))
    with pytest.raises(StoreError, match="keeps no strategy state of round 5"):
        filled.load_state(5)
    filled.save(5, model(5), {}, None)
    assert not list(folder.rglob("*.tmp"))
    assert not lonely.exists(), "the state of an attempt that failed must not join another attempt"


WRITER = """
import sys
from pathlib import Path
import numpy as np
from fedveil.vault.keyfile import Key
from fedveil.vault.store import ModelStore
store = ModelStore(Path(sys.argv[1]), Key(bytes(range(32))))
store.save(int(sys.argv[2]), {"weight": np.full((4, 5), int(sys.argv[2]), np.float32)}, {}, None)
print("saved", flush=True)
sys.stdin.readline()
"""


def test_a_second_process_cannot_write(filled: ModelStore, folder: Path) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), "5"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "saved\n"
    try:
        with pytest.raises(StoreLockedError, match="another writer holds"):
            filled.save(6, model(6), {}, None)
        assert holds(filled, 5), "readers need no lock"
    finally:
        first.kill()
        first.communicate()
    filled.save(6, model(6), {}, None)
    assert filled.rounds() == [1, 2, 3, 4, 5, 6]


def test_the_lock_is_kept_between_saves_until_it_is_given_back(
    filled: ModelStore, folder: Path
) -> None:
    other = ModelStore(folder, KEY)
    with other:
        other.save(5, model(5), {}, None)
        with pytest.raises(StoreLockedError):
            filled.save(6, model(6), {}, None)
        other.save(6, model(6), {}, None)
    filled.save(7, model(7), {}, None)
    with pytest.raises(StoreLockedError):
        other.save(8, model(8), {}, None)


def test_a_forgotten_store_gives_its_lock_back(filled: ModelStore, folder: Path) -> None:
    ModelStore(folder, KEY).save(5, model(5), {}, None)
    filled.save(6, model(6), {}, None)
    assert filled.rounds()[-2:] == [5, 6]


def test_a_folder_that_refuses_is_named(
    filled: ModelStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refusing(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EACCES, "Permission denied")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(StoreError, match=r"cannot write to the model store.*Permission denied"):
        filled.save(5, model(5), {}, None)
    with pytest.raises(StoreError, match=r"cannot make a model store.*Permission denied"):
        ModelStore.create(tmp_path / "other", KEY, "run")
    assert holds(filled, 4)


def test_a_store_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "model", tmp_path / "none" / "model"):
        with pytest.raises(StoreError, match="cannot make a model store"):
            ModelStore.create(folder, KEY, "run")


def test_no_error_shows_the_key(filled: ModelStore, folder: Path) -> None:
    filled.path(4).write_bytes(b"FVLT1\n")
    lines = [check.problem or "" for check in filled.verify()]
    with pytest.raises(StoreError) as caught:
        ModelStore(folder, Key.generate())
    shown = "".join([*lines, str(caught.value), repr(filled), repr(filled.load(1))])
    assert KEY.secret.hex() not in shown
    assert repr(KEY.secret)[2:-1] not in shown
