"""Exchanging keys: weights are not touched, and no interruption loses a round."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from vault_crash import Act, Step, after, before, copy_folder, crashes, patch, torn
from vault_files import KEK, SIGNING_KEY, VERIFY_KEY, seal

from fedveil.vault.checks import check_signatures
from fedveil.vault.errors import (
    StoreError,
    TamperedError,
    TruncatedError,
    VaultError,
    WrongKeyError,
)
from fedveil.vault.header import Address
from fedveil.vault.kek.key_file import KeyFileKek
from fedveil.vault.keyfile import Key
from fedveil.vault.keyring import Keyring
from fedveil.vault.listfile import read_keys
from fedveil.vault.reader import StoreReader
from fedveil.vault.store import ModelStore

ROUNDS = (1, 2, 3)
SECOND_KEK = KeyFileKek(Key(bytes(range(9, 41))))
THIRD_KEK = KeyFileKek(Key(bytes(range(10, 42))))


def arrays(round_: int) -> dict[str, np.ndarray]:
    return {"weight": np.full(300, round_, dtype=np.float32)}


def open_store(folder: Path, kek: KeyFileKek = KEK) -> ModelStore:
    return ModelStore(folder, kek, marks=None, signing_key=SIGNING_KEY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a store of three rounds that two KEKs open."""
    folder = tmp_path / "model"
    with ModelStore.create(folder, KEK, "run", marks=None, signing_key=SIGNING_KEY) as store:
        for number in ROUNDS:
            store.save(number, arrays(number), {}, arrays(-number))
        store.add_kek(SECOND_KEK)
    return folder


def rotate(folder: Path) -> None:
    with open_store(folder) as store:
        store.rotate_model_key([SECOND_KEK])


def model_key(folder: Path) -> Key:
    return Keyring(folder, open_store(folder).store, KEK).key


def rounds_open(reader: StoreReader) -> bool:
    newest = reader.rounds()[-1]
    return (reader.load_state(newest).tensors["weight"] == -newest).all() and all(
        (reader.load(number).tensors["weight"] == number).all() for number in reader.rounds()
    )


def assert_sound(folder: Path) -> None:
    for kek in (KEK, SECOND_KEK):
        assert rounds_open(StoreReader(folder, kek, marks=None, verify_key=VERIFY_KEY))
    assert all(check.problem is None for check in open_store(folder).verify())
    assert all(check.problem is None for check in check_signatures(folder, VERIFY_KEY))


def assert_clean(folder: Path) -> None:
    """Every file has one slot, of the current model key."""
    keys = read_keys(folder, open_store(folder).store).keys
    assert keys.upcoming is None
    assert not keys.clearing
    for path in [*folder.glob("round-*"), *(folder / "state").glob("round-*")]:
        data = path.read_bytes()
        end = 10 + int.from_bytes(data[6:10], "big")
        slots = [data[end : end + 96], data[end + 96 : end + 192]]
        assert bytes(96) in slots, path
        slots.remove(bytes(96))
        assert slots[0][:16].decode() == keys.current.key_id


def assert_next_writer_finishes(folder: Path, saves: bool) -> None:
    with open_store(folder) as store:
        if saves:
            store.save(4, arrays(4), {}, arrays(-4))
        else:
            store.claim()
    assert_clean(folder)
    assert_sound(folder)
    assert not list(folder.glob(".keys.json.*.tmp")) or not saves


def test_the_model_key_is_exchanged_and_weights_are_not_touched(folder: Path) -> None:
    old = model_key(folder)
    paths = sorted([*folder.glob("round-*"), *(folder / "state").glob("round-*")])
    was = {path: path.read_bytes() for path in paths}
    with open_store(folder) as store:
        named = store.rotate_model_key([SECOND_KEK])
        assert rounds_open(store)
    assert named == model_key(folder).key_id != old.key_id
    assert_sound(folder)
    assert_clean(folder)
    for path, data in was.items():
        end, now = 10 + int.from_bytes(data[6:10], "big"), path.read_bytes()
        assert now[:end] == data[:end]
        assert now[end : end + 192] != data[end : end + 192]
        assert now[end + 192 :] == data[end + 192 :], "seal and stream stay byte for byte"
        assert old.key_id.encode() not in now


def test_it_is_exchanged_again_and_again(folder: Path) -> None:
    named = set()
    for number in range(4, 8):
        with open_store(folder) as store:
            named.add(store.rotate_model_key([SECOND_KEK]))
            store.save(number, arrays(number), {}, arrays(-number))
        assert_sound(folder)
        assert_clean(folder)
    assert len(named) == 4


def test_a_copy_from_before_does_not_open_after(folder: Path) -> None:
    """Neither an old round in the new store, nor the new rounds with the old list."""
    copy = copy_folder(folder, folder.parent / "copy")
    rotate(folder)
    path = open_store(folder).path(3)
    now = path.read_bytes()
    path.write_bytes((copy / path.name).read_bytes())
    with pytest.raises(WrongKeyError, match="from before a rotation"):
        open_store(folder).load(3)
    path.write_bytes(now)
    assert_sound(folder)
    (folder / "keys.json").write_bytes((copy / "keys.json").read_bytes())
    with pytest.raises(WrongKeyError):
        open_store(folder).load(3)


def test_a_reader_with_the_old_key_goes_on(folder: Path) -> None:
    reader = StoreReader(folder, KEK, marks=None)
    rotate(folder)
    assert rounds_open(reader)
    other = StoreReader(folder, SECOND_KEK, marks=None)
    rotate(folder)
    rotate(folder)
    assert other.show(2).header.round == 2
    assert rounds_open(reader)


def test_a_writer_with_the_old_key_does_not_save_under_it(folder: Path) -> None:
    late = open_store(folder)
    rotate(folder)
    with late:
        late.save(4, arrays(4), {}, arrays(-4))
    assert_sound(folder)
    assert_clean(folder)


def test_a_writer_of_an_empty_store_does_not_save_under_the_old_key(tmp_path: Path) -> None:
    """There is no round yet that would tell it."""
    folder = tmp_path / "empty"
    late = ModelStore.create(folder, KEK, "run", marks=None, signing_key=SIGNING_KEY)
    with open_store(folder) as store:
        store.rotate_model_key()
    with late:
        late.save(1, arrays(1), {}, arrays(-1))
    assert rounds_open(open_store(folder))


READER = """
import sys
from pathlib import Path
from vault_files import KEK, VERIFY_KEY
from fedveil.vault.reader import StoreReader
reader = StoreReader(Path(sys.argv[1]), KEK, marks=None, verify_key=VERIFY_KEY)
print("open", flush=True)
count = 0
while not Path(sys.argv[2]).exists():
    for number in (1, 2, 3):
        assert (reader.load(number).tensors["weight"] == number).all()
        count += 1
print(count)
"""


def test_readers_do_not_notice_an_exchange(folder: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(folder), str(tmp_path / "stop")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        for _ in range(15):
            rotate(folder)
        (tmp_path / "stop").touch()
        out, errors = reader.communicate(timeout=60)
    finally:
        reader.kill()
        reader.wait()
    assert reader.returncode == 0, errors
    assert int(out) > 0


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("pwrite", before),
        ("pwrite", after),
        ("pwrite", torn),
        ("fsync", before),
        ("fsync", after),
        ("replace", before),
        ("replace", after),
    ],
)
def test_a_crash_between_any_two_steps_leaves_all_rounds(folder: Path, name: str, act: Act) -> None:
    old = model_key(folder).key_id
    keys: list[str] = []
    for copy in crashes(folder, name, act, rotate):
        assert_sound(copy)
        keys.append(model_key(copy).key_id)
        assert_next_writer_finishes(copy, saves=len(keys) % 2 == 0)
    assert keys[0] == old
    assert keys[-1] != old
    # Three lists and five files twice; the last time, nothing crashes.
    assert len(keys) == {"pwrite": 14, "fsync": 17, "replace": 4}[name]


def test_a_crash_while_another_writer_finishes_loses_nothing(folder: Path) -> None:
    """A second interruption, at every step of the finishing of a first one."""
    *_, stuck, _ = crashes(folder, "replace", before, rotate)
    for name, act in (("pwrite", torn), ("fsync", before), ("replace", after)):
        for copy in crashes(stuck, name, act, lambda path: open_store(path).claim()):
            assert_sound(copy)
            assert_next_writer_finishes(copy, saves=False)


def test_every_slot_is_on_the_disk_before_the_old_key_is_dropped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the slots that a first attempt wrote and may not have forced to the disk."""

    def interrupted(real: Step, args: tuple[object, ...]) -> object:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        # The second list is the one that drops the old key.
        patch(patched, "replace", 2, interrupted)
        with pytest.raises(KeyboardInterrupt):
            rotate(folder)
    events: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        events.append(f"rename {Path(target).name}")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    open_store(folder).claim()
    first = events.index("rename keys.json")
    files = ["round-000001.fvlt", "round-000002.fvlt", "round-000003.fvlt"]
    assert [event for event in events[:first] if event in files] == [*files, *files[1:]]
    second = events.index("rename keys.json", first + 1)
    assert [event for event in events[first:second] if event in files] == [*files, *files[1:]]


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:40]])
def test_a_damaged_file_stops_the_exchange_before_it_begins(
    folder: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = folder / "round-000002.fvlt"
    good, keys = path.read_bytes(), (folder / "keys.json").read_bytes()
    path.write_bytes(damage(good))
    with pytest.raises(TruncatedError, match="round-000002"):
        rotate(folder)
    assert (folder / "keys.json").read_bytes() == keys
    path.write_bytes(good)
    rotate(folder)
    assert_sound(folder)


def test_a_disk_that_fails_gives_one_line_and_the_next_writer_finishes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(real: Step, args: tuple[object, ...]) -> object:
        raise OSError(28, "No space left on device")

    lines = []
    for name in ("pwrite", "fsync", "replace"):
        for at in range(1, 100):
            copy = copy_folder(folder, folder.parent / f"full-{name}-{at}")
            with monkeypatch.context() as patched:
                patch(patched, name, at, fail)
                try:
                    rotate(copy)
                except StoreError as error:
                    lines.append(str(error))
                else:
                    break
            assert_sound(copy)
            assert_next_writer_finishes(copy, saves=True)
    assert len(lines) > 30
    for line in lines:
        assert "No space left on device" in line
        assert "\n" not in line
        assert "the rounds are unharmed, and the next call that writes goes on" in line


def test_an_exchange_needs_every_kek(folder: Path) -> None:
    store = open_store(folder)
    keys = (folder / "keys.json").read_bytes()
    with pytest.raises(StoreError, match=f"would lock out file:{SECOND_KEK.key_id}"):
        store.rotate_model_key()
    assert (folder / "keys.json").read_bytes() == keys
    store.retire_kek(SECOND_KEK.key_id)
    store.rotate_model_key()
    assert rounds_open(store)


def add(folder: Path) -> None:
    with open_store(folder) as store:
        store.add_kek(THIRD_KEK)


def retire(folder: Path) -> None:
    with open_store(folder) as store:
        store.retire_kek(SECOND_KEK.key_id)


def rewrap(folder: Path) -> None:
    with open_store(folder) as store:
        store.rewrap_kek()


def exchange(folder: Path) -> None:
    with open_store(folder, SECOND_KEK) as store:
        store.replace_kek(THIRD_KEK)


def opening(folder: Path) -> list[bool]:
    found = []
    for kek in (KEK, SECOND_KEK, THIRD_KEK):
        try:
            found.append(rounds_open(StoreReader(folder, kek, marks=None)))
        except WrongKeyError:
            found.append(False)
    return found


@pytest.mark.parametrize("act", [before, after, torn])
@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (add, [True, True, True]),
        (retire, [True, False, False]),
        (rewrap, [True, True, False]),
        (exchange, [True, False, True]),
    ],
)
def test_a_crash_in_a_change_of_keks_leaves_the_old_list_or_the_new(
    folder: Path, act: Act, work: Callable[[Path], None], expected: list[bool]
) -> None:
    for name in ["pwrite"] if act is torn else ["pwrite", "fsync", "replace", "open"]:
        outcomes = []
        for copy in crashes(folder, name, act, work):
            outcomes.append(opening(copy))
            with open_store(copy) as store:
                store.save(4, arrays(4), {}, arrays(-4))
            assert not list(copy.glob(".*.tmp"))
        assert outcomes[-1] == expected
        assert all(outcome in ([True, True, False], expected) for outcome in outcomes)


def test_the_files_of_rounds_stay_byte_for_byte_when_keks_change(folder: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.glob("round-*")}

    was = contents()
    for work in (add, rewrap, retire):
        work(folder)
        assert contents() == was


def test_rotating_an_empty_store_works(tmp_path: Path) -> None:
    store = ModelStore.create(tmp_path / "m", KEK, "run", marks=None, signing_key=None)
    store.rotate_model_key()
    store.save(1, arrays(1), {}, arrays(-1))
    assert rounds_open(store)


def test_a_forged_file_is_not_given_a_slot(folder: Path) -> None:
    """Whoever lacks the signing key cannot have a file taken over into the new key."""
    store = open_store(folder)
    address = Address("model", store.store, "run", 3)
    path = store.path(3)
    path.write_bytes(
        seal(arrays(3), address=address, model_key=model_key(folder), signing_key=None)
    )
    with pytest.raises(VaultError, match="not signed"):
        store.rotate_model_key([SECOND_KEK])


def test_a_retired_kek_does_not_come_back_as_an_exchange(folder: Path) -> None:
    """Its holder puts the old model key into today's list, for the next writer to exchange to."""
    old = json.loads((folder / "keys.json").read_bytes())
    with open_store(folder) as store:
        store.retire_kek(SECOND_KEK.key_id)
        store.rotate_model_key()
        store.save(4, arrays(4), {}, arrays(-4))
    now = json.loads((folder / "keys.json").read_bytes())
    files = {path: path.read_bytes() for path in folder.glob("round-*")}
    for mac in (now["mac"], old["mac"]):
        forged = {**now, "upcoming": old["current"], "mac": mac}
        text = json.dumps(forged, ensure_ascii=False, sort_keys=True, indent=2) + "\n"
        (folder / "keys.json").write_text(text)
        for attempt in (lambda: open_store(folder), lambda: StoreReader(folder, KEK, marks=None)):
            with pytest.raises(TamperedError, match="code does not fit"):
                attempt()
        with pytest.raises(WrongKeyError):
            StoreReader(folder, SECOND_KEK, marks=None)
    assert {path: path.read_bytes() for path in folder.glob("round-*")} == files


def test_a_forged_exchange_is_not_finished_by_a_store_in_hand(folder: Path) -> None:
    old = json.loads((folder / "keys.json").read_bytes())
    rotate(folder)
    store = open_store(folder)
    now = json.loads((folder / "keys.json").read_bytes())
    text = json.dumps({**now, "upcoming": old["current"]}, sort_keys=True, indent=2) + "\n"
    (folder / "keys.json").write_text(text)
    with pytest.raises(TamperedError, match="code does not fit"):
        store.save(4, arrays(4), {}, arrays(-4))
    assert store.rounds() == [1, 2, 3]


@pytest.mark.parametrize("name", ["pwrite", "fsync", "replace"])
def test_a_writer_goes_on_after_a_disk_that_failed(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same store in hand, whose memory may say otherwise than the disk."""

    def fail(real: Step, args: tuple[object, ...]) -> object:
        raise OSError(5, "Input/output error")

    failed = 0
    for at in range(1, 100):
        copy = copy_folder(folder, folder.parent / f"again-{name}-{at}")
        with open_store(copy) as store:
            with monkeypatch.context() as patched:
                patch(patched, name, at, fail)
                try:
                    store.rotate_model_key([SECOND_KEK])
                except StoreError:
                    failed += 1
                else:
                    break
            if at % 2:
                store.add_kek(THIRD_KEK)
            store.save(4, arrays(4), {}, arrays(-4))
            assert rounds_open(store)
        assert_clean(copy)
        assert_sound(copy)
    assert failed == {"pwrite": 13, "fsync": 16, "replace": 3}[name]


def test_a_retired_kek_stays_retired_after_a_sync_that_failed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(real: Step, args: tuple[object, ...]) -> object:
        raise OSError(5, "Input/output error")

    with open_store(folder) as store:
        store.claim()
        with monkeypatch.context() as patched:
            # The first is that of the file, the second that of its name.
            patch(patched, "fsync", 2, fail)
            with pytest.raises(StoreError, match="may have been made or not"):
                store.retire_kek(SECOND_KEK.key_id)
        store.rewrap_kek()
    assert opening(folder) == [True, False, False]


def test_what_has_a_second_name_is_not_written_to(folder: Path, tmp_path: Path) -> None:
    """Nor is an exchange begun that could not be finished."""
    os.link(folder / "round-000002.fvlt", tmp_path / "precious")
    was, keys = (tmp_path / "precious").read_bytes(), (folder / "keys.json").read_bytes()
    with pytest.raises(StoreError, match=r"second name \(a hard link\)"):
        rotate(folder)
    assert (tmp_path / "precious").read_bytes() == was
    assert (folder / "keys.json").read_bytes() == keys
    (tmp_path / "precious").unlink()
    *_, stuck, _ = crashes(folder, "replace", before, rotate)
    os.link(stuck / "round-000002.fvlt", tmp_path / "precious")
    was = (tmp_path / "precious").read_bytes()
    with pytest.raises(StoreError, match=r"second name \(a hard link\)"):
        open_store(stuck).claim()
    assert (tmp_path / "precious").read_bytes() == was


def recorded(monkeypatch: pytest.MonkeyPatch, store: ModelStore) -> list[str]:
    """Return what a claim writes and forces to the disk."""
    events: list[str] = []
    real_pwrite, real_fsync = os.pwrite, os.fsync

    def pwrite(descriptor: int, data: memoryview, position: int) -> int:
        events.append(f"write {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        return real_pwrite(descriptor, data, position)

    def fsync(descriptor: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        real_fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", pwrite)
        patched.setattr(os, "fsync", fsync)
        store.claim()
    return events


@pytest.mark.parametrize("in_hand", [True, False])
def test_a_list_that_may_not_be_on_the_disk_clears_no_slot(
    folder: Path, monkeypatch: pytest.MonkeyPatch, in_hand: bool
) -> None:
    """After a power failure the old list could be there, and its key's slots gone."""

    def fail(real: Step, args: tuple[object, ...]) -> object:
        raise OSError(5, "Input/output error")

    with open_store(folder) as store:
        with monkeypatch.context() as patched:
            # A list, its name, five files, a list: the ninth is the name of the exchange.
            patch(patched, "fsync", 9, fail)
            with pytest.raises(StoreError, match="may have been made or not"):
                store.rotate_model_key([SECOND_KEK])
        assert json.loads((folder / "keys.json").read_bytes())["clearing"]
        if in_hand:
            events = recorded(monkeypatch, store)
    if not in_hand:
        events = recorded(monkeypatch, open_store(folder))
    assert events[0] == f"sync {folder.name}"
    assert "write round-000001.fvlt" in events
