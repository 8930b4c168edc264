"""What tests of engines share: a Ray cluster on this machine, and a run that is charged for."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fedveil.privacy.ledger import Ledger
from fedveil.server.app import LoggingObserver
from fedveil.simulations.scenarios import find_scenario
from fedveil.simulations.simulate import simulate

PATIENCE = 120.0
TESTS = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def machine(*options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Hold a machine with one core in the cluster until the end of the block."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus", "1"]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    process = subprocess.Popen(
        [*command, "--node-ip-address", "127.0.0.1", "--disable-usage-stats", *options],
        env={**os.environ, "PYTHONPATH": path, "FLWR_TELEMETRY_ENABLED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def join(address: str, cores: int) -> None:
    """Wait until the cluster has as many cores as that."""
    import ray

    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            ray.init(address=address, logging_level="critical", log_to_driver=False)
            found = ray.cluster_resources().get("CPU", 0)
        except (ConnectionError, RuntimeError):
            found = 0
        finally:
            ray.shutdown()
        if found == cores:
            return
        assert time.monotonic() < deadline, f"{found} of {cores} cores are there"
        time.sleep(0.5)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Two machines of one core each, found by `RAY_ADDRESS`."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'fedveil[ray]'")
    address = f"127.0.0.1:{free_port()}"
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        # A path of pytest's is too long for the sockets in it.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-"))
        head = ("--head", "--port", address.split(":")[1], "--temp-dir", folder)
        stack.enter_context(machine(*head, "--include-dashboard", "false"))
        patch.setenv("RAY_ADDRESS", address)
        join(address, 1)
        stack.enter_context(machine("--address", address))
        join(address, 2)
        yield


@pytest.fixture
def charged_run(tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that runs four data owners under a policy, and checks their ledgers.

    It takes whether they sum securely, the engine and how many processes it has, and returns what
    was said.
    """

    def run(*, secure: bool, engine: str, processes: int | None = None) -> list[str]:
        policy, out, said = tmp_path / "policy.toml", tmp_path / "run", list[str]()
        policy.write_text(
            f'format = "fedveil-policy-1"\nsecure_aggregation = {str(secure).lower()}\n'
            '[datasets.wards]\ntasks = ["digits"]\nepsilon = 20.0\ndelta = 1e-5\n'
        )
        policy.chmod(0o600)
        sizes = [("federation.rounds", 2), ("federation.clients", 4)]
        config = find_scenario("digits").config([*sizes, ("secagg.enabled", secure)])
        simulate(
            config,
            out,
            LoggingObserver(),
            policy=policy,
            engine=engine,
            processes=processes,
            say=said.append,
        )
        for client in range(4):
            ledger = Ledger(out / "ledgers" / f"client-{client}.db", out / "ledgers" / "heads")
            purposes = [entry.purpose for entry in ledger.read().entries]
            assert purposes.count("train") == 2
        return said

    return run
