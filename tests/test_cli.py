"""The command as a user types it: results, errors in one line, Ctrl-C, kill -9."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import command
from rich.console import Console

from fedveil.console import ProgressObserver
from fedveil.privacy.report_words import rounded_up
from fedveil.server.run_folder import RunFolder
from fedveil.simulations.scenarios import find_scenario
from fedveil.simulations.simulate import simulate

FEDVEIL = str(Path(sys.executable).parent / "fedveil")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "FEDVEIL_HOME": str(tmp_path / "home")}


def fedveil(
    where: Path, environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FEDVEIL, *arguments],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def quick(
    where: Path, environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run what a process of its own shows no more of."""
    return command(*arguments, environment=environment, where=where)


def wait_for_rounds(run: Path, count: int) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if len(list(run.glob("model/round-*.fvlt"))) >= count:
            return
        time.sleep(0.02)
    pytest.fail(f"no {count} rounds in {run}")


def test_a_run_from_start_to_export(tmp_path: Path, environment: dict[str, str]) -> None:
    done = fedveil(tmp_path, environment, "simulate", "--rounds", "3", "--out", "r", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert list(result) == [
        *("run", "task", "rounds", "accuracy", "epsilon", "delta"),
        *("unit", "noise", "secagg", "seconds"),
    ]
    assert (result["task"], result["rounds"], result["unit"]) == ("digits", 3, "record")
    assert 0.3 < result["accuracy"] <= 1.0
    assert 0.0 < result["epsilon"] <= 8.0
    assert "r/report.html" in done.stdout
    assert "r/model" in done.stdout
    assert [line.split()[1] for line in done.stderr.splitlines() if line.startswith("round")] == [
        *("1/3", "2/3", "3/3"),
    ]

    shown = quick(tmp_path, environment, "report", "r")
    assert shown.returncode == 0
    assert rounded_up(result["epsilon"]) in shown.stdout
    assert "client-9" in shown.stdout

    listed = quick(tmp_path, environment, "models", "list", "r")
    assert "round-000003.fvlt" in listed.stdout
    assert quick(tmp_path, environment, "models", "verify", "r").returncode == 0

    refused = quick(tmp_path, environment, "models", "export", "r", "--to", "m.safetensors")
    assert refused.returncode == 1
    assert not (tmp_path / "m.safetensors").exists()
    exported = fedveil(
        tmp_path, environment, "models", "export", "r", "--to", "m.safetensors", "--plaintext"
    )
    assert exported.returncode == 0, exported.stderr
    from safetensors.numpy import load_file

    stored = RunFolder.open(tmp_path / "r").store.load(3).tensors
    plain = load_file(tmp_path / "m.safetensors")
    assert {k: v.tobytes() for k, v in plain.items()} == {k: v.tobytes() for k, v in stored.items()}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["simulate", "nope"], "no scenario 'nope'; built in: adult"),
        (["simulate", "--set", "task.name=nope"], "no task 'nope'; installed tasks:"),
        (["simulate", "--set", "dp.epsilon=3"], "unknown setting dp.epsilon; known here: unit"),
        (["simulate", "--set", "dp.target_epsilon=0"], "should be greater than 0 (given: 0)"),
        (["simulate", "--set", "dp.target_epsilon=0.0001"], "is not reachable"),
        (["simulate", "--set", "federation.rounds=x"], "valid integer (given: 'x')"),
        (["simulate", "--set", "rounds"], "write it as key=value"),
        (["simulate", "--clients", "5000"], "5000"),
        (["simulate", "mnist"], "data"),
        (["simulate", "mnist", "--data-dir", "."], "mnist.npz"),
        (["simulate", "--out", "/proc/nowhere"], "/proc/nowhere"),
        (["simulate", "--resume", "nowhere"], "nowhere: is not a run folder"),
        (["simulate", "--resume", "x", "--rounds", "3"], "the run's own settings"),
        (["report", "nowhere"], "nowhere: is not a run folder"),
        (["models", "verify", "nowhere"], "nowhere: is not a run folder"),
        (["new", "/proc/nowhere"], "/proc/nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_gets_one_clear_line(
    tmp_path: Path, environment: dict[str, str], arguments: list[str], says: str
) -> None:
    done = quick(tmp_path, environment, *arguments)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert says in errors[0]
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_wrong_data_file_is_named_with_its_checksum(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    pixels, labels = np.zeros((9, 28, 28), np.uint8), np.zeros(9, np.uint8)
    arrays = {"x_train": pixels, "y_train": labels, "x_test": pixels, "y_test": labels}
    np.savez(tmp_path / "mnist.npz", **arrays)
    done = quick(tmp_path, environment, "simulate", "mnist", "--data-dir", ".")
    assert done.returncode == 1
    assert "mnist.npz" in done.stderr
    assert re.search(r"sha256 .*[0-9a-f]{64}.*[0-9a-f]{64}", done.stderr), done.stderr


def test_a_full_disk_names_the_round_that_could_not_be_saved(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """A limit of a file's size stands for the disk: larger ones are not written."""
    code = (
        "import os, resource, sys; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "-m",
            "fedveil.cli",
            "simulate",
            "--rounds",
            "5",
            "--out",
            "r",
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "cannot save round 1 in r/model: File too large" in error
    assert "warning: the report is not that of the last round: r/report.json" in done.stderr
    assert "Traceback" not in done.stderr
    resumed = quick(tmp_path, environment, "simulate", "--resume", "r")
    assert resumed.returncode == 0, resumed.stderr


def test_damaged_runs_are_refused_and_left_as_they_were(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, rounds = tmp_path / "r", itertools.count(1)
    with monkeypatch.context() as patch, ProgressObserver(Console(quiet=True)) as observer:
        patch.setenv("FEDVEIL_HOME", environment["FEDVEIL_HOME"])
        config = find_scenario("digits").config([("federation.rounds", 3)])
        simulate(config, run, observer, should_stop=lambda: next(rounds) == 2)
    newest = run / "model" / "round-000002.fvlt"
    whole = newest.read_bytes()

    def refusal(*arguments: str) -> str:
        before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
        done = quick(tmp_path, environment, *arguments)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        after = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
        reports = {run / "report.json", run / "report.html"}
        assert {p: b for p, b in before.items() if p not in reports} == {
            p: b for p, b in after.items() if p not in reports
        }
        return done.stderr

    newest.write_bytes(whole[:-7])
    assert "round-000002.fvlt" in refusal("simulate", "--resume", "r")
    newest.write_bytes(whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:])
    assert "round-000002.fvlt" in refusal("simulate", "--resume", "r")
    assert "damaged" in refusal("models", "verify", "r")
    newest.write_bytes(whole)

    key = next((tmp_path / "home").rglob("model.key"))
    key.rename(key.with_suffix(".away"))
    assert "key file" in refusal("simulate", "--resume", "r")
    other = {**environment, "FEDVEIL_HOME": str(tmp_path / "other")}
    assert quick(tmp_path, other, "simulate", "--rounds", "1", "--out", "s").returncode == 0
    wrong = next((tmp_path / "other").rglob("model.key"))
    assert "these keys open it: file:" in refusal(
        "simulate", "--resume", "r", "--kek", f"file:{wrong}"
    )
    key.with_suffix(".away").rename(key)
    assert quick(tmp_path, environment, "simulate", "--resume", "r").returncode == 0


def test_ctrl_c_finishes_the_round_and_resume_goes_on(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    running = subprocess.Popen(
        [FEDVEIL, "simulate", "--rounds", "60", "--out", "r"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_rounds(tmp_path / "r", 2)
    running.send_signal(signal.SIGINT)
    output, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "--resume r" in errors
    assert "report" in output
    done = RunFolder.open(tmp_path / "r").committed
    assert 2 <= done < 60
    resumed = quick(tmp_path, environment, "simulate", "--resume", "r", "--json")
    assert resumed.returncode == 0, resumed.stderr
    result = json.loads(resumed.stdout.splitlines()[-1])
    assert result["rounds"] == 60
    assert f"round {done + 1}/60" in resumed.stderr
    assert f"round {done}/60" not in resumed.stderr
    steps = {c.steps for c in _report(tmp_path / "r")}
    assert steps == {60 * 4}, "nothing was lost, so nothing counts twice"


@pytest.mark.parametrize("after", [1, 4])
def test_kill_9_loses_no_committed_round_and_never_under_counts(
    tmp_path: Path, environment: dict[str, str], after: int
) -> None:
    running = subprocess.Popen(
        [FEDVEIL, "simulate", "--rounds", "20", "--out", "r"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_rounds(tmp_path / "r", after)
    running.kill()
    running.wait(timeout=30)
    committed = RunFolder.open(tmp_path / "r").committed
    assert committed >= after
    kept = {p: p.read_bytes() for p in (tmp_path / "r" / "model").glob("round-*.fvlt")}
    resumed = quick(tmp_path, environment, "simulate", "--resume", "r", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout.splitlines()[-1])["rounds"] == 20
    for path, content in kept.items():
        assert path.read_bytes() == content
    folder = RunFolder.open(tmp_path / "r")
    assert [record.round for record in folder.records] == list(range(1, 21))
    assert all(c.steps in {20 * 4, 21 * 4} for c in _report(tmp_path / "r"))
    assert all(c.epsilon <= 8.0 for c in _report(tmp_path / "r"))


def _report(run: Path):  # type: ignore[no-untyped-def]
    from fedveil.server.reporting import report_of

    return report_of(RunFolder.open(run)).clients


def test_two_runs_never_share_a_folder(tmp_path: Path, environment: dict[str, str]) -> None:
    running = subprocess.Popen(
        [FEDVEIL, "simulate", "--rounds", "200", "--out", "r"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_rounds(tmp_path / "r", 1)
        second = quick(tmp_path, environment, "simulate", "--resume", "r")
        assert second.returncode == 1
        assert "another writer holds" in second.stderr
    finally:
        running.kill()
        running.wait(timeout=30)
    assert RunFolder.open(tmp_path / "r").journal.attempts(1) == 1


def test_help_teaches(tmp_path: Path, environment: dict[str, str]) -> None:
    wide = {**environment, "COLUMNS": "200", "TERM": "dumb"}
    top = quick(tmp_path, wide, "--help").stdout
    for word in ("simulate", "scenarios", "new", "report", "models", "keys", "roster"):
        assert word in top
    simulate = quick(tmp_path, wide, "simulate", "--help").stdout
    for option in ("--set", "--out", "--clients", "--rounds", "--seed", "--json", "--resume"):
        assert option in simulate
    narrow = quick(tmp_path, {**wide, "COLUMNS": "80"}, "serve", "--help").stdout
    # Lines are as long as the terminal allows, and not broken once more by those of the source.
    prose = narrow[narrow.index("Weights are") : narrow.index("SIGTERM")].split("\n\n")[0]
    assert all(len(line.rstrip()) > 60 for line in prose.rstrip().splitlines()[:-1])
    listed = quick(tmp_path, wide, "scenarios").stdout
    for name in ("digits", "breast-cancer", "heart-disease", "mnist", "fashion-mnist", "adult"):
        assert name in listed
