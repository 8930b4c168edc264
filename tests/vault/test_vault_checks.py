"""An archive is checked by who can read none of it."""

from pathlib import Path

import numpy as np
import pytest
from vault_files import KEK, SIGNING_KEY, VERIFY_KEY

from fedveil.vault.checks import RoundCheck, check_signatures
from fedveil.vault.errors import StoreError
from fedveil.vault.signing import SigningKey
from fedveil.vault.store import ModelStore


def arrays(value: int) -> dict[str, np.ndarray]:
    return {"weight": np.full(30, value, dtype=np.float32)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return three rounds without their keys, as an archive may keep them."""
    folder = tmp_path / "model"
    with ModelStore.create(folder, KEK, "run", marks=None, signing_key=SIGNING_KEY) as store:
        for number in (1, 2, 3):
            store.save(number, arrays(number), {}, arrays(-number))
    (folder / "keys.json").unlink()
    return folder


def problems(folder: Path) -> list[str]:
    return [check.problem or "" for check in check_signatures(folder, VERIFY_KEY)]


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_all_is_well(folder: Path) -> None:
    assert check_signatures(folder, VERIFY_KEY) == [
        RoundCheck(1, False, None),
        RoundCheck(2, True, None),
        RoundCheck(3, True, None),
    ]


def test_another_signer_is_told(folder: Path) -> None:
    other = SigningKey.generate().verify_key
    found = check_signatures(folder, other)
    assert all("not signed by" in str(check.problem) for check in found)


def test_a_changed_model_is_named(folder: Path) -> None:
    flip(folder / "round-000002.fvlt", -1)
    found = problems(folder)
    assert found[0] == found[2] == ""
    assert "round-000002.fvlt: the encrypted stream is not the one" in found[1]


def test_a_changed_header_is_named(folder: Path) -> None:
    flip(folder / "round-000002.fvlt", 60)
    assert [bool(line) for line in problems(folder)] == [False, True, False]


def test_a_changed_state_is_named(folder: Path) -> None:
    flip(folder / "state" / "round-000003.fvlt", -1)
    assert [bool(line) for line in problems(folder)] == [False, False, True]


def test_a_changed_slot_is_not_seen_without_the_key(folder: Path) -> None:
    """Slots are not signed, so that they can be exchanged; they can only close a file."""
    path = folder / "round-000002.fvlt"
    flip(path, 10 + int.from_bytes(path.read_bytes()[6:10], "big") + 20)
    assert problems(folder) == ["", "", ""]


def test_rounds_that_changed_places_are_named(folder: Path) -> None:
    one, two = folder / "round-000001.fvlt", folder / "round-000002.fvlt"
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    found = problems(folder)
    assert "wrong place" in found[0]
    assert "wrong place" in found[1]
    assert found[2] == "", "round 2 did not open: nothing to compare with"


def test_files_of_another_store_of_the_same_signer_are_named(folder: Path, tmp_path: Path) -> None:
    with ModelStore.create(
        tmp_path / "other", KEK, "run", marks=None, signing_key=SIGNING_KEY
    ) as store:
        for number in (1, 2, 3):
            store.save(number, arrays(number), {}, arrays(-number))
    (folder / "round-000003.fvlt").write_bytes(store.path(3).read_bytes())
    assert "wrong place" in problems(folder)[2]


def test_an_unsigned_store_is_told(tmp_path: Path) -> None:
    with ModelStore.create(tmp_path / "m", KEK, "run", marks=None, signing_key=None) as store:
        store.save(1, arrays(1), {}, None)
    assert "not signed" in problems(tmp_path / "m")[0]


def test_what_is_no_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a model store"):
        check_signatures(tmp_path, VERIFY_KEY)
