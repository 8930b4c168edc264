"""Only rounds that pass every check are served; what fails one changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from served_run import answer, commit, config, new_run, run_of, some_rows, weights

from fedveil.errors import FedveilError
from fedveil.home import default_key_file, default_signing_key_file, marks_dir
from fedveil.server.inference.engine import Engine, ServedRound
from fedveil.server.inference.errors import RoundRefusedError, ServeError
from fedveil.server.inference.model_holder import ModelHolder
from fedveil.server.inference.source import open_source
from fedveil.server.inference.watcher import Watcher
from fedveil.server.reporting import write_report
from fedveil.server.storage import own_signing_key
from fedveil.tasks.partition import PartitionSpec
from fedveil.tasks.registry import create_task
from fedveil.vault.errors import SignatureError
from fedveil.vault.kek.registry import open_kek
from fedveil.vault.signing import SigningKey, load_signing_key
from fedveil.vault.store import ModelStore

BUILT_IN = ["adult", "breast-cancer", "digits", "fashion-mnist", "mnist", "shakespeare"]


class Follower:
    """A watcher with what it watches, looked with by hand."""

    def __init__(self, path: Path) -> None:
        source = open_source(path, None, None)
        self.engine = Engine(source)
        self.holder: ModelHolder[ServedRound] = ModelHolder(self.engine.load_newest())
        self.refusals = 0
        self.watcher = Watcher(
            source.reader, self.engine, self.holder, 60.0, refused=self._count_refusal
        )

    def _count_refusal(self) -> None:
        self.refusals += 1

    def answers_as(self, round_: int) -> bool:
        rows = some_rows(5)
        found = self.engine.run(self.holder.current, rows)
        return self.holder.current.round == round_ and np.array_equal(found, answer(round_, rows))


def test_a_round_answers_as_it_was_trained(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1, 2)
    follower = Follower(tmp_path / "run")
    assert follower.answers_as(2)
    current = follower.holder.current
    assert (current.run, current.version, current.epsilon) == ("digits-run", "2", 0.5)
    assert follower.engine.input.shape == [-1, 64]
    assert follower.engine.output.shape == [-1, 10]


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


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def _corrupt_stream(path: Path, _: Path) -> None:
    _flip(path, -20)


def _corrupt_head(path: Path, _: Path) -> None:
    _flip(path, 40)


def _truncated(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: Path, _: Path) -> None:
    path.write_bytes(b"")


def _another_round(path: Path, old: Path) -> None:
    shutil.copy(old, path)


def _link(path: Path, old: Path) -> None:
    path.unlink()
    path.symlink_to(old)


@pytest.mark.parametrize(
    "damage", [_corrupt_stream, _corrupt_head, _truncated, _empty, _another_round, _link]
)
def test_a_damaged_round_is_refused_once_and_the_old_one_goes_on(
    damage: Callable[[Path, Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_of(tmp_path / "run", 1)
    follower = Follower(tmp_path / "run")
    commit(folder, 2)
    whole = folder.store.path(2).read_bytes()
    damage(folder.store.path(2), folder.store.path(1))
    for _ in range(3):
        assert not follower.watcher.look()
    assert follower.answers_as(1)
    assert follower.refusals == 1
    lines = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].endswith("round 1 goes on")
    folder.store.path(2).unlink()
    folder.store.path(2).write_bytes(whole)
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


def _foreign_store(path: Path, signing_key: SigningKey | None) -> ModelStore:
    return ModelStore.create(
        path,
        open_kek(f"file:{default_key_file()}"),
        "digits-run",
        marks=None,
        signing_key=signing_key,
    )


def test_a_round_that_somebody_else_signed_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_of(tmp_path / "run", 1)
    follower = Follower(tmp_path / "run")
    meta = folder.store.load(1).header.meta
    # Whoever stole the model's key, but not the coordinator's, signs with a key of his own, in a
    # copy of the store that names it.
    thief = SigningKey.generate()
    run, stolen = tmp_path / "run" / "model", tmp_path / "stolen"
    (stolen / "state").mkdir(parents=True)
    fields = json.loads((run / "store.json").read_text())
    manifest = json.dumps(fields | {"verify_key": thief.verify_key.to_text()})
    (stolen / "store.json").write_text(manifest)
    shutil.copy(run / "keys.json", stolen)
    kek = open_kek(f"file:{default_key_file()}")
    with ModelStore(stolen, kek, marks=None, signing_key=thief) as store:
        store.save(2, weights(2), meta, None)
    (run / "store.json").write_text(manifest)
    shutil.copy(stolen / "round-000002.fvlt", run)
    assert not follower.watcher.look()
    assert follower.refusals == 1
    assert "sign" in caplog.text
    assert follower.answers_as(1)


def test_a_service_starts_only_on_signed_rounds_of_the_signer_that_is_named(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1)
    with pytest.raises(SignatureError, match="is a run of the coordinator"):
        open_source(tmp_path / "run", None, SigningKey.generate().verify_key)
    shutil.rmtree(tmp_path / "run" / "model")
    _foreign_store(tmp_path / "run" / "model", None)
    with pytest.raises(SignatureError, match="is not signed"):
        open_source(tmp_path / "run", None, None)


def test_another_coordinators_run_is_served_only_when_he_is_named(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1)
    theirs = load_signing_key(default_signing_key_file()).verify_key
    default_signing_key_file().unlink()
    own_signing_key()
    with pytest.raises(SignatureError, match="is a run of the coordinator"):
        open_source(tmp_path / "run", None, None)
    assert open_source(tmp_path / "run", None, theirs).reader.verify_key == theirs


def test_another_store_of_the_same_coordinator_is_refused(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1)
    run_of(tmp_path / "other", 1)
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.copytree(tmp_path / "other" / "model", tmp_path / "run" / "model")
    with pytest.raises(FedveilError, match="was put there from elsewhere"):
        open_source(tmp_path / "run", None, None)


def test_settings_that_were_changed_are_refused(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1)
    settings = tmp_path / "run" / "config.toml"
    settings.write_text(settings.read_text() + "\n")
    with pytest.raises(FedveilError, match="was changed since the run was begun"):
        open_source(tmp_path / "run", None, None)


def test_a_round_that_does_not_open_is_not_remembered_as_seen(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 1)
    (mark,) = marks_dir().glob("*.json")
    seen = mark.read_bytes()
    follower = Follower(tmp_path / "run")
    commit(folder, 2)
    whole = folder.store.path(2).read_bytes()
    _corrupt_stream(folder.store.path(2), folder.store.path(1))
    # As on a serving node, where nobody else raises the mark.
    mark.write_bytes(seen)
    assert not follower.watcher.look()
    assert follower.refusals == 1
    assert mark.read_bytes() == seen
    folder.store.path(2).write_bytes(whole)
    assert follower.watcher.look()
    assert mark.read_bytes() != seen


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_round_that_diverged_is_refused(value: float, tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 1)
    follower = Follower(tmp_path / "run")
    broken = weights(2)
    broken["1.weight"][3, 7] = value
    commit(folder, 2, broken)
    assert not follower.watcher.look()
    assert follower.refusals == 1
    assert follower.answers_as(1)
    with pytest.raises(RoundRefusedError, match="answers a golden input with NaN or infinity"):
        follower.engine.load_newest()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 1)
    follower = Follower(tmp_path / "run")
    wide = {name: np.concatenate([array, array]) for name, array in weights(2).items()}
    commit(folder, 2, wide)
    assert not follower.watcher.look()
    assert follower.answers_as(1)
    with pytest.raises(FedveilError, match="has float32 of shape"):
        follower.engine.load_newest()


def test_a_run_without_a_round_and_a_folder_without_a_run_are_refused(tmp_path: Path) -> None:
    new_run(tmp_path / "empty")
    with pytest.raises(FedveilError, match="has no round yet"):
        Engine(open_source(tmp_path / "empty", None, None)).load_newest()
    with pytest.raises(FedveilError, match="is not a run folder"):
        open_source(tmp_path, None, None)
    run_of(tmp_path / "run", 1)
    shutil.copytree(tmp_path / "run" / "model", tmp_path / "alone")
    with pytest.raises(ServeError, match="is a model store without a run"):
        open_source(tmp_path / "alone", None, None)
    assert open_source(tmp_path / "run" / "model", None, None).path == tmp_path / "run"


def test_the_report_is_named_by_its_hash_for_its_own_round_alone(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 1)
    source = open_source(tmp_path / "run", None, None)
    assert source.report_sha256(1) is None
    write_report(folder)
    assert len(source.report_sha256(1) or "") == 64
    assert source.report_sha256(2) is None
    (tmp_path / "run" / "report.json").write_text("[]")
    assert source.report_sha256(1) is None


@pytest.mark.parametrize("name", [*BUILT_IN, "heart-disease"])
def test_every_task_says_what_its_model_takes_without_data(name: str) -> None:
    scheme = "natural" if name == "heart-disease" else "iid"
    task = create_task(name, seed=0, partition=PartitionSpec(scheme))
    inputs = task.model_inputs()
    blank = torch.zeros((3, *inputs.row_shape), dtype=inputs.dtype)
    assert len(task.model()(blank)) == 3


@pytest.mark.parametrize("name", ["breast-cancer", "digits"])
def test_what_a_task_says_is_what_its_data_is(name: str) -> None:
    task = create_task(name, seed=0, partition=PartitionSpec("iid"))
    public = task.public_test()
    assert public is not None
    inputs = task.model_inputs()
    assert (tuple(public.x.shape[1:]), public.x.dtype) == (inputs.row_shape, inputs.dtype)


def test_the_settings_are_those_of_the_run(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1)
    assert open_source(tmp_path / "run", None, None).config == config()
