from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vault_crash import Act, after, before, crashes
from vault_files import KEK, SIGNING_KEY

from fedveil.vault.errors import StoreError, TamperedError
from fedveil.vault.retention import KeepBest, rounds_to_remove
from fedveil.vault.store import ModelStore

ACCURACY = [0.2, 0.9, 0.5, 0.9, 0.4, 0.3]


def arrays(value: int) -> dict[str, np.ndarray]:
    return {"weight": np.full(30, value, dtype=np.float32)}


def open_store(folder: Path) -> ModelStore:
    return ModelStore(folder, KEK, marks=None, signing_key=SIGNING_KEY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    with ModelStore.create(folder, KEK, "run", marks=None, signing_key=SIGNING_KEY) as store:
        for number, accuracy in enumerate(ACCURACY, start=1):
            store.save(number, arrays(number), {"accuracy": accuracy}, arrays(number))
    return folder


def test_the_newest_and_the_best_stay(folder: Path) -> None:
    store = open_store(folder)
    assert store.gc(2, KeepBest("accuracy", 2, higher_is_better=True)) == [1, 3]
    assert store.rounds() == [2, 4, 5, 6]
    assert store.gc(1, KeepBest("accuracy", 1, higher_is_better=True)) == [2, 5]
    assert store.rounds() == [4, 6]
    assert store.gc(1) == [4]
    assert store.gc(1) == []
    assert store.rounds() == [6]
    assert store.load_state(6).header.round == 6
    assert [check.problem for check in store.verify()] == [None]


def test_files_are_gone_and_the_chain_bears_gaps(folder: Path) -> None:
    with open_store(folder) as store:
        store.gc(1, KeepBest("accuracy", 2, higher_is_better=True))
        assert sorted(path.name for path in folder.rglob("*.fvlt")) == [
            "round-000002.fvlt",
            "round-000004.fvlt",
            "round-000006.fvlt",
            "round-000006.fvlt",
        ]
        assert all(check.problem is None for check in store.verify())
        store.save(7, arrays(7), {}, None)
        assert all(check.problem is None for check in store.verify())
    assert store.show(7).header.previous == store.show(6).header.fingerprint()


def test_meta_that_nobody_vouches_for_is_not_believed(folder: Path) -> None:
    path = folder / "round-000001.fvlt"
    path.write_bytes(path.read_bytes().replace(b'"accuracy":0.2', b'"accuracy":9.2'))
    with pytest.raises(TamperedError):
        open_store(folder).gc(1, KeepBest("accuracy", 1, higher_is_better=True))
    assert len(open_store(folder).rounds()) == 6


@pytest.mark.parametrize("act", [before, after])
@pytest.mark.parametrize("name", ["unlink", "fsync"])
def test_a_crash_leaves_whole_rounds(folder: Path, name: str, act: Act) -> None:
    for copy in crashes(folder, name, act, lambda path: open_store(path).gc(2)):
        store = open_store(copy)
        assert all(check.problem is None for check in store.verify())
        assert store.rounds()[-2:] == [5, 6]
        assert store.load_state(6).header.round == 6
        store.gc(2)
        assert store.rounds() == [5, 6]


def test_a_folder_that_refuses_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(folder)

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.unlink", refuse)
    with pytest.raises(StoreError, match=r"cannot remove rounds.*Permission denied"):
        store.gc(1)


@pytest.mark.parametrize("keep_last", [0, -1])
def test_the_newest_cannot_be_removed(folder: Path, keep_last: int) -> None:
    with pytest.raises(StoreError, match="the newest always stays"):
        open_store(folder).gc(keep_last, KeepBest("accuracy", 1, higher_is_better=True))
    assert len(open_store(folder).rounds()) == 6


def test_a_metric_that_no_round_has_removes_nothing(folder: Path) -> None:
    with pytest.raises(StoreError, match="none of the 6 rounds has a number 'loss'"):
        open_store(folder).gc(1, KeepBest("loss", 1, higher_is_better=False))
    assert len(open_store(folder).rounds()) == 6
    with pytest.raises(StoreError, match="0 best rounds"):
        KeepBest("loss", 0, higher_is_better=True)


def test_an_empty_store_has_nothing_to_remove(tmp_path: Path) -> None:
    store = ModelStore.create(tmp_path / "m", KEK, "run", marks=None, signing_key=None)
    assert store.gc(3, KeepBest("loss", 1, higher_is_better=True)) == []


def test_words_and_truths_are_no_numbers() -> None:
    metas = {1: {"a": "9"}, 2: {"a": True}, 3: {"a": 1}, 4: {}}
    assert rounds_to_remove(metas, 1, KeepBest("a", 3, higher_is_better=True)) == [1, 2]


@given(
    st.dictionaries(st.integers(0, 50), st.integers(-3, 3), min_size=1),
    st.integers(1, 5),
    st.integers(1, 5),
    st.booleans(),
)
def test_what_is_kept_is_what_was_asked_for(
    scores: dict[int, int], last: int, count: int, higher: bool
) -> None:
    metas = {number: {"a": score} for number, score in scores.items()}
    removed = rounds_to_remove(metas, last, KeepBest("a", count, higher_is_better=higher))
    kept = sorted(set(scores) - set(removed))
    assert removed == sorted(removed)
    assert set(sorted(scores)[-last:]) <= set(kept)
    assert len(kept) <= last + count
    sign = 1 if higher else -1
    best = max(scores, key=lambda number: (sign * scores[number], number))
    assert best in kept
    extra = [number for number in kept if number not in sorted(scores)[-last:]]
    assert all(
        (sign * scores[gone], gone) < (sign * scores[stays], stays)
        for gone in removed
        for stays in extra
    )
