import errno
import hashlib
import itertools
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from vault_files import KEK, KEK_SECRET, SIGNING_KEY, VERIFY_KEY, MemorySink

from fedveil.vault.buffers import Shadow
from fedveil.vault.errors import (
    HeaderError,
    KekError,
    NotACheckpointError,
    SignatureError,
    StoreError,
    StoreLockedError,
    TamperedError,
    TensorError,
    TruncatedError,
    VaultError,
    WrongKeyError,
)
from fedveil.vault.header import Address
from fedveil.vault.kek.key_file import KeyFileKek
from fedveil.vault.keyfile import Key
from fedveil.vault.keyring import Keyring
from fedveil.vault.reader import StoreReader
from fedveil.vault.sealing import seal_to
from fedveil.vault.signing import SigningKey
from fedveil.vault.store import ModelStore, RoundCheck
from fedveil.vault.tensors import Array

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


def create(folder: Path, run: str = "digits") -> ModelStore:
    return ModelStore.create(folder, KEK, run, marks=None, signing_key=SIGNING_KEY)


def reopen(folder: Path) -> ModelStore:
    return ModelStore(folder, KEK, marks=None, signing_key=SIGNING_KEY)


def model_key(store: ModelStore) -> Key:
    return Keyring(store.directory, store.store, KEK).key


def forge(store: ModelStore, address: Address, round_: int = 4, **links: str) -> bytes:
    """Return a file that the coordinator itself made, of whatever it is asked to say."""
    sink = MemorySink()
    seal_to(
        sink,
        address,
        model(round_),
        {},
        model_key=model_key(store),
        signing_key=SIGNING_KEY,
        **links,  # type: ignore[arg-type]  # strings all
    )
    return bytes(sink.content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


@pytest.fixture
def store(folder: Path) -> ModelStore:
    return create(folder)


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
        "format": "fedveil-store-2",
        "run": "digits",
        "store": store.store,
        "verify_key": VERIFY_KEY.to_text(),
    }
    with pytest.raises(StoreError, match="has no round yet"):
        store.latest()


def test_rounds_are_saved_and_loaded(filled: ModelStore, folder: Path) -> None:
    for opened in (filled, reopen(folder)):
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
        "keys.json",
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
        with create(tmp_path / "model") as store:
            store.save(0, model(0), {}, state(0))
    finally:
        os.umask(before)
    for path in [tmp_path / "model", *(tmp_path / "model").rglob("*")]:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_no_known_bytes_are_in_any_file(filled: ModelStore, folder: Path) -> None:
    for name in files(folder):
        content = (folder / name).read_bytes()
        for secret in (
            KNOWN[:16],
            b"momentum",
            KEK_SECRET,
            model_key(filled).secret,
            np.full(4, 4, np.float32).tobytes(),
        ):
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
        create(folder, "other")
    assert reopen(folder).run == "digits"


def test_a_wrong_kek_is_refused_at_once(filled: ModelStore, folder: Path) -> None:
    other = KeyFileKek(Key.generate())
    with pytest.raises(WrongKeyError) as caught:
        ModelStore(folder, other, marks=None)
    line = str(caught.value)
    assert KEK.key_id in line
    assert other.key_id in line
    assert "\n" not in line


@pytest.mark.parametrize("run", ["", "two\nlines"])
def test_a_run_that_cannot_be_named_makes_no_store(folder: Path, run: str) -> None:
    with pytest.raises(HeaderError):
        create(folder, run)
    assert not folder.exists()


def test_what_is_no_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(StoreError, match="is not a model store"):
            reopen(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 4000,
        b'{"format": "fedveil-store-3", "run": "r", "store": "0123456789abcdef", '
        b'"verify_key": null}',
        *(
            b'{"format": "fedveil-store-2", ' + rest
            for rest in (
                b'"run": "", "store": "0123456789abcdef", "verify_key": null}',
                b'"run": "r", "store": "0123", "verify_key": null}',
                b'"run": "r", "store": 5, "verify_key": null}',
                b'"run": "r", "store": "0123456789abcdef"}',
                b'"run": "r", "store": "0123456789abcdef", "verify_key": ""}',
                b'"run": "r", "store": "0123456789abcdef", "verify_key": 5}',
                b'"run": "r", "store": "0123456789abcdef", "verify_key": null, "more": 1}',
            )
        ),
    ],
)
def test_a_malformed_description_is_refused(
    filled: ModelStore, folder: Path, content: bytes
) -> None:
    (folder / "store.json").write_bytes(content)
    with pytest.raises(StoreError, match="of the format fedveil-store-2"):
        reopen(folder)


def test_a_renamed_round_is_refused(filled: ModelStore, folder: Path) -> None:
    filled.path(4).rename(folder / "round-000005.fvlt")
    with pytest.raises(StoreError, match=r"wrong place.*round 4.*round 5.*belongs"):
        filled.latest()


def test_a_round_of_another_run_is_refused(filled: ModelStore) -> None:
    for address in (
        Address("model", filled.store, "other", 4),
        Address("model", "f" * 16, "digits", 4),
    ):
        filled.path(4).write_bytes(forge(filled, address))
        with pytest.raises(StoreError, match=r"wrong place: this is .*of run 'digits' .*belongs"):
            filled.load(4)


def test_a_state_in_the_place_of_a_model_is_refused(filled: ModelStore, folder: Path) -> None:
    (folder / "state" / "round-000004.fvlt").replace(filled.path(4))
    with pytest.raises(StoreError, match="this is the strategy-state of round 4"):
        filled.load(4)


def test_a_round_of_another_store_under_the_same_kek_is_refused(
    filled: ModelStore, tmp_path: Path
) -> None:
    with create(tmp_path / "other") as other:
        other.save(4, model(4), {}, None)
    filled.path(4).write_bytes(other.path(4).read_bytes())
    with pytest.raises(WrongKeyError, match=model_key(filled).key_id):
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
    real = os.preadv

    def failing(descriptor: int, buffers: list[memoryview], position: int) -> int:
        if "round-000002" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, buffers, position)

    monkeypatch.setattr(os, "preadv", failing)
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
    lonely.write_bytes(forge(filled, Address("strategy-state", filled.store, "digits", 5)))
    with pytest.raises(StoreError, match="keeps no strategy state of round 5"):
        filled.load_state(5)
    filled.save(5, model(5), {}, None)
    assert not list(folder.rglob("*.tmp"))
    assert not lonely.exists(), "the state of an attempt that failed must not join another attempt"


WRITER = """
import sys
from pathlib import Path
import numpy as np
from vault_files import KEK, SIGNING_KEY
from fedveil.vault.store import ModelStore
store = ModelStore(Path(sys.argv[1]), KEK, marks=None, signing_key=SIGNING_KEY)
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
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
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
    other = reopen(folder)
    with other:
        other.save(5, model(5), {}, None)
        with pytest.raises(StoreLockedError):
            filled.save(6, model(6), {}, None)
        other.save(6, model(6), {}, None)
    filled.save(7, model(7), {}, None)
    with pytest.raises(StoreLockedError):
        other.save(8, model(8), {}, None)


def test_a_forgotten_store_gives_its_lock_back(filled: ModelStore, folder: Path) -> None:
    reopen(folder).save(5, model(5), {}, None)
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
        create(tmp_path / "other")
    assert holds(filled, 4)


def test_a_store_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "model", tmp_path / "none" / "model"):
        with pytest.raises(StoreError, match="cannot make a model store"):
            create(folder)


def test_no_error_shows_a_key(filled: ModelStore, folder: Path) -> None:
    filled.path(4).write_bytes(b"FVLT2\n")
    lines = [check.problem or "" for check in filled.verify()]
    with pytest.raises(WrongKeyError) as caught:
        ModelStore(folder, KeyFileKek(Key.generate()), marks=None)
    shown = "".join([*lines, str(caught.value), repr(filled), repr(filled.load(1))])
    for secret in (KEK_SECRET, model_key(filled).secret, SIGNING_KEY.secret):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown


def test_a_store_of_version_one_is_refused_by_name(folder: Path) -> None:
    folder.mkdir()
    (folder / "store.json").write_text(
        '{"format": "fedveil-store-1", "run": "digits", "key_id": "0123456789abcdef"}'
    )
    with pytest.raises(StoreError, match=r"of version 1, which this Fedveil no longer reads"):
        reopen(folder)
    with pytest.raises(StoreError, match="is a model store already"):
        create(folder)


def test_a_creation_that_was_cut_off_is_begun_anew(folder: Path) -> None:
    create(folder)
    (folder / "store.json").unlink()
    with pytest.raises(StoreError, match="is not a model store"):
        reopen(folder)
    with create(folder, "again") as store:
        store.save(1, model(1), {}, None)
    assert holds(reopen(folder), 1)


def test_a_reader_needs_no_signing_key_and_cannot_save(filled: ModelStore, folder: Path) -> None:
    assert holds(StoreReader(folder, KEK, marks=None), 4)
    store = ModelStore(folder, KEK, marks=None)
    assert holds(store, 4)
    before = files(folder)
    with pytest.raises(SignatureError, match=f"needs the signing key of {VERIFY_KEY.to_text()}"):
        store.save(5, model(5), {}, None)
    assert files(folder) == before


def test_a_store_without_signatures_works_and_says_so(folder: Path) -> None:
    with ModelStore.create(folder, KEK, "digits", marks=None, signing_key=None) as store:
        store.save(1, model(1), {}, state(1))
    reader = StoreReader(folder, KEK, marks=None)
    assert reader.verify_key is None
    assert not reader.show(1).signed
    assert holds(store, 1)
    with pytest.raises(SignatureError, match="is not signed, but"):
        StoreReader(folder, KEK, marks=None, verify_key=VERIFY_KEY)
    with pytest.raises(SignatureError, match="is not signed, but"):
        ModelStore(folder, KEK, marks=None, signing_key=SIGNING_KEY)


def test_a_signature_cannot_be_demanded_of_somebody_else(filled: ModelStore, folder: Path) -> None:
    other = SigningKey.generate()
    with pytest.raises(SignatureError, match="names the verify key"):
        StoreReader(folder, KEK, marks=None, verify_key=other.verify_key)
    with pytest.raises(SignatureError, match="names the verify key"):
        ModelStore(folder, KEK, marks=None, signing_key=other)
    with pytest.raises(SignatureError, match="not of one pair"):
        ModelStore(folder, KEK, marks=None, signing_key=SIGNING_KEY, verify_key=other.verify_key)


def rewrite(folder: Path, verify_key: str | None) -> None:
    fields = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps({**fields, "verify_key": verify_key}))


def unsigned(store: ModelStore, round_: int, signing_key: SigningKey | None) -> bytes:
    """Return a round as a serving machine could make it, which holds the model key."""
    sink = MemorySink()
    address = Address("model", store.store, store.run, round_)
    previous = store.show(round_ - 1).header.fingerprint()
    seal_to(
        sink,
        address,
        {"weight": np.full((4, 5), 666, np.float32)},
        {},
        model_key=model_key(store),
        signing_key=signing_key,
        previous=previous,
    )
    return bytes(sink.content)


@pytest.mark.parametrize("forger", [None, SigningKey(bytes(32))], ids=["unsigned", "other"])
def test_a_round_that_the_coordinator_did_not_sign_is_refused(
    filled: ModelStore, folder: Path, forger: SigningKey | None
) -> None:
    (folder / "round-000005.fvlt").write_bytes(unsigned(filled, 5, forger))
    for read in (
        filled.latest,
        filled.newest,
        lambda: filled.load(5),
        lambda: filled.show(5),
        lambda: filled.load_tensors(5, ["weight"]),
        lambda: filled.load_into(5, {"weight": np.zeros((4, 5), np.float32)}),
        lambda: reopen(folder).claim(),
    ):
        with pytest.raises(SignatureError, match="not signed"):
            read()
    assert "not signed" in str(filled.verify()[4].problem)


@pytest.mark.parametrize("named", [None, SigningKey(bytes(32)).verify_key.to_text()])
def test_who_knows_the_verify_key_is_not_fooled_by_the_store(
    filled: ModelStore, folder: Path, named: str | None
) -> None:
    """A forger with the model key changes the store's own word about its signer, too."""
    (folder / "round-000005.fvlt").write_bytes(unsigned(filled, 5, SigningKey(bytes(32))))
    rewrite(folder, named)
    assert StoreReader(folder, KEK, marks=None).load(5), "the attack works on who trusts the store"
    with pytest.raises(SignatureError, match="is demanded"):
        StoreReader(folder, KEK, marks=None, verify_key=VERIFY_KEY)


@pytest.mark.parametrize("place", ["digest", "signature"])
def test_a_changed_seal_is_refused(filled: ModelStore, place: str) -> None:
    data = bytearray(filled.path(4).read_bytes())
    start = 10 + int.from_bytes(data[6:10], "big") + 192
    data[start if place == "digest" else start + 40] ^= 1
    filled.path(4).write_bytes(data)
    with pytest.raises(SignatureError):
        filled.load(4)


def test_rounds_are_chained(filled: ModelStore) -> None:
    headers = [filled.show(number).header for number in filled.rounds()]
    assert headers[0].previous == ""
    for before, header in itertools.pairwise(headers):
        start = before.bound()
        assert filled.path(before.round).read_bytes().startswith(start)
        assert header.previous == hashlib.sha256(start).hexdigest()
    assert filled.load_state(4).header.previous == headers[2].fingerprint()
    assert filled.load_state(4).header.fingerprint() == headers[3].state


def test_a_round_of_another_history_is_found(filled: ModelStore) -> None:
    """The coordinator did make it: in an attempt that was set back, say."""
    address = Address("model", filled.store, filled.run, 2)
    previous = filled.show(1).header.fingerprint()
    filled.path(2).write_bytes(forge(filled, address, 2, previous=previous))
    assert holds(filled, 2)
    problems = {check.round: check.problem for check in filled.verify()}
    assert [number for number, problem in problems.items() if problem] == [3]
    assert "does not follow from round 2" in str(problems[3])


def test_a_state_of_another_attempt_is_refused(filled: ModelStore, folder: Path) -> None:
    address = Address("strategy-state", filled.store, filled.run, 4)
    previous = filled.show(3).header.fingerprint()
    path = folder / "state" / "round-000004.fvlt"
    path.write_bytes(forge(filled, address, 4, previous=previous))
    with pytest.raises(StoreError, match="not the strategy state that was saved with the model"):
        filled.load_state(4)
    assert "another one was put in its place" in str(filled.verify()[3].problem)


def test_live_arrays_are_filled(filled: ModelStore) -> None:
    live: dict[str, Array] = {name: np.zeros_like(array) for name, array in model(0).items()}
    shadow = Shadow()
    for number in (2, 4):
        header = filled.load_into(number, live, shadow)
        assert header.round == number
        assert (live["weight"] == number).all()
    with pytest.raises(TensorError):
        filled.load_into(3, {"weight": live["weight"]})
    with pytest.raises(StoreError, match="has no round 9"):
        filled.load_into(9, live)
    assert (live["weight"] == 4).all()


def test_some_tensors_are_loaded(filled: ModelStore) -> None:
    checkpoint = filled.load_tensors(3, ["weight"])
    assert checkpoint.header.round == 3
    assert list(checkpoint.tensors) == ["weight"]
    assert (checkpoint.tensors["weight"] == 3).all()
    with pytest.raises(TensorError, match="no tensor 'bias'"):
        filled.load_tensors(3, ["bias"])


def test_a_round_is_shown(filled: ModelStore) -> None:
    info = filled.show(3)
    assert dict(info.header.meta) == {"loss": 1 / 3}
    assert info.signed
    assert info.has_state
    assert info.model_keys == (model_key(filled).key_id,)
    assert info.file_bytes == filled.path(3).stat().st_size
    assert not filled.show(2).has_state
    data = bytearray(filled.path(3).read_bytes())
    data[30] ^= 1
    filled.path(3).write_bytes(data)
    with pytest.raises(VaultError):
        filled.show(3)


def test_the_newest_round_is_named(filled: ModelStore, tmp_path: Path) -> None:
    assert filled.newest() == 4
    with pytest.raises(StoreError, match="has no round yet"):
        create(tmp_path / "empty").newest()


def test_keks_are_listed_added_and_retired(filled: ModelStore, folder: Path) -> None:
    other = KeyFileKek(Key(bytes(range(9, 41))))
    filled.add_kek(other)
    assert filled.keks() == (("file", KEK.key_id), ("file", other.key_id))
    filled.rewrap_kek()
    filled.retire_kek(KEK.key_id)
    assert holds(StoreReader(folder, other, marks=None), 4)
    with pytest.raises(WrongKeyError):
        reopen(folder)
    with pytest.raises(StoreLockedError):
        ModelStore(folder, other, marks=None).add_kek(KEK)


def test_a_kek_takes_the_place_of_another(filled: ModelStore, folder: Path) -> None:
    other = KeyFileKek(Key(bytes(range(9, 41))))
    filled.replace_kek(other)
    assert filled.keks() == (("file", other.key_id),)
    filled.rewrap_kek()
    assert holds(StoreReader(folder, other, marks=None), 4)
    with pytest.raises(WrongKeyError, match=other.key_id):
        reopen(folder)
    filled.add_kek(KEK)
    with pytest.raises(KekError, match="already"):
        filled.replace_kek(KEK)
    assert filled.keks() == (("file", other.key_id), ("file", KEK.key_id))


def test_only_the_writer_changes_keys(filled: ModelStore, folder: Path) -> None:
    before = (folder / "keys.json").read_bytes()
    other = reopen(folder)
    other.claim()
    for change in (
        lambda: filled.add_kek(KeyFileKek(Key.generate())),
        lambda: filled.retire_kek(KEK.key_id),
        filled.rewrap_kek,
        lambda: filled.replace_kek(KeyFileKek(Key.generate())),
        filled.rotate_model_key,
        lambda: filled.gc(1),
    ):
        with pytest.raises(StoreLockedError):
            change()
    assert (folder / "keys.json").read_bytes() == before


def test_a_state_folder_that_is_a_link_leads_nowhere(filled: ModelStore, tmp_path: Path) -> None:
    """Through it, one store would remove the rounds of another."""
    filled.close()
    with ModelStore.create(
        tmp_path / "victim", KEK, "digits", marks=None, signing_key=SIGNING_KEY
    ) as victim:
        for number in range(1, 6):
            victim.save(number, model(number), {}, None)
    states = filled.directory / "state"
    states.rename(tmp_path / "away")
    states.symlink_to(tmp_path / "victim")
    before = {path: path.read_bytes() for path in (tmp_path / "victim").rglob("*.fvlt")}
    assert len(before) == 5
    newest = filled.newest()
    for attempt in (
        lambda: filled.save(newest + 1, model(newest + 1), {}, state(newest + 1)),
        lambda: filled.save(newest + 1, model(newest + 1), {}, None),
        lambda: filled.gc(1),
        lambda: filled.rotate_model_key(),
        lambda: filled.load_state(newest),
        lambda: filled.verify(),
    ):
        with pytest.raises(StoreError, match="state is not a folder of its own") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in (tmp_path / "victim").rglob("*.fvlt")} == before
    assert filled.newest() == newest


def test_a_folder_with_the_name_of_a_leftover_blocks_nothing(filled: ModelStore) -> None:
    (filled.directory / ".x.tmp").mkdir()
    (filled.directory / "state" / ".y.tmp").mkdir()
    newest = filled.newest()
    filled.save(newest + 1, model(newest + 1), {}, state(newest + 1))
    assert filled.newest() == newest + 1
