from __future__ import annotations

from pathlib import Path

import pytest

from fedveil.client.runner.limits import LimitError, machine_memory
from fedveil.client.runner.runner_file import RunnerFileError, read_runner_file


def test_without_a_file_fedveils_app_runs_within_the_machine(tmp_path: Path) -> None:
    found = read_runner_file(tmp_path)
    assert found.app == "fedveil.client.app:app"
    assert found.limits().memory == machine_memory()
    assert found.limits().seconds == 3600.0
    assert found.gpu is None


def test_what_the_owner_says_is_taken(tmp_path: Path) -> None:
    (tmp_path / "runner.toml").write_text(
        'app = "ours.app:client"\nmemory_mib = 2048\nseconds = 90.0\ngpu = "none"\n'
    )
    found = read_runner_file(tmp_path)
    assert (found.app, found.gpu) == ("ours.app:client", "none")
    assert (found.limits().memory, found.limits().seconds) == (2 << 30, 90.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('app = "no colon"', r"runner\.toml: app: .*it may set app, memory_mib, seconds, gpu"),
        ("memory = 3", r"runner\.toml: memory: "),
        ('memory_mib = "much"', r"memory_mib: "),
        ("seconds = 0.0", r"seconds: "),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "runner.toml").write_text(text)
    with pytest.raises(RunnerFileError, match=words):
        read_runner_file(tmp_path)


def test_too_little_memory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runner.toml").write_text("memory_mib = 100\n")
    with pytest.raises(LimitError, match="100 MiB"):
        read_runner_file(tmp_path).limits()
