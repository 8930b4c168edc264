"""The journal never counts less than what was released, whatever happens to it."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.privacy.accounting import Release, pld_epsilon
from fedveil.privacy.journal import JournalError, PrivacyJournal

STEP = Release(0.25, 1.5, 4)
EVALUATION = Release(1.0, 20.0, 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "privacy.jsonl"


def test_an_intent_counts_in_full_without_an_answer(path: Path) -> None:
    PrivacyJournal(path).intend(1, ["client-0", "client-1"], [STEP, EVALUATION])
    again = PrivacyJournal(path)
    assert again.releases_by_client() == {
        "client-0": (STEP, EVALUATION),
        "client-1": (STEP, EVALUATION),
    }
    assert again.steps_by_client() == {"client-0": 4, "client-1": 4}


def test_each_attempt_counts(path: Path) -> None:
    journal = PrivacyJournal(path)
    assert journal.intend(1, ["client-0"], [STEP]).attempt == 1
    assert journal.intend(1, ["client-0"], [STEP]).attempt == 2
    assert journal.attempts(1) == 2
    assert journal.releases_by_client()["client-0"] == (Release(0.25, 1.5, 8),)


@pytest.mark.parametrize(("reported", "charged"), [(0, 4), (4, 4), (7, 7)])
def test_a_client_cannot_lower_its_count(path: Path, reported: int, charged: int) -> None:
    journal = PrivacyJournal(path)
    journal.done(journal.intend(1, ["client-0"], [STEP]), {"client-0": reported})
    assert journal.releases_by_client()["client-0"] == (Release(0.25, 1.5, charged),)
    assert journal.steps_by_client() == {"client-0": charged}


def test_an_answer_nobody_asked_for_is_refused(path: Path) -> None:
    journal = PrivacyJournal(path)
    intent = journal.intend(1, ["client-0"], [STEP])
    with pytest.raises(JournalError, match="client-9 answered without being asked"):
        journal.done(intent, {"client-9": 4})


def test_rounds_can_be_looked_at_one_by_one(path: Path) -> None:
    journal = PrivacyJournal(path)
    for number in (1, 2, 3):
        journal.intend(number, ["client-0"], [STEP])
    assert journal.releases_by_client(until_round=2)["client-0"] == (Release(0.25, 1.5, 8),)


@given(st.integers(0, 400))
def test_a_journal_cut_anywhere_keeps_every_whole_line(tmp_path_factory, cut: int) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("cut") / "privacy.jsonl"
    journal = PrivacyJournal(path)
    for number in (1, 2, 3):
        journal.intend(number, ["client-0"], [STEP])
    whole = path.read_bytes()
    cut = min(cut, len(whole))
    path.write_bytes(whole[:cut])
    kept = PrivacyJournal(path)
    assert len(kept.entries) == whole[:cut].count(b"\n")
    kept.intend(9, ["client-0"], [STEP])
    assert len(PrivacyJournal(path).entries) == len(kept.entries)


def test_a_damaged_line_stops_everything(path: Path) -> None:
    PrivacyJournal(path).intend(1, ["client-0"], [STEP])
    path.write_bytes(b'{"round": 1}\n' + path.read_bytes())
    with pytest.raises(JournalError, match=r"line 1: is not a journal entry"):
        PrivacyJournal(path)


def test_an_impossible_release_in_the_file_is_damage(path: Path) -> None:
    PrivacyJournal(path).intend(1, ["client-0"], [STEP])
    path.write_text(path.read_text().replace('"noise_multiplier":1.5', '"noise_multiplier":0.0'))
    with pytest.raises(JournalError, match="line 1"):
        PrivacyJournal(path)


def test_what_cannot_be_written_is_not_counted_as_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = PrivacyJournal(path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JournalError, match="No space left on device"):
        journal.intend(1, ["client-0"], [STEP])
    assert journal.entries == ()


def test_two_halves_cost_as_much_as_one_whole(tmp_path: Path) -> None:
    whole = PrivacyJournal(tmp_path / "whole")
    for number in range(1, 21):
        whole.intend(number, ["client-0"], [STEP])
    for part in (range(1, 8), range(8, 21)):
        half = PrivacyJournal(tmp_path / "half")
        for number in part:
            half.intend(number, ["client-0"], [STEP])
    epsilon = [
        pld_epsilon(PrivacyJournal(tmp_path / n).releases_by_client()["client-0"], 1e-5)
        for n in ("whole", "half")
    ]
    assert epsilon[0] == epsilon[1]


def test_two_processes_do_not_write_over_each_others_lines(path: Path) -> None:
    first = PrivacyJournal(path)
    first.intend(1, ["client-0"], [STEP])
    second = PrivacyJournal(path)
    first.intend(2, ["client-0"], [STEP])
    whole = path.read_bytes()
    with pytest.raises(JournalError, match="another process wrote"):
        second.intend(2, ["client-0"], [STEP])
    assert path.read_bytes() == whole
    assert PrivacyJournal(path).attempts(2) == 1
