"""Scripts, units and manifests: their own tools read them, and all start the same command."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from provisioned import FEDERATION, PREDICTOR, make_kits

from fedveil.server.provisioning import settle

PARTIES = ("coordinator", "ward-a", "predictor")


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A path that every shell, unit and manifest has to quote.
    folder = tmp_path_factory.mktemp("my $kits 100%") / "kits"
    make_kits(folder, FEDERATION + PREDICTOR, now=datetime.now(UTC))
    return folder


def scripts(kits: Path) -> list[Path]:
    return sorted(path for party in PARTIES for path in (kits / party / "bin").iterdir())


def test_a_shell_reads_the_scripts(kits: Path) -> None:
    for path in scripts(kits):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        subprocess.run(["/bin/sh", "-n", str(path)], check=True, timeout=30)


def called(kits: Path, script: str, tmp_path: Path, *arguments: str) -> list[list[str]]:
    """Run a script where every program that it may call writes its arguments down instead."""
    programs = tmp_path / "programs"
    programs.mkdir()
    log = tmp_path / "calls"
    for name in ("fedveil", "flower-superlink", "flower-supernode", "flwr"):
        (programs / name).write_text(
            f'#!/bin/sh\nprintf "%s\\0" {name} "$@" >> "{log}"; printf "\\n" >> "{log}"\n'
            '[ "$2" != node-config ] || echo "partition-id=0"\n'
            f'printf "%s\\n" "$FEDVEIL_HOME" "$FLWR_HOME" "$FLWR_TELEMETRY_ENABLED" > "{log}.env"\n'
        )
        (programs / name).chmod(0o700)
    subprocess.run(
        [str(kits / script), *arguments],
        env={"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        cwd="/",
        check=True,
        timeout=30,
    )
    kit = kits / Path(script).parts[0]
    env = (tmp_path / "calls.env").read_text().splitlines()
    assert env == [str(kit), str(kit / "flwr"), "0"]
    return [line.rstrip("\0").split("\0") for line in log.read_text().splitlines()]


@pytest.mark.parametrize(
    ("script", "command"),
    [
        ("coordinator/bin/start", ["fedveil", "server"]),
        ("coordinator/bin/run", ["fedveil", "run"]),
        ("ward-a/bin/start", ["fedveil", "client"]),
    ],
)
def test_fedveil_s_own_commands_get_the_kit(
    kits: Path, tmp_path: Path, script: str, command: list[str]
) -> None:
    kit = kits / Path(script).parts[0]
    assert called(kits, script, tmp_path) == [[*command, str(kit)]]


def test_plain_flower_s_superlink_is_as_safe(kits: Path, tmp_path: Path) -> None:
    (call,) = called(kits, "coordinator/bin/superlink", tmp_path, "--log-file", "x y")
    kit = kits / "coordinator"
    assert call == [
        *("flower-superlink", "--host", "127.0.0.1", "--port", "8000"),
        *("--database", ":flwr-in-memory:", "--disable-runtime-dependency-installation"),
        *("--ssl-certfile", f"{kit}/server.pem", "--ssl-keyfile", f"{kit}/server.key"),
        *("--ssl-ca-certfile", f"{kit}/ca.pem", "--enable-supernode-auth"),
        *("--log-file", "x y"),
    ]


def test_plain_flower_s_supernode_shows_its_key(kits: Path, tmp_path: Path) -> None:
    ask, call = called(kits, "ward-a/bin/supernode", tmp_path)
    kit = kits / "ward-a"
    assert ask == ["fedveil", "kit", "node-config", str(kit)]
    assert call == [
        *("flower-supernode", "--superlink", "127.0.0.1:8000"),
        *("--root-certificates", f"{kit}/ca.pem"),
        *("--auth-supernode-private-key", f"{kit}/supernode.key"),
        *("--host", "127.0.0.1", "--port", "9101", "--node-config", "partition-id=0"),
    ]


def test_every_client_is_registered(kits: Path, tmp_path: Path) -> None:
    kit = kits / "coordinator"
    _, check, *calls = called(kits, "coordinator/bin/register", tmp_path)
    assert check == ["fedveil", "kit", "check", str(kit)]
    assert calls == [
        [
            *("flwr", "supernode", "register", f"{kit}/supernodes/{ward}.pub", "federation"),
            *("--name", ward),
        ]
        for ward in ("ward-a", "ward-b", "ward-c")
    ]


def test_the_service_pins_its_signer_and_asks_for_tokens(kits: Path, tmp_path: Path) -> None:
    (call,) = called(kits, "predictor/bin/start", tmp_path)
    kit = kits / "predictor"
    assert call[:3] == ["fedveil", "serve", f"{kit}/run"]
    options = dict(zip(call[3::2], call[4::2], strict=True))
    assert options["--kek"] == f"file:{kit}/keys/model.key"
    assert len(options["--signer"]) == 44
    assert options["--tokens"] == f"{kit}/tokens.json"
    assert options["--ssl-certfile"] == f"{kit}/server.pem"
    assert options["--host"] == "0.0.0.0"  # noqa: S104  # predictor.example.org is elsewhere
    assert options["--grpc-port"] == "8444"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("party", PARTIES)
def test_systemd_reads_the_units(kits: Path, party: str) -> None:
    settle(kits / party)
    unit = kits / party / "deploy" / f"fedveil-wards-{party}.service"
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    about_it = [line for line in done.stderr.splitlines() if unit.name in line]
    assert about_it == [], done.stderr
    text = unit.read_text()
    assert "UMask=0077" in text
    assert "LimitCORE=1" in text
    assert f'ExecStart="{kits}/{party}/bin/start"'.replace("%", "%%") in text
    assert f"PATH={Path(sys.executable).parent}" in text


@pytest.mark.parametrize("party", PARTIES)
def test_containers_start_the_same_command(kits: Path, party: str) -> None:
    deploy = kits / party / "deploy"
    compose = yaml.safe_load((deploy / "compose.yaml").read_text())
    service = compose["services"][party]
    assert service["command"] == ["/kit/bin/start"]
    assert service["volumes"] == ["..:/kit"]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])

    documents = list(yaml.safe_load_all((deploy / "kubernetes.yaml").read_text()))
    kinds = [document["kind"] for document in documents]
    serves = ["Service"] if party != "ward-a" else []
    assert kinds == ["PersistentVolumeClaim", "Deployment", *serves]
    pod = documents[1]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["/volume/kit/bin/start"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    # The secret itself is for the container that unpacks it alone.
    assert mounted == {"volume", "tmp"}
    assert mounted <= {volume["name"] for volume in pod["volumes"]}
    ports = {port["containerPort"] for port in container.get("ports", [])}
    assert ports == {"coordinator": {8000}, "ward-a": set(), "predictor": {8443, 8444}}[party]
    for document in documents[2:]:
        assert {port["port"] for port in document["spec"]["ports"]} == ports


def test_the_kit_travels_through_the_secret_as_the_manifest_unpacks_it(
    kits: Path, tmp_path: Path
) -> None:
    """Run the commands of the manifest's comment and of its first container, but in a folder."""
    deploy = kits / "coordinator" / "deploy" / "kubernetes.yaml"
    text = deploy.read_text()
    pack = next(line for line in text.splitlines() if "tar -C KIT" in line).lstrip("# ")
    (kits / "coordinator" / "runs").mkdir()
    subprocess.run(
        ["/bin/sh", "-euc", pack.replace("KIT", '"$KIT"')],
        env={"KIT": str(kits / "coordinator"), "PATH": os.environ["PATH"]},
        cwd=tmp_path,
        check=True,
        timeout=30,
    )
    (kits / "coordinator" / "runs").rmdir()
    documents = list(yaml.safe_load_all(text))
    (first,) = documents[1]["spec"]["template"]["spec"]["initContainers"]
    shell, option, script = first["command"]
    volume = tmp_path / "volume"
    stale = volume / "kit" / "supernodes" / "revoked.pub"
    stale.parent.mkdir(parents=True, mode=0o700)
    (volume / "kit").chmod(0o700)
    stale.touch(mode=0o600)
    (volume / "kit" / "ledger.db").touch(mode=0o600)
    script = script.replace("/secret/", f"{tmp_path}/").replace("/volume/", f"{volume}/")
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "fedveil").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fedveil.cli "$@"\n')
    (programs / "fedveil").chmod(0o700)
    done = subprocess.run(
        [f"/bin/{shell}", option, script],
        env={**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "can be used" in done.stdout
    assert (volume / "kit" / "ledger.db").exists()
    assert not stale.exists()
