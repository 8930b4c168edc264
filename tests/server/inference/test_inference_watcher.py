"""Rounds that pass every check take over; what fails one is refused and disturbs nothing."""

from __future__ import annotations

import json
import re
import shutil
import threading
from pathlib import Path

import pytest
from served_attacks import DAMAGES, FORGERIES, Attack, put, seal, set_back
from served_follower import Follower
from served_load import Load
from served_run import (
    commit,
    run_of,
    serving,
)

from fedveil.home import marks_dir
from fedveil.server.inference.service import InferenceService
from fedveil.vault.signing import SigningKey

ATTACKS = {**DAMAGES, **FORGERIES}
NAMES = [name.replace(" ", "-") for name in ATTACKS]

SAYS = {
    "corrupt stream": "is not authentic",
    "corrupt head": "swapped or changed|header of the checkpoint is wrong",
    "truncated": "bytes are missing at the end",
    "longer": "bytes follow",
    "empty": "not an encrypted checkpoint",
    "another round": "in the wrong place",
    "link": "is a symbolic link",
    "folder": "is not a regular file",
    "unsigned": "not signed, where the coordinator",
    "signed by another": "not signed by the coordinator",
    "under another key": "key",
}


SET_BACK = {False: "an older copy of the store was put back", True: "round 3 was served from it"}


def refused(service: InferenceService) -> float:
    for line in service.metrics.text().decode().splitlines():
        if line.startswith("fedveil_refused_rounds_total "):
            return float(line.split()[1])
    raise AssertionError("refusals are not counted")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [told for told in caplog.messages if told.startswith("refused: ")]


def test_bad_rounds_under_load_are_refused_and_good_ones_take_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, done = run_of(tmp_path / "run", 1), threading.Event()
    with serving(tmp_path / "run") as (service, url):
        service.watcher.start()
        load = Load(url, 16, lambda _: done.is_set())
        for round_, (name, attack) in enumerate(ATTACKS.items(), start=2):
            take_away = put(folder, round_, attack, room(tmp_path, name))
            load.wait_for(lambda round_=round_: len(lines(caplog)) == round_ - 1)
            before = load.count
            load.wait_for(lambda before=before: load.count >= before + 50)
            assert service.holder.current.round == round_ - 1
            assert refused(service) == len(lines(caplog)) == round_ - 1
            assert re.search(SAYS[name], lines(caplog)[-1])
            assert lines(caplog)[-1].endswith(f"; round {round_ - 1} goes on")
            take_away()
            commit(folder, round_)
            load.wait_for(lambda round_=round_: str(round_) in load.seen)
        done.set()
        load.finish()


def room(path: Path, name: str) -> Path:
    made = path / name.replace(" ", "-")
    made.mkdir()
    return made


@pytest.mark.parametrize("forgets", [False, True], ids=["marks", "no-marks"])
def test_an_older_store_under_load_is_refused_until_it_grows(
    forgets: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, done = run_of(tmp_path / "run", 1, 2, 3), threading.Event()
    with serving(tmp_path / "run") as (service, url):
        load = Load(url, 16, lambda _: done.is_set())
        load.wait_for(lambda: load.count >= 50)
        if forgets:
            shutil.rmtree(marks_dir())
        put_back = set_back(folder, 3, tmp_path)
        service.watcher.start()
        load.wait_for(lambda: len(lines(caplog)) == 1)
        before = load.count
        load.wait_for(lambda: load.count >= before + 50)
        assert set(load.seen) == {"3"}
        (line,) = lines(caplog)
        assert refused(service) == 1
        assert line.endswith("; round 3 goes on")
        assert SET_BACK[forgets] in line
        put_back()
        commit(folder, 4)
        load.wait_for(lambda: "4" in load.seen)
        done.set()
        load.finish()


def test_new_rounds_take_over_and_the_last_one_can_come_back(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 1)
    follower = Follower(tmp_path / "run")
    assert not follower.watcher.look()
    commit(folder, 2)
    commit(folder, 3)
    assert follower.watcher.look()
    assert follower.answers_as(3)
    assert follower.holder.roll_back()
    assert not follower.watcher.look()
    assert follower.answers_as(1)
    commit(folder, 4)
    assert follower.watcher.look()
    assert follower.answers_as(4)
    assert follower.refusals == 0


@pytest.mark.parametrize("attack", list(ATTACKS.values()), ids=NAMES)
def test_a_bad_round_is_refused_once_and_the_old_one_goes_on(
    attack: Attack, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_of(tmp_path / "run", 1)
    follower = Follower(tmp_path / "run")
    (tmp_path / "room").mkdir()
    take_away = put(folder, 2, attack, tmp_path / "room")
    for _ in range(3):
        assert not follower.watcher.look()
    assert follower.answers_as(1)
    assert follower.refusals == 1
    lines = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].endswith("round 1 goes on")
    take_away()
    commit(folder, 2)
    assert follower.watcher.look()
    assert follower.answers_as(2)


def test_a_store_that_was_set_back_is_refused(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 1, 2)
    follower = Follower(tmp_path / "run")
    folder.store.path(2).unlink()
    assert not follower.watcher.look()
    assert follower.refusals == 1
    assert follower.answers_as(2)
    # Also when what was seen is forgotten on the disk.
    shutil.rmtree(marks_dir())
    (tmp_path / "run" / "model" / "round-000001.fvlt").touch()
    follower.watcher.look()
    assert follower.answers_as(2)


def test_a_round_that_somebody_else_signed_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_of(tmp_path / "run", 1)
    follower = Follower(tmp_path / "run")
    # Whoever stole the model's key, but not the coordinator's, signs with a key of his own, and
    # names it in the store.
    thief = SigningKey.generate()
    named = thief.verify_key.to_text()
    sealed = seal(folder, 2, tmp_path, thief, verify_key=named)
    manifest = tmp_path / "run" / "model" / "store.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"verify_key": named}))
    sealed.rename(folder.store.path(2))
    assert not follower.watcher.look()
    assert follower.refusals == 1
    assert "sign" in caplog.text
    assert follower.answers_as(1)


def test_a_round_that_does_not_open_is_not_remembered_as_seen(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 1)
    (mark,) = marks_dir().glob("*.json")
    seen = mark.read_bytes()
    follower = Follower(tmp_path / "run")
    commit(folder, 2)
    whole = bytearray(folder.store.path(2).read_bytes())
    whole[-20] ^= 1
    folder.store.path(2).write_bytes(whole)
    # As on a serving node, where nobody else raises the mark.
    mark.write_bytes(seen)
    assert not follower.watcher.look()
    assert follower.refusals == 1
    assert mark.read_bytes() == seen
    whole[-20] ^= 1
    folder.store.path(2).write_bytes(whole)
    assert follower.watcher.look()
    assert mark.read_bytes() != seen
