"""A run is served only if it is whole, of one coordinator, and says what it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from served_run import (
    config,
    new_run,
    run_of,
)

from fedveil.errors import FedveilError
from fedveil.home import default_key_file, default_signing_key_file
from fedveil.server.inference.devices import AS_TRAINED
from fedveil.server.inference.engine import Engine
from fedveil.server.inference.errors import ServeError
from fedveil.server.inference.oip import Limits
from fedveil.server.inference.source import _read_report, open_source
from fedveil.server.reporting import write_report
from fedveil.server.storage import own_signing_key
from fedveil.vault.errors import SignatureError
from fedveil.vault.kek.registry import open_kek
from fedveil.vault.signing import SigningKey, load_signing_key
from fedveil.vault.store import ModelStore


def _foreign_store(path: Path, signing_key: SigningKey | None) -> ModelStore:
    return ModelStore.create(
        path,
        open_kek(f"file:{default_key_file()}"),
        "digits-run",
        marks=None,
        signing_key=signing_key,
    )


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


def test_a_run_without_a_round_and_a_folder_without_a_run_are_refused(tmp_path: Path) -> None:
    new_run(tmp_path / "empty")
    with pytest.raises(FedveilError, match="has no round yet"):
        Engine(open_source(tmp_path / "empty", None, None), AS_TRAINED, Limits()).load_newest()
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


def test_the_settings_are_those_of_the_run(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1)
    assert open_source(tmp_path / "run", None, None).config == config()


def test_who_asks_often_has_the_report_read_once(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1)
    source = open_source(tmp_path / "run", None, None)
    report = tmp_path / "run" / "report.json"
    report.write_text('{"model": {"round": 1}}')
    reads = _read_report.cache_info().misses
    first = {source.report_sha256(1) for _ in range(5)}
    assert _read_report.cache_info().misses == reads + 1
    report.write_text('{"model": {"round": 1}, "more": 0}')
    assert first.isdisjoint({source.report_sha256(1), None})
    assert source.report_sha256(2) is None
