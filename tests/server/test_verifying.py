"""A report is believed only where signature, events, figures and run fit; each forgery is tried."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fedveil.errors import FedveilError
from fedveil.server.app import LoggingObserver
from fedveil.server.audits import AUDIT_NAME, read_audit, write_audit
from fedveil.server.reporting import REPORT_LABEL, report_of, write_report
from fedveil.server.run_folder import RunFolder
from fedveil.server.signed import signed_text
from fedveil.server.storage import own_signing_key
from fedveil.server.verifying import ReportError, verify_report
from fedveil.simulations.audit import audit
from fedveil.simulations.scenarios import find_scenario
from fedveil.simulations.simulate import simulate
from fedveil.vault.errors import SignatureError
from fedveil.vault.signing import SigningKey

SETTINGS: tuple[tuple[str, object], ...] = (
    ("federation.clients", 2),
    ("federation.rounds", 2),
    ("dp.noise_multiplier", 5.0),
    ("secagg.enabled", False),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a home and a run made in it, once for all tests here."""
    home, where = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDVEIL_HOME", str(home))
        simulate(find_scenario("digits").config(SETTINGS), where / "r", LoggingObserver())
    return home, where / "r"


@pytest.fixture
def run(made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the run, with its home."""
    shutil.copytree(made[0], tmp_path / "home")
    shutil.copytree(made[1], tmp_path / "r")
    monkeypatch.setenv("FEDVEIL_HOME", str(tmp_path / "home"))
    return tmp_path / "r"


def change(run: Path, edit: Callable[[dict[str, object]], object], key: SigningKey | None) -> None:
    """Edit a report and, with a key, sign it again."""
    path = run / "report.json"
    fields = json.loads(path.read_text())
    edit(fields)
    if key is None:
        path.write_text(json.dumps(fields))
        return
    kept = {k: v for k, v in fields.items() if k not in {"signature", "signer"}}
    path.write_text(signed_text(kept, REPORT_LABEL, key))


def test_an_untouched_report_is_verified(run: Path) -> None:
    report = verify_report(run)
    assert report == report_of(RunFolder.open(run))
    # The file alone is enough for signature, events and figures.
    assert verify_report(run / "report.json") == report
    assert len(report.events) == 4


def test_any_change_breaks_the_signature(run: Path) -> None:
    for edit in (
        lambda f: f.update(epsilon=0.1),
        lambda f: f["events"].pop(),
        lambda f: f["clients"][0].update(epsilon=0.1),
        lambda f: f.update(more="words"),
    ):
        shutil.copy(run / "report.json", run.parent / "kept")
        change(run, edit, None)
        with pytest.raises(SignatureError, match="was changed after the coordinator signed it"):
            verify_report(run)
        shutil.copy(run.parent / "kept", run / "report.json")
    assert verify_report(run)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda f: f.update(epsilon=0.1), r"epsilon is 0\.1, and its events give"),
        (lambda f: f["clients"][1].update(epsilon=0.1), r"clients\[1\]\.epsilon is 0\.1"),
        (
            lambda f: f["clients"][0]["epsilon_by_round"].update({"2": 0.1}),
            r"clients\[0\]\.epsilon_by_round\.2 is 0\.1",
        ),
        (lambda f: f["clients"][0].update(epsilon_rdp=0.1), r"clients\[0\]\.epsilon_rdp"),
        (lambda f: f.update(statement="Nothing was released."), "statement is"),
        (lambda f: f["events"].pop(2), "and its events give"),
        (lambda f: f["events"][0].update(clients=["client-0"]), "and its events give"),
        (
            lambda f: f["facts"].update(settings_sha256="0"),
            r"facts\.settings_sha256 is '0', and the run's own files give",
        ),
        (lambda f: f["rounds"][1].update(accuracy=1.0), r"rounds\[1\]\.accuracy is 1\.0, and the"),
        (lambda f: f["model"].update(sha256="0"), r"model\.sha256 is '0', and the run's own"),
        (lambda f: f["events"][0].update(event="other"), "is not a report"),
        (lambda f: f["events"][0]["releases"][0].update(noise_multiplier=0), "is not a report"),
        (lambda f: f.update(schema_version=3), "report schema 3"),
    ],
)
def test_a_coordinator_who_signs_a_false_figure_is_found_out(
    run: Path, edit: Callable[[dict[str, object]], object], says: str
) -> None:
    change(run, edit, own_signing_key())
    with pytest.raises(ReportError, match=says) as caught:
        verify_report(run)
    assert "\n" not in str(caught.value)


def test_somebody_elses_signature_does_not_count(run: Path) -> None:
    stranger = SigningKey.generate()
    change(run, lambda _: None, stranger)
    with pytest.raises(SignatureError, match="is signed by the coordinator"):
        verify_report(run)
    # Whoever trusts that key may say so; the run itself is another coordinator's.
    assert verify_report(run / "report.json", signer=stranger.verify_key)


def test_a_journal_that_was_cut_is_found_out(run: Path) -> None:
    lines = (run / "privacy.jsonl").read_bytes().splitlines(keepends=True)
    (run / "privacy.jsonl").write_bytes(b"".join(lines[:2]))
    with pytest.raises(ReportError, match="and the run's own files give"):
        verify_report(run)
    (run / "privacy.jsonl").write_bytes(b"".join(lines).replace(b"5.0", b"9.0", 1))
    with pytest.raises(ReportError, match="and the run's own files give"):
        verify_report(run)


def test_what_is_no_report_is_refused_in_one_line(run: Path) -> None:
    for content in (b"", b"[]", b"{}", b'{"signature": "x"}', b"\xff"):
        (run / "report.json").write_bytes(content)
        with pytest.raises(FedveilError, match="not a file that a coordinator signed"):
            verify_report(run)
    (run / "report.json").unlink()
    with pytest.raises(FedveilError, match="cannot be read"):
        verify_report(run)


def test_an_audit_is_shown_with_the_run_that_it_is_of_and_with_no_other(run: Path) -> None:
    config = find_scenario("digits").config(SETTINGS)
    result = audit(config, LoggingObserver(), canaries=200, seed=1)
    path = run / AUDIT_NAME
    write_audit(path, result)
    assert read_audit(path) == result
    report = write_report(RunFolder.open(run))
    assert report.audit == result
    assert "The claim stands" in (run / "report.html").read_text()
    assert verify_report(run).audit == result

    other = result.facts.model_copy(update={"settings_sha256": "0"})
    write_audit(path, result.model_copy(update={"facts": other}))
    assert report_of(RunFolder.open(run)).audit is None
    control = result.facts.model_copy(update={"control": "no-noise"})
    write_audit(path, result.model_copy(update={"facts": control}))
    assert report_of(RunFolder.open(run)).audit is None

    write_audit(path, result.model_copy(update={"bound": 0.0}))
    with pytest.raises(FedveilError, match="do not follow from its guesses"):
        report_of(RunFolder.open(run))
    path.write_text(path.read_text().replace('"correct": ', '"correct": 1'))
    with pytest.raises(SignatureError, match="was changed"):
        report_of(RunFolder.open(run))
