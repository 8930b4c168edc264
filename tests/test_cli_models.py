"""Encrypted models by command: shown, checked, shared, pruned, re-keyed, destroyed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from fedveil.cli import app
from fedveil.errors import FedveilError
from fedveil.server.run_folder import RunFolder, open_model_store, read_info
from fedveil.simulations.scenarios import find_scenario
from fedveil.simulations.simulate import simulate
from fedveil.vault.errors import (
    RollbackError,
    SignatureError,
    StoreDestroyedError,
    StoreError,
    WrongKeyError,
)

ROUNDS = 4
PASSPHRASE = "correct horse battery staple"  # noqa: S105


class Silent:
    def started(self, *_: object) -> None: ...
    def reply(self, *_: object) -> None: ...
    def round_done(self, *_: object) -> None: ...
    def warning(self, _: str) -> None: ...


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a home, and a run of four rounds that was made from there."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDVEIL_HOME", str(place / "home"))
        patch.chdir(place)
        config = find_scenario("digits").config([("federation.rounds", ROUNDS)])
        simulate(config, Path("run"), Silent(), kek="file:home/keys/model.key")
    return place


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the run, in a folder of this test's own."""
    place = tmp_path / "place"
    shutil.copytree(trained, place)
    # It remembers its key by an absolute path.
    info = json.loads((place / "run" / "run.json").read_text())
    info["kek"] = f"file:{place / 'home' / 'keys' / 'model.key'}"
    (place / "run" / "run.json").write_text(json.dumps(info))
    monkeypatch.setenv("FEDVEIL_HOME", str(place / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(place)
    return place / "run"


def fedveil(*arguments: object, answer: str | None = None) -> str:
    """Return what a command printed; its mistake is raised as the one line that users see."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], input=answer)
    if isinstance(result.exception, FedveilError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def weights(run: Path, kek: str | None = None) -> dict[str, np.ndarray]:
    return dict(open_model_store(run, kek).latest().tensors)


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[n], right[n]) for n in left)


def test_a_relative_key_file_is_remembered_by_its_absolute_path(trained: Path) -> None:
    assert read_info(trained / "run").kek == f"file:{trained / 'home' / 'keys' / 'model.key'}"


def test_show_says_who_signed_and_who_can_open_it(run: Path) -> None:
    shown = fedveil("models", "show", run)
    assert fedveil("keys", "show-signer").strip() in shown
    assert open_model_store(run).keks()[0][1] in shown
    assert "round          4" in shown
    assert "accuracy" in shown
    first = fedveil("models", "show", run, "--round", 1)
    assert "nothing: the first round" in first
    with pytest.raises(StoreError, match="has no round 9"):
        fedveil("models", "show", run, "--round", 9)


def test_verify_with_the_right_signer_and_with_another(run: Path, tmp_path: Path) -> None:
    signer = fedveil("keys", "show-signer").strip()
    assert fedveil("models", "verify", run, "--signer", signer).count("ok") == ROUNDS
    other = "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqo="
    with pytest.raises(SignatureError):
        fedveil("models", "verify", run, "--signer", other)
    stranger = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
    with pytest.raises(SignatureError, match="not by 11qYAYK"):
        fedveil("models", "verify", run, "--signer", stranger)


def test_an_archive_is_checked_by_who_cannot_read_it(run: Path) -> None:
    signer = fedveil("keys", "show-signer").strip()
    (run / "model" / "keys.json").unlink()
    only = ("models", "verify", run, "--signatures-only")
    assert fedveil(*only, "--signer", signer).count("ok") == ROUNDS
    with pytest.raises(FedveilError, match="needs --signer"):
        fedveil(*only)
    path = run / "model" / "round-000002.fvlt"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(FedveilError, match="damaged"):
        fedveil(*only, "--signer", signer)


def test_export_asks_how_the_model_may_leave(run: Path, tmp_path: Path) -> None:
    for both in ([], ["--plaintext", "--for", "passphrase:"]):
        with pytest.raises(FedveilError, match="--for SPEC"):
            fedveil("models", "export", run, "--to", tmp_path / "m", *both)
    assert not (tmp_path / "m").exists()
    fedveil("models", "export", run, "--to", tmp_path / "m.safetensors", "--plaintext")
    assert same(load_file(tmp_path / "m.safetensors"), weights(run))


def test_an_encrypted_export_opens_with_the_recipients_key_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDVEIL_PASSPHRASE", PASSPHRASE)
    out = tmp_path / "for-b"
    fedveil("models", "export", run, "--to", out, "--for", "passphrase:", "--round", 3)
    theirs = open_model_store(out, "passphrase:").load(3).tensors
    assert same(dict(theirs), dict(open_model_store(run).load(3).tensors))
    assert not any(
        v.tobytes()[:64] in p.read_bytes()
        for v in theirs.values()
        for p in out.rglob("*")
        if p.is_file() and v.nbytes >= 64
    )
    signer = fedveil("keys", "show-signer").strip()
    verified = fedveil("models", "verify", out, "--kek", "passphrase:", "--signer", signer)
    assert "round 3: ok" in verified
    with pytest.raises(WrongKeyError):
        open_model_store(out, read_info(run).kek)
    with pytest.raises(FedveilError, match="name its key with --kek"):
        fedveil("models", "verify", out)
    monkeypatch.setenv("FEDVEIL_PASSPHRASE", "another passphrase")
    with pytest.raises(WrongKeyError):
        open_model_store(out, "passphrase:")


def test_the_model_key_is_exchanged_and_old_copies_of_the_list_are_worthless(
    run: Path, tmp_path: Path
) -> None:
    before, old_list = weights(run), (run / "model" / "keys.json").read_bytes()
    said = fedveil("models", "rotate", run)
    assert open_model_store(run).show(ROUNDS).model_keys[0] in said
    assert same(weights(run), before)
    assert fedveil("models", "verify", run).count("ok") == ROUNDS
    (run / "model" / "keys.json").write_bytes(old_list)
    with pytest.raises(FedveilError):
        weights(run)


def test_the_key_encryption_key_is_exchanged(run: Path, tmp_path: Path) -> None:
    old, before = read_info(run).kek, weights(run)
    models = {p.name: p.read_bytes() for p in (run / "model").glob("*.fvlt")}
    made = fedveil("keys", "new", tmp_path / "new.key")
    listed = fedveil("keys", "rotate", run, "--to", f"file:{tmp_path / 'new.key'}")
    assert open_model_store(run).keks()[0][1] in listed
    assert open_model_store(run).keks()[0][1] in made
    assert {p.name: p.read_bytes() for p in (run / "model").glob("*.fvlt")} == models
    assert same(weights(run), before)
    assert read_info(run).kek == f"file:{tmp_path / 'new.key'}"
    with pytest.raises(WrongKeyError):
        weights(run, old)
    fedveil("keys", "rotate", run)
    assert same(weights(run), before)


def test_a_second_key_is_added_and_the_first_retired(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDVEIL_PASSPHRASE", PASSPHRASE)
    ((_, first),) = open_model_store(run).keks()
    fedveil("keys", "add", run, "--to", "passphrase:")
    assert same(weights(run, "passphrase:"), weights(run))
    with pytest.raises(FedveilError, match="no key unheard-of"):
        fedveil("keys", "retire", run, "--key", "unheard-of")
    with pytest.raises(FedveilError, match="passphrase"):
        fedveil("models", "rotate", run)
    fedveil("models", "rotate", run, "--also", "passphrase:")
    fedveil("keys", "retire", run, "--key", first, "--kek", "passphrase:")
    with pytest.raises(WrongKeyError):
        weights(run)
    ((_, last),) = open_model_store(run, "passphrase:").keks()
    with pytest.raises(StoreError, match="last key-encryption key"):
        fedveil("keys", "retire", run, "--key", last, "--kek", "passphrase:")


def test_a_passphrase_is_exchanged_by_its_own_wrap(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDVEIL_PASSPHRASE", PASSPHRASE)
    fedveil("keys", "rotate", run, "--to", "passphrase:")
    before = weights(run)
    file = tmp_path / "phrase"
    file.touch(mode=0o600)
    file.write_text("another long passphrase\n")
    fedveil("keys", "rotate", run, "--to", f"passphrase:{file}")
    assert len(open_model_store(run).keks()) == 1
    assert same(weights(run), before)
    with pytest.raises(WrongKeyError):
        weights(run, "passphrase:")


def test_destroyed_models_cannot_be_read_and_a_backup_of_the_rounds_neither(
    run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "backup", ignore=shutil.ignore_patterns("keys.json"))
    shutil.copytree(run, tmp_path / "whole")
    aborted = CliRunner().invoke(app, ["models", "destroy", str(run)], input="n\n")
    assert aborted.exit_code == 1
    assert weights(run)
    said = fedveil("models", "destroy", run, answer="y\n")
    assert "keys.json" in said
    with pytest.raises(StoreDestroyedError, match="nothing in it can be read again"):
        weights(run)
    with pytest.raises(FedveilError):
        weights(tmp_path / "backup")
    # What the command warns of, and the documentation says.
    assert weights(tmp_path / "whole")
    fedveil("models", "destroy", tmp_path / "whole", "--yes")
    with pytest.raises(StoreDestroyedError):
        weights(tmp_path / "whole")


def test_old_rounds_go_and_their_figures_stay(run: Path) -> None:
    accuracies = {r.round: r.accuracy or 0.0 for r in RunFolder.open(run).records}
    best = max(sorted(accuracies, reverse=True), key=lambda n: accuracies[n])
    fedveil("models", "gc", run, "--keep-last", 1, "--keep-best", 1)
    assert open_model_store(run).rounds() == sorted({best, ROUNDS})
    assert [r.round for r in RunFolder.open(run).records] == [1, 2, 3, 4]
    assert fedveil("models", "verify", run).count("ok") == len({best, ROUNDS})
    assert "round-000004.fvlt" in fedveil("models", "list", run)
    assert fedveil("report", run)
    for wrong in (["--keep-best", 1, "--by", "beauty"],):
        with pytest.raises(FedveilError, match="accuracy or by loss"):
            fedveil("models", "gc", run, "--keep-last", 1, *wrong)
    resumed = simulate(None, run, Silent())
    assert resumed.finished
    assert [r.round for r in resumed.folder.records] == [1, 2, 3, 4]


def test_an_older_state_of_the_store_that_was_put_back_is_refused(run: Path) -> None:
    newest = run / "model" / f"round-{ROUNDS:06d}.fvlt"
    content = newest.read_bytes()
    newest.unlink()
    for command in (("models", "verify"), ("models", "show")):
        with pytest.raises(RollbackError, match="marks"):
            fedveil(*command, run)
    with pytest.raises(RollbackError):
        simulate(None, run, Silent())
    newest.write_bytes(content)
    newest.chmod(0o600)
    assert fedveil("models", "verify", run).count("ok") == ROUNDS


def test_without_the_signing_key_a_run_can_be_read_and_not_continued(run: Path) -> None:
    (run.parent / "home" / "keys" / "signing.key").rename(run.parent / "away")
    assert fedveil("models", "verify", run).count("ok") == ROUNDS
    with pytest.raises(FedveilError, match=r"signing\.key"):
        simulate(None, run, Silent())
