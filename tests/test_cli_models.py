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
from fedveil.home import marks_dir
from fedveil.server.run_folder import RunFolder
from fedveil.server.run_info import read_info, write_info
from fedveil.server.run_store import open_model_store, remember_kek
from fedveil.server.storage import own_signing_key
from fedveil.simulations.scenarios import find_scenario
from fedveil.simulations.simulate import simulate
from fedveil.vault.errors import (
    RollbackError,
    SignatureError,
    StoreDestroyedError,
    StoreError,
    StoreLockedError,
    WrongKeyError,
)
from fedveil.vault.kek.key_file import KeyFileKek
from fedveil.vault.keyfile import Key, create_key, load_key
from fedveil.vault.keyring import create_keys
from fedveil.vault.layout import Layout
from fedveil.vault.manifest import Manifest, write_manifest
from fedveil.vault.signing import SigningKey, VerifyKey
from fedveil.vault.store import ModelStore

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
    monkeypatch.setenv("FEDVEIL_HOME", str(place / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(place)
    # It remembers its key by an absolute path.
    remember_kek(place / "run", f"file:{place / 'home' / 'keys' / 'model.key'}")
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
    with pytest.raises(SignatureError, match="not of 11qYAYK"):
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
    with pytest.raises(FedveilError, match="name another with --kek"):
        fedveil("keys", "retire", run, "--key", first)
    old = read_info(run).kek
    fedveil("keys", "retire", run, "--key", f"file:{first}", "--kek", "passphrase:")
    with pytest.raises(WrongKeyError):
        weights(run, old)
    assert read_info(run).kek == "passphrase:"
    assert weights(run)
    ((_, last),) = open_model_store(run, "passphrase:").keks()
    with pytest.raises(StoreError, match="last key-encryption key"):
        fedveil("keys", "retire", run, "--key", last, "--kek", "passphrase:")


def test_a_passphrase_is_exchanged_by_its_own_wrap(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDVEIL_PASSPHRASE", PASSPHRASE)
    fedveil("keys", "rotate", run, "--to", "passphrase:")
    ((_, name),) = open_model_store(run).keks()
    assert f"opened by      {name}\n" in fedveil("models", "show", run)
    assert name in fedveil("keys", "list", run)
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


def plant(folder: Path, run: str, store: str, verify_key: VerifyKey, kek: Key) -> None:
    """Make an empty store of this name without the signing key that its description names."""
    Layout(folder).create()
    create_keys(folder, store, KeyFileKek(kek))
    write_manifest(folder, Manifest(run, store, verify_key))


def change_info(run: Path, **fields: str) -> None:
    path = run / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


EVERYTHING = [
    ("models", "list"),
    ("models", "show"),
    ("models", "verify"),
    ("models", "rotate"),
    ("models", "gc", "--keep-last", "1"),
    ("models", "export", "--plaintext", "--to", "out"),
    ("models", "export", "--for", "file:home/keys/model.key", "--to", "out"),
    ("keys", "list"),
    ("keys", "rotate"),
    ("report",),
]


def refused_by_all(run: Path, error: type[FedveilError], match: str) -> None:
    for command in EVERYTHING:
        with pytest.raises(error, match=match):
            fedveil(*command, run)
    assert not (run.parent / "out").exists()
    with pytest.raises(error, match=match):
        simulate(None, run, Silent())


def test_the_store_of_another_run_is_refused_in_its_place(run: Path, tmp_path: Path) -> None:
    config = find_scenario("digits").config([("federation.rounds", 1)])
    simulate(config, tmp_path / "other", Silent())
    shutil.rmtree(run / "model")
    shutil.copytree(tmp_path / "other" / "model", run / "model")
    refused_by_all(run, FedveilError, "put there from elsewhere")


def test_what_names_the_run_cannot_be_changed(run: Path, tmp_path: Path) -> None:
    whole = (run / "run.json").read_bytes()
    change_info(run, kek=f"file:{create_key_of_the_attacker(run)}")
    refused_by_all(run, SignatureError, "was changed after the coordinator signed it")
    (run / "run.json").write_bytes(whole)
    (run / "run.json").write_bytes(whole.replace(b'"store": "', b'"store": "0', 1))
    refused_by_all(run, SignatureError, "was changed")
    (run / "run.json").write_bytes(whole)
    settings = (run / "config.toml").read_text()
    (run / "config.toml").write_text(settings.replace('unit = "record"', 'unit = "none"'))
    with pytest.raises(FedveilError, match="keeps its settings"):
        simulate(None, run, Silent())


def create_key_of_the_attacker(run: Path) -> Path:
    path = run / ".k"
    if not path.exists():
        create_key(path)
    return path


def test_a_mark_that_cannot_be_kept_is_told_with_what_it_is_for(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that is mounted to be read only."""

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    for mark in marks_dir().glob("*.json"):
        mark.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("fedveil.vault.marks.replace_file", refuse)
        with pytest.raises(StoreError, match=r"cannot keep the mark .*Read-only file system; make"):
            fedveil("models", "verify", run)
    assert "4 rounds; the newest is round 4" in fedveil("models", "verify", run)


def test_a_model_of_the_attackers_own_is_neither_shown_nor_signed(run: Path) -> None:
    """Whoever can write the run folder puts a store, keys and a signature of their own there."""
    info, mine = read_info(run), SigningKey.generate()
    key = load_key(create_key_of_the_attacker(run))
    shutil.rmtree(run / "model")
    with ModelStore.create(
        run / "model", KeyFileKek(key), info.run, marks=None, signing_key=mine
    ) as store:
        store.save(1, {"w": np.full(4, 666.0)}, {}, None)
        store_id = store.store
    forged = info.model_copy(
        update={
            "kek": f"file:{run / '.k'}",
            "signer": mine.verify_key.to_text(),
            "store": store_id,
        }
    )
    write_info(run, forged, mine)
    refused_by_all(run, SignatureError, "is a run of the coordinator")
    (run / "run.json").unlink()
    (run / "model").rename(run.parent / "bare")
    with pytest.raises(SignatureError):
        fedveil(
            *("models", "export", run.parent / "bare", "--kek", f"file:{run / '.k'}"),
            *("--for", "file:home/keys/model.key", "--to", "out"),
        )


def test_a_run_is_not_continued_under_the_attackers_key(run: Path) -> None:
    info, key = read_info(run), load_key(create_key_of_the_attacker(run))
    shutil.rmtree(run / "model")
    plant(run / "model", info.run, info.store, VerifyKey.from_text(info.signer), key)
    with pytest.raises(WrongKeyError):
        simulate(None, run, Silent())
    with pytest.raises(RollbackError):
        simulate(None, run, Silent(), kek=f"file:{run / '.k'}")


def test_removed_rounds_are_missed(run: Path) -> None:
    for path in (run / "model").glob("round-*.fvlt"):
        path.unlink()
    refused_by_all(run, RollbackError, "marks")


def test_figures_come_from_what_is_signed(run: Path) -> None:
    before = fedveil("models", "list", run)
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["epsilon"], line["test"] = 0.01, {"accuracy": 0.9999}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert fedveil("models", "list", run) == before


def test_another_machine_reads_a_run_and_knows_whom_it_trusts(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer, kek = fedveil("keys", "show-signer").strip(), read_info(run).kek
    monkeypatch.setenv("FEDVEIL_HOME", str(tmp_path / "elsewhere"))
    assert fedveil("models", "verify", run).count("ok") == ROUNDS
    own = own_signing_key().verify_key.to_text()
    with pytest.raises(SignatureError, match="name it with --signer"):
        fedveil("models", "verify", run)
    assert fedveil("models", "verify", run, "--signer", signer).count("ok") == ROUNDS
    fedveil("models", "export", run, "--to", "again", "--for", kek, "--signer", signer)
    assert own in fedveil("models", "show", "again", "--kek", kek)


def test_figures_and_report_need_no_key_and_outlive_the_models(run: Path) -> None:
    before = fedveil("models", "list", run), fedveil("report", run)
    (run.parent / "home" / "keys" / "model.key").unlink()
    assert (fedveil("models", "list", run), fedveil("report", run)) == before
    fedveil("models", "destroy", run, "--yes")
    assert (fedveil("models", "list", run), fedveil("report", run)) == before


def test_an_encrypted_export_is_not_for_a_key_that_is_not_there(run: Path) -> None:
    with pytest.raises(FedveilError, match="no key file"):
        fedveil("models", "export", run, "--to", "out", "--for", "file:mistyped")
    assert not (run.parent / "mistyped").exists()
    assert not (run.parent / "out").exists()


def test_a_machine_without_a_signing_key_signs_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kek = read_info(run).kek
    monkeypatch.setenv("FEDVEIL_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(FedveilError, match="new-signer"):
        fedveil("models", "export", run, "--to", "out", "--for", kek)
    assert not (run.parent / "out").exists()
    assert not (tmp_path / "elsewhere" / "keys").exists()


def test_a_start_that_fails_leaves_nothing_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = find_scenario("digits").config([("federation.rounds", 1)])
    monkeypatch.setenv("VAULT_ADDR", "http://127.0.0.1:9")
    monkeypatch.setenv("VAULT_TOKEN", "none")
    for kek in ("vault:key", "nope", "file:"):
        with pytest.raises(FedveilError):
            simulate(config, tmp_path / "r", Silent(), kek=kek)
        assert not (tmp_path / "r").exists()
    (tmp_path / "r").mkdir()
    with pytest.raises(FedveilError):
        simulate(config, tmp_path / "r", Silent(), kek="vault:key")
    assert simulate(config, tmp_path / "r", Silent()).finished


def test_a_run_is_not_resumed_while_another_process_continues_it(run: Path) -> None:
    with RunFolder.open(run, writing=True).store:
        with pytest.raises(StoreLockedError):
            simulate(None, run, Silent())
        assert fedveil("report", run)
