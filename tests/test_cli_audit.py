"""`fedveil audit` and `fedveil report` as a user types them: verdicts, files, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fedveil.cli import app
from fedveil.errors import FedveilError
from fedveil.simulations import audit as auditing
from fedveil.simulations.defects import Defect

SMALL = [
    *("--set", "federation.clients=2", "--set", "federation.rounds=2"),
    *("--set", "dp.noise_multiplier=3", "--set", "secagg.enabled=false"),
]


def fedveil(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_run_is_audited_verified_and_composed(tmp_path: Path) -> None:
    run = str(tmp_path / "r")
    assert fedveil("simulate", "digits", *SMALL, "--out", run).exit_code == 0
    done = fedveil("audit", run, "--seed", "1", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["holds"] is True
    assert result["bound"] < result["claimed"]
    assert (tmp_path / "r" / "audit.json").exists()

    verified = fedveil("report", run, "--verify", "--html", str(tmp_path / "again.html"))
    assert verified.exit_code == 0
    assert "✓ verified" in verified.output
    assert "the claim stands" in verified.output
    drawn = (tmp_path / "again.html").read_text()
    assert drawn == (tmp_path / "r" / "report.html").read_text()

    other = str(tmp_path / "s")
    assert fedveil("simulate", "digits", *SMALL, "--out", other).exit_code == 0
    together = json.loads(fedveil("report", run, other, "--json").stdout)
    one = json.loads(fedveil("report", run, "--json").stdout)
    assert one["epsilon"] < together["epsilon"] < together["epsilon_added"]
    assert len(together["clients"]) == 2

    report = tmp_path / "r" / "report.json"
    report.write_text(report.read_text().replace('"steps": 8', '"steps": 7', 1))
    for arguments in (("report", run, "--verify"), ("report", run, other)):
        with pytest.raises(FedveilError, match="was changed after the coordinator signed it"):
            fedveil(*arguments)


def test_a_refuted_claim_is_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = auditing.audit

    def without_noise(*arguments: object, defect: Defect | None = None, **more: object) -> object:
        assert defect is None
        return real(*arguments, defect="no-noise", **more)  # type: ignore[arg-type]

    monkeypatch.setattr(auditing, "audit", without_noise)
    out = tmp_path / "audit.json"
    done = fedveil("audit", "digits", *SMALL, "--seed", "1", "--out", str(out))
    assert done.exit_code == 1
    assert "CLAIM REFUTED" in done.output
    assert json.loads(out.read_text())["holds"] is False


def test_a_self_test_that_misses_a_defect_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    real = auditing.audit

    def blind(*arguments: object, defect: Defect | None = None, **more: object) -> object:
        # Whatever is built in, the sound training is audited.
        assert defect is None or isinstance(defect, str)
        return real(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(auditing, "audit", blind)
    done = fedveil("audit", "digits", *SMALL, "--self-test", "--canaries", "50", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout.splitlines()[-1])["sound"] is False
    assert done.output.count("✗") == 5


@pytest.mark.slow
def test_the_self_test_finds_every_defect() -> None:
    done = fedveil("audit", "digits", "--self-test", "--json")
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout.splitlines()[-1])
    assert len(shown["controls"]) == 6


def test_mistakes_get_one_line(tmp_path: Path) -> None:
    for arguments, says in (
        (["audit", "digits", "--set", "dp.unit=none"], "claim no privacy"),
        (["audit", "nope"], "no scenario 'nope'"),
        (["report", str(tmp_path), "--verify"], "cannot be read"),
        (["report", str(tmp_path), str(tmp_path)], "cannot be read"),
    ):
        with pytest.raises(FedveilError, match=says):
            fedveil(*arguments)
