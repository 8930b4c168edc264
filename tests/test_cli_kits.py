"""The commands that start from a kit: what they refuse, in one line, before anything is started."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import command
from kits import Kits, kits

from fedveil import cli_run


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kits]:
    with kits(tmp_path_factory.mktemp("kits"), ("ward-a", "ward-b", "ward-c")) as made:
        yield made


def refused(federation: Kits, *arguments: str) -> str:
    home = {name: federation.env[name] for name in ("HOME", "FEDVEIL_HOME", "FLWR_HOME")}
    done = command(*arguments, environment=home, where=federation.folder)
    assert done.returncode == 1, done.stdout
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize("name", ["client", "server", "run", "status"])
def test_a_folder_that_is_no_kit_is_refused(federation: Kits, name: str, tmp_path: Path) -> None:
    assert "kit.toml" in refused(federation, name, str(tmp_path))


def test_a_kit_of_another_party_is_refused(federation: Kits) -> None:
    client, coordinator = str(federation.kit("ward-a")), str(federation.kit("coordinator"))
    assert "coordinator" in refused(federation, "client", coordinator)
    assert "client" in refused(federation, "server", client)
    assert "client" in refused(federation, "run", client)


def test_a_kit_that_others_may_read_is_not_started_from(federation: Kits) -> None:
    key = federation.kit("ward-c") / "supernode.key"
    key.chmod(0o644)
    told = refused(federation, "client", str(federation.kit("ward-c")))
    key.chmod(0o600)
    assert f"{key}: has mode 0644" in told
    assert "fedveil kit check" in told


def test_what_the_owner_sets_wrong_is_told(federation: Kits) -> None:
    path = federation.kit("ward-b") / "runner.toml"
    path.touch(mode=0o600)
    for text, words in (
        ("memory = 3", "runner.toml: memory:"),
        ("memory_mib = 5", "5 MiB is too low"),
        ('gpu = "../0"', "GPU '../0'"),
        ('app = "no.such.module:app"', "cannot be imported"),
    ):
        path.write_text(text)
        done = federation.command("client", str(federation.kit("ward-b")), code=1)
        assert words in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    path.unlink()


def test_the_server_takes_a_kit_or_options(federation: Kits) -> None:
    coordinator = str(federation.kit("coordinator"))
    told = refused(federation, "server", coordinator, "--port", "9000")
    assert "--port: the kit says it" in told
    assert "--log-format" in refused(federation, "server", "--log-format", "json", "--insecure")


def test_a_run_without_a_server_is_refused(
    federation: Kits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_run, "_PATIENCE", 1.0)
    told = refused(federation, "run", str(federation.kit("coordinator")))
    assert f"no SuperLink answers at {federation.address} after 1 s; start it with: " in told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "federation.rounds=none"], "federation.rounds"),
        (["--set", "no.such=1"], "no"),
        (["--resume", "nowhere"], "is not a run folder"),
        (["--resume", "nowhere", "--set", "seed=1"], "leave --set out"),
    ],
)
def test_a_run_that_cannot_be_meant_is_refused_before_it_is_submitted(
    federation: Kits, options: list[str], words: str
) -> None:
    told = refused(federation, "run", str(federation.kit("coordinator")), *options)
    assert words in told


def test_status_tells_that_nothing_runs(federation: Kits) -> None:
    coordinator = federation.command("status", str(federation.kit("coordinator")), code=1)
    assert "does not answer" in coordinator.stdout
    assert "start it with: fedveil server" in coordinator.stdout
    client = federation.command("status", str(federation.kit("ward-a")), code=1)
    assert "not up; start it with: fedveil client" in client.stdout
