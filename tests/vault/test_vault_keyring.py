"""``keys.json``: who opens a store, and what a hostile list can do."""

import json
import tracemalloc
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vault_files import KEK, KEK_SECRET, MODEL_KEY

from fedveil.vault.errors import (
    HeaderError,
    KekError,
    StoreError,
    TamperedError,
    VaultError,
    WrongKeyError,
)
from fedveil.vault.kek.interface import WrappedKey
from fedveil.vault.kek.key_file import KeyFileKek
from fedveil.vault.kek.passphrase import Costs, PassphraseKek
from fedveil.vault.keyfile import Key
from fedveil.vault.keylist import KeyList, SealedKeyList, WrappedModelKey
from fedveil.vault.keyring import Keyring, create_keys
from fedveil.vault.listfile import KEYS_NAME, read_keys, write_keys

STORE = "0123456789abcdef"
OTHER_KEK = KeyFileKek(Key(bytes(range(7, 39))))
THIRD_KEK = KeyFileKek(Key(bytes(range(8, 40))))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_keys(tmp_path, STORE, KEK)
    return tmp_path


def content(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / KEYS_NAME).read_bytes())
    return found


def put(folder: Path, fields: object) -> None:
    text = json.dumps(fields, ensure_ascii=False, sort_keys=True, indent=2)
    (folder / KEYS_NAME).write_bytes(f"{text}\n".encode())


class StrangeKek:
    """A provider that wraps without hiding anything; for what the key list itself must check."""

    name: ClassVar[str] = "strange"

    def __init__(self, key_id: str = "one", answer: bytes | None = None) -> None:
        self.key_id = key_id
        self._answer = answer

    def wrap(self, secret: bytes, context: bytes) -> WrappedKey:
        return WrappedKey(self.name, self.key_id, secret, {"version": 1})

    def unwrap(self, wrapped: WrappedKey, context: bytes) -> bytes:
        return wrapped.blob if self._answer is None else self._answer

    def rewrap(self, wrapped: WrappedKey, context: bytes) -> WrappedKey:
        return WrappedKey(self.name, self.key_id, wrapped.blob, {"version": 2})


def test_the_list_is_the_documented_one(folder: Path) -> None:
    found = content(folder)
    key_id = Keyring(folder, STORE, KEK).key.key_id
    assert {name: found[name] for name in ("format", "store", "upcoming", "clearing")} == {
        "format": "fedveil-keys-2",
        "store": STORE,
        "upcoming": None,
        "clearing": False,
    }
    current = found["current"]
    assert isinstance(current, dict)
    assert current["key_id"] == key_id
    assert [sorted(wrap) for wrap in current["wraps"]] == [
        ["blob", "key_id", "parameters", "provider"]
    ]


def test_the_model_key_is_not_in_the_list(folder: Path) -> None:
    secret = Keyring(folder, STORE, KEK).key.secret
    raw = (folder / KEYS_NAME).read_bytes()
    assert secret not in raw
    assert secret.hex().encode() not in raw
    assert KEK_SECRET not in raw


def test_every_store_has_a_model_key_of_its_own(tmp_path: Path) -> None:
    keys = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        create_keys(tmp_path / name, STORE, KEK)
        keys.add(Keyring(tmp_path / name, STORE, KEK).key)
    assert len(keys) == 2


def test_the_wrong_kek_is_told_which_ones_open(folder: Path) -> None:
    Keyring(folder, STORE, KEK).add_kek(StrangeKek("second"))
    with pytest.raises(WrongKeyError) as caught:
        Keyring(folder, STORE, OTHER_KEK)
    line = str(caught.value)
    assert OTHER_KEK.key_id in line
    assert f"these keys open it: file:{KEK.key_id}, strange:second" in line
    strange = WrappedModelKey("a" * 16, (StrangeKek().wrap(b"x", b""),))
    write_keys(folder, KeyList(STORE, strange), MODEL_KEY)
    with pytest.raises(WrongKeyError, match=f"not opened by file:{OTHER_KEK.key_id}"):
        Keyring(folder, STORE, OTHER_KEK)


def test_every_kek_of_the_list_opens_until_it_is_retired(folder: Path) -> None:
    keyring = Keyring(folder, STORE, KEK)
    keyring.add_kek(OTHER_KEK)
    keyring.add_kek(THIRD_KEK)
    for kek in (KEK, OTHER_KEK, THIRD_KEK):
        assert Keyring(folder, STORE, kek).key == keyring.key
    with pytest.raises(KekError, match=f"a key-encryption key {OTHER_KEK.key_id} already"):
        keyring.add_kek(OTHER_KEK)
    keyring.retire_kek(KEK.key_id)
    with pytest.raises(WrongKeyError):
        Keyring(folder, STORE, KEK)
    with pytest.raises(StoreError, match=f"no key-encryption key '{KEK.key_id}' opens"):
        keyring.retire_kek(KEK.key_id)
    keyring.retire_kek(OTHER_KEK.key_id)
    with pytest.raises(StoreError, match=r"the last key-encryption key.*destroy the store"):
        keyring.retire_kek(THIRD_KEK.key_id)
    assert Keyring(folder, STORE, THIRD_KEK).key == keyring.key


def test_a_kek_is_exchanged_without_its_old_version(folder: Path) -> None:
    keyring = Keyring(folder, STORE, KEK)
    keyring.add_kek(StrangeKek())
    before = keyring.keys.current.wraps
    Keyring(folder, STORE, StrangeKek()).rewrap()
    keyring.reload()
    assert keyring.keys.current.wraps[0] == before[0]
    assert dict(keyring.keys.current.wraps[1].parameters) == {"version": 2}
    keyring.rewrap()
    assert keyring.keys.current.wraps[0] != before[0], "with fresh randomness"
    assert Keyring(folder, STORE, KEK).key == keyring.key


def test_a_kek_takes_the_place_of_the_one_in_use(folder: Path) -> None:
    keyring = Keyring(folder, STORE, KEK)
    keyring.add_kek(StrangeKek())
    keyring.replace_kek(OTHER_KEK)
    assert [wrapped.key_id for wrapped in keyring.keys.current.wraps] == [OTHER_KEK.key_id, "one"]
    assert Keyring(folder, STORE, OTHER_KEK).key == keyring.key
    with pytest.raises(WrongKeyError):
        Keyring(folder, STORE, KEK)
    with pytest.raises(KekError, match="already"):
        keyring.replace_kek(StrangeKek())
    keyring.rewrap()
    assert Keyring(folder, STORE, OTHER_KEK).key == keyring.key


def test_at_most_sixteen_keks_open_a_store(folder: Path) -> None:
    keyring = Keyring(folder, STORE, KEK)
    for number in range(15):
        keyring.add_kek(StrangeKek(str(number)))
    with pytest.raises(KekError, match="1 to 16"):
        keyring.add_kek(StrangeKek("one too many"))
    assert len(Keyring(folder, STORE, KEK).keys.current.wraps) == 16


def test_a_list_of_another_store_is_refused(folder: Path) -> None:
    with pytest.raises(StoreError, match=f"belongs to the store {STORE}, not to {'f' * 16}"):
        Keyring(folder, "f" * 16, KEK)


def test_a_wrapped_key_of_another_store_does_not_open(folder: Path, tmp_path: Path) -> None:
    """Under the same KEK, and with the list's name of the store changed to fit."""
    (tmp_path / "other").mkdir()
    create_keys(tmp_path / "other", "f" * 16, KEK)
    put(folder, {**content(tmp_path / "other"), "store": STORE})
    with pytest.raises(TamperedError, match="does not open"):
        Keyring(folder, STORE, KEK)


def test_a_wrapped_key_does_not_open_as_another_model_key(folder: Path) -> None:
    current = content(folder)["current"]
    assert isinstance(current, dict)
    put(folder, {**content(folder), "current": {**current, "key_id": "f" * 16}})
    with pytest.raises(TamperedError, match="does not open"):
        Keyring(folder, STORE, KEK)


def test_a_provider_that_gives_another_key_is_not_believed(tmp_path: Path) -> None:
    create_keys(tmp_path, STORE, StrangeKek())
    for answer in (bytes(32), b"", bytes(33)):
        with pytest.raises(TamperedError, match=r"strange:one holds another"):
            Keyring(tmp_path, STORE, StrangeKek(answer=answer))


def test_a_changed_blob_does_not_open(folder: Path) -> None:
    keys = read_keys(folder, STORE).keys
    (wrapped,) = keys.current.wraps
    for place in range(len(wrapped.blob)):
        blob = bytearray(wrapped.blob)
        blob[place] ^= 1
        changed = WrappedKey(wrapped.provider, wrapped.key_id, bytes(blob), {})
        listed = KeyList(STORE, WrappedModelKey(keys.current.key_id, (changed,)))
        write_keys(folder, listed, MODEL_KEY)
        with pytest.raises(TamperedError):
            Keyring(folder, STORE, KEK)


def test_reading_again_tells_whether_the_key_is_another(folder: Path) -> None:
    reader, keyring = Keyring(folder, STORE, KEK), Keyring(folder, STORE, KEK)
    assert not reader.reload()
    new = keyring.begin_exchange([])
    assert not reader.reload()
    keyring.switch(new)
    assert reader.reload()
    assert reader.key == new == keyring.key
    assert reader.keys.clearing
    keyring.finish_exchange()
    assert not read_keys(folder, STORE).keys.clearing


def test_an_exchange_needs_every_kek(folder: Path) -> None:
    keyring = Keyring(folder, STORE, KEK)
    keyring.add_kek(OTHER_KEK)
    keyring.add_kek(StrangeKek("third"))
    before = (folder / KEYS_NAME).read_bytes()
    with pytest.raises(StoreError, match="would lock out strange:third: give"):
        keyring.begin_exchange([OTHER_KEK])
    with pytest.raises(WrongKeyError):
        keyring.begin_exchange([OTHER_KEK, StrangeKek("third"), THIRD_KEK])
    assert (folder / KEYS_NAME).read_bytes() == before
    keyring.switch(keyring.begin_exchange([StrangeKek("third"), OTHER_KEK]))
    for kek in (KEK, OTHER_KEK, StrangeKek("third")):
        assert Keyring(folder, STORE, kek).key == keyring.key


def test_a_missing_or_strange_file_is_named(folder: Path, tmp_path: Path) -> None:
    path = folder / KEYS_NAME
    moved = path.rename(folder / "moved")
    with pytest.raises(StoreError, match=r"has no keys.json.*restore the file from a copy"):
        Keyring(folder, STORE, KEK)
    path.symlink_to(moved)
    with pytest.raises(StoreError, match="symbolic link"):
        Keyring(folder, STORE, KEK)
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError):
        Keyring(folder, STORE, KEK)


def test_a_list_that_is_too_long_is_refused(folder: Path) -> None:
    (folder / KEYS_NAME).write_bytes(b" " * ((1 << 16) + 1))
    with pytest.raises(StoreError, match="longer than 65536 bytes"):
        Keyring(folder, STORE, KEK)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["AAAA", "file", STORE, KEK.key_id, "0123456789abcdee", b"x".hex()]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=10,
)


def places(fields: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the paths of all values in a JSON document."""
    inner: list[tuple[str | int, object]] = []
    if isinstance(fields, dict):
        inner = list(fields.items())
    elif isinstance(fields, list):
        inner = list(enumerate(fields))
    return [path, *(place for name, value in inner for place in places(value, (*path, name)))]


def replaced(fields: object, path: tuple[str | int, ...], value: object) -> object:
    if not path:
        return value
    if isinstance(fields, dict):
        return {**fields, path[0]: replaced(fields[path[0]], path[1:], value)}
    assert isinstance(fields, list)
    assert isinstance(path[0], int)
    return [
        replaced(each, path[1:], value) if place == path[0] else each
        for place, each in enumerate(fields)
    ]


@pytest.fixture
def valid(folder: Path) -> dict[str, object]:
    keyring = Keyring(folder, STORE, KEK)
    keyring.add_kek(StrangeKek())
    keyring.begin_exchange([StrangeKek()])
    return content(folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_value_anywhere_gives_one_line_at_worst(
    folder: Path, valid: dict[str, object], data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(places(valid)))
    changed = replaced(valid, path, data.draw(json_values))
    try:
        put(folder, changed)
    except UnicodeEncodeError:
        return
    try:
        Keyring(folder, STORE, KEK).upcoming_key()
    except VaultError as error:
        assert "\n" not in str(error)  # noqa: PT017 - it may open, too


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))
)
def test_any_bytes_give_one_line(folder: Path, raw: bytes) -> None:
    (folder / KEYS_NAME).write_bytes(raw)
    with pytest.raises(StoreError) as caught:
        Keyring(folder, STORE, KEK)
    assert "\n" not in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_list_has_one_form(folder: Path, valid: dict[str, object], data: st.DataObject) -> None:
    """Whatever parses is what would be written."""
    raw = bytearray(json.dumps(valid, sort_keys=True, indent=2).encode() + b"\n")
    assert SealedKeyList.from_bytes(bytes(raw)).to_bytes() == raw
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place : place + 1] = data.draw(st.binary(max_size=2))
    try:
        assert SealedKeyList.from_bytes(bytes(raw)).to_bytes() == raw
    except StoreError as error:
        assert "\n" not in str(error)  # noqa: PT017 - it may parse, too


@pytest.mark.parametrize(
    "text",
    [
        "[" * 65_000,
        "1" * 5_000,
        '{"format": "fedveil-keys-2", "format": "fedveil-keys-2"}',
        '{"format": NaN}',
        "null",
        '"fedveil-keys-2"',
    ],
)
def test_strange_json_is_refused(folder: Path, text: str) -> None:
    (folder / KEYS_NAME).write_text(text)
    with pytest.raises(StoreError, match="not a key list of the format fedveil-keys-2"):
        Keyring(folder, STORE, KEK)


def test_values_that_a_list_cannot_hold_are_refused() -> None:
    wrapped = WrappedKey("file", "one", b"x", {})
    key = WrappedModelKey("a" * 16, (wrapped,))
    with pytest.raises(KekError, match="1 to 16"):
        WrappedModelKey("a" * 16, ())
    with pytest.raises(HeaderError):
        WrappedModelKey("A" * 16, (wrapped,))
    with pytest.raises(KekError, match="already"):
        WrappedModelKey("a" * 16, (wrapped, WrappedKey("aws", "one", b"y", {})))
    for upcoming, clearing in ((key, False), (WrappedModelKey("b" * 16, (wrapped,)), True)):
        with pytest.raises(KekError, match="one other model key at a time"):
            KeyList(STORE, key, upcoming, clearing)


def test_a_list_changed_by_who_lacks_the_model_key_is_refused(folder: Path) -> None:
    keyring = Keyring(folder, STORE, KEK)
    keyring.add_kek(OTHER_KEK)
    before = content(folder)
    current = before["current"]
    assert isinstance(current, dict)
    first, second = current["wraps"]
    changes: list[dict[str, object]] = [
        {"clearing": True},
        {"upcoming": {**current, "key_id": "f" * 16}},
        {"current": {**current, "wraps": [first]}},
        {"current": {**current, "wraps": [second, first]}},
        {"current": {**current, "wraps": [first, {**second, "key_id": "another"}]}},
        {"mac": "0" * 64},
    ]
    for change in changes:
        put(folder, {**before, **change})
        for attempt in (lambda: Keyring(folder, STORE, KEK), keyring.reload):
            with pytest.raises(TamperedError, match=r"code does not fit.*restore it from a copy"):
                attempt()
    put(folder, before)
    assert not keyring.reload()


def test_a_list_in_an_exchange_bears_the_code_of_the_key_in_use(folder: Path) -> None:
    keyring = Keyring(folder, STORE, KEK)
    new = keyring.begin_exchange([])
    read_keys(folder, STORE).check(keyring.key)
    with pytest.raises(TamperedError):
        read_keys(folder, STORE).check(new)
    with pytest.raises(StoreError, match="is being exchanged"):
        keyring.add_kek(OTHER_KEK)
    keyring.switch(new)
    read_keys(folder, STORE).check(new)


@pytest.mark.parametrize("depth", [1, 100, 300, 900])
def test_a_list_that_is_a_bomb_takes_little_memory(folder: Path, depth: int) -> None:
    """Indented by two, deep nesting of many values is thousands of times longer."""
    count = ((1 << 16) - 2 * depth) // 2
    text = "[" * depth + "1," * (count - 1) + "1" + "]" * depth
    raw = json.dumps(content(folder), sort_keys=True, indent=2) + "\n"
    for bomb in (text, raw.replace('"upcoming": null', f'"upcoming": {text[2000:]}')):
        (folder / KEYS_NAME).write_text(bomb)
        tracemalloc.start()
        try:
            with pytest.raises(StoreError):
                Keyring(folder, STORE, KEK)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 8 << 20


def test_a_list_that_would_not_be_read_again_is_not_written(folder: Path) -> None:
    class LongKek(StrangeKek):
        def wrap(self, secret: bytes, context: bytes) -> WrappedKey:
            return WrappedKey(self.name, self.key_id, bytes(8000), {})

    keyring = Keyring(folder, STORE, KEK)
    for number in range(6):
        keyring.add_kek(LongKek(str(number)))
    before = (folder / KEYS_NAME).read_bytes()
    with pytest.raises(KekError, match="65536 are the most; retire"):
        keyring.add_kek(LongKek("6"))
    assert (folder / KEYS_NAME).read_bytes() == before
    assert keyring.stale
    keyring.settle()
    assert not keyring.stale


CHEAP = Costs(memory_kib=19 * 1024, passes=2, lanes=1)


def passphrase() -> PassphraseKek:
    return PassphraseKek(lambda: "correct horse battery staple", costs=CHEAP)


def sealed_again(folder: Path, key: Key, wraps: list[dict[str, object]]) -> None:
    """Put wraps into the list as somebody could who still has the model key."""
    current = {"key_id": key.key_id, "wraps": wraps}
    put(folder, {**content(folder), "current": current})
    write_keys(folder, read_keys(folder, STORE).keys, key)


def test_a_wrap_with_costs_that_are_not_allowed_hides_no_good_one(tmp_path: Path) -> None:
    create_keys(tmp_path, STORE, passphrase())
    key = Keyring(tmp_path, STORE, passphrase()).key
    current = content(tmp_path)["current"]
    assert isinstance(current, dict)
    (good,) = current["wraps"]
    bad = {**good, "key_id": "hostile"}
    bad["parameters"] = {**good["parameters"], "memory_kib": 1 << 30}
    sealed_again(tmp_path, key, [bad, good])
    assert Keyring(tmp_path, STORE, passphrase()).key == key
    sealed_again(tmp_path, key, [bad])
    with pytest.raises(KekError, match="memory_kib must be"):
        Keyring(tmp_path, STORE, passphrase())


def test_a_list_of_costly_passphrases_is_refused_before_any_is_stretched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_keys(tmp_path, STORE, passphrase())
    keyring = Keyring(tmp_path, STORE, passphrase())
    for _ in range(3):
        keyring.add_kek(passphrase())
    with pytest.raises(KekError, match="at most 4 passphrases"):
        keyring.add_kek(passphrase())
    keyring.add_kek(KEK)
    current = content(tmp_path)["current"]
    assert isinstance(current, dict)
    good = current["wraps"][0]
    wraps = [{**good, "key_id": f"passphrase-{number}"} for number in range(16)]
    put(tmp_path, {**content(tmp_path), "current": {**current, "wraps": wraps}})

    def stretched(**_: object) -> object:
        raise AssertionError("a passphrase was stretched")

    monkeypatch.setattr("fedveil.vault.kek.passphrase.Argon2id", stretched)
    with pytest.raises(StoreError, match="at most 4 passphrases"):
        Keyring(tmp_path, STORE, passphrase())
