"""A SuperNode and a runner that are kept alive together, until told to stop."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fedveil.audit_log.trail import AuditTrail
from fedveil.children import Child, ended_how, python_module, until_told_to_stop
from fedveil.client.flower_runtime import SuperNodeGoneError, check_flower_version
from fedveil.client.runner.gpu import GpuTurn
from fedveil.client.runner.limits import TaskLimits
from fedveil.client.runner.pace import Pace
from fedveil.client.runner.refusals import Admission, refusal_in
from fedveil.client.runner.runner import MessageStuckError, Runner
from fedveil.client.runner.task_trail import TaskTrail
from fedveil.client.runner.worker_process import WorkerGoneError, WorkerProcess
from fedveil.errors import FedveilError

__all__ = ["NodeRefusedError", "NodeSettings", "child_environment", "serve_node"]

_SUPERNODE = "fedveil.client.runner.supernode"
_CONNECTED = "SuperNode ID:"
_STARTS_WITHIN = 60.0
_FIRST_BACKOFF, _LONGEST_BACKOFF = 1.0, 8.0
_STEADY = 120.0
"""Seconds after which a start counts as a good one, and the next pause as a first one."""
_ADMITTED_WITHIN = 60.0
"""Seconds, from its first refusal, that a server has to register a node which it does not know yet,
or to see that one which was killed is gone: Flower takes it for running until two heartbeats are
missing. So long, too, may a proxy hang up because its server is not there yet."""
_NOBODY_ANSWERS = "Connection attempt failed"

_log = logging.getLogger(__name__)


class NodeRefusedError(FedveilError):
    """A node cannot take part as it is set up."""


@dataclass(frozen=True)
class NodeSettings:
    """What a node is started with.

    Parameters
    ----------
    superlink : str
        ``HOST:PORT`` of the SuperLink.
    root_certificates : Path, optional
        Who vouches for the SuperLink; None for a connection without TLS.
    key : Path, optional
        With which the node proves who it is; needs TLS.
    node_config : str
        As ``flower-supernode --node-config`` takes it.
    host, port
        Where the runner meets the SuperNode, on this machine.
    app : str
        The installed app that answers, as ``package.module:attribute``.
    limits : TaskLimits
        What a message may take.
    gpu : str
        The GPU that tasks run on; empty for none.
    home : Path
        ``$FEDVEIL_HOME`` of the node.
    """

    superlink: str
    root_certificates: Path | None
    key: Path | None
    node_config: str
    host: str
    port: int
    app: str
    limits: TaskLimits
    gpu: str
    home: Path

    @property
    def address(self) -> str:
        """Where the runner meets the SuperNode."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def supernode_arguments(self, secret_file: str) -> list[str]:
        """Return what `flower-supernode` is told."""
        arguments = ["--superlink", self.superlink, "--isolation", "process"]
        arguments += ["--host", self.host, "--port", str(self.port)]
        arguments += ["--superexec-auth-secret-file", secret_file]
        if self.root_certificates is None:
            arguments += ["--insecure"]
        else:
            arguments += ["--root-certificates", str(self.root_certificates)]
        if self.key is not None:
            arguments += ["--auth-supernode-private-key", str(self.key)]
        return [*arguments, *(["--node-config", self.node_config] if self.node_config else [])]


def serve_node(settings: NodeSettings) -> None:
    """Take part until SIGTERM or SIGINT; what crashes is started again, after a growing pause.

    Raises
    ------
    FlowerVersionError
        If another Flower is installed than was tested.
    NodeRefusedError
        If the port is taken, the kit is gone, or the SuperLink refuses the node before it was ever
        admitted: at once, or after a minute where a server may admit it yet.
    WorkerRefusedError
        If the app cannot be loaded.
    """
    check_flower_version()
    _check_port(settings)
    with until_told_to_stop(_log):
        _Service(settings).run()


def child_environment(environ: Mapping[str, str], home: Path, gpu: str) -> dict[str, str]:
    """Return `environ` for the processes of a node.

    Flower's variables are left out, since they change its state, its ports and its reports; its
    home lies in the node's. What passes between the processes of this machine takes no proxy.
    """
    kept = {name: value for name, value in environ.items() if not name.startswith("FLWR_")}
    near = ["127.0.0.1", "localhost", "::1", *filter(None, [environ.get("NO_PROXY")])]
    return kept | {
        "PATH": os.pathsep.join(
            [str(Path(sys.executable).parent), environ.get("PATH", os.defpath)]
        ),
        "FEDVEIL_HOME": str(home),
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "NO_PROXY": ",".join(near),
        "no_proxy": ",".join(near),
        # What is printed is logged when it is said, not when a buffer is full.
        "PYTHONUNBUFFERED": "1",
        "CUDA_VISIBLE_DEVICES": gpu,
    }


@dataclass(frozen=True)
class _End:
    """Why a SuperNode or its runner is started anew, and how bad that is."""

    text: str
    level: int = logging.ERROR


class _Service:
    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings
        self._environment = child_environment(os.environ, settings.home, settings.gpu)
        self._was_admitted = self._was_told = False
        self._admission = Admission(_ADMITTED_WITHIN)
        # The runner's own requests, too, stay on this machine.
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = self._environment["NO_PROXY"]

    def run(self) -> None:
        pause = _FIRST_BACKOFF
        while True:
            started = time.monotonic()
            why = self._live()
            if time.monotonic() - started > _STEADY:
                pause = _FIRST_BACKOFF
            _log.log(why.level, "%s; started anew in %g s", why.text, pause)
            time.sleep(pause)
            pause = min(2.0 * pause, _LONGEST_BACKOFF)

    def _live(self) -> _End:
        """Run a SuperNode and a runner until one of them fails, and return why it did."""
        settings, secret = self._settings, secrets.token_bytes(32)
        _check_files(settings)
        with ExitStack() as owned:
            supernode = self._start_supernode(secret)
            owned.callback(supernode.end)
            turn = GpuTurn(settings.gpu)
            owned.callback(turn.close)
            trail = TaskTrail(AuditTrail(settings.home), settings.app)
            runner = Runner(
                settings.address, secret, self._start_worker, settings.limits, turn, trail
            )
            owned.enter_context(runner)
            pace, heard = Pace(0.02, 0.5), time.monotonic()
            while (code := supernode.code) is None:
                try:
                    if runner.look():
                        self._was_admitted = True
                        pace.came()
                    heard = time.monotonic()
                except SuperNodeGoneError as error:
                    if time.monotonic() - heard > _STARTS_WITHIN:
                        return _End(str(error))
                except (WorkerGoneError, MessageStuckError) as error:
                    return _End(str(error))
                self._was_admitted = self._was_admitted or supernode.has_said(_CONNECTED)
                self._tell_nobody_answers(supernode)
                time.sleep(pace.pause())
            return self._why_ended(supernode, code)

    def _tell_nobody_answers(self, supernode: Child) -> None:
        if self._was_admitted or self._was_told or not supernode.has_said(_NOBODY_ANSWERS):
            return
        self._was_told = True
        _log.warning(
            "no SuperLink answers at %s; this client goes on trying. Is `fedveil server KIT` "
            "started there, and may this machine reach its port?",
            self._settings.superlink,
        )

    def _why_ended(self, supernode: Child, code: int) -> _End:
        refusal = refusal_in(supernode.last_lines(), self._settings.superlink)
        if refusal is None:
            return _End(f"the SuperNode {ended_how(code)}")
        if self._was_admitted or supernode.has_said(_CONNECTED):
            return _End(refusal.text)
        if self._admission.is_waited_for(refusal):
            return _End(refusal.for_now, logging.WARNING)
        raise NodeRefusedError(refusal.text)

    def _start_supernode(self, secret: bytes) -> Child:
        # Over a pipe: the secret stands in no file, and in no list of processes.
        reading, writing = os.pipe()
        try:
            os.write(writing, secret)
            os.close(writing)
            arguments = self._settings.supernode_arguments(f"/dev/fd/{reading}")
            return Child(
                python_module(_SUPERNODE, str(os.getpid()), *arguments),
                self._environment,
                logging.getLogger("fedveil.supernode"),
                (reading,),
            )
        finally:
            os.close(reading)

    def _start_worker(self) -> WorkerProcess:
        settings = self._settings
        worker = WorkerProcess(settings.app, settings.address, settings.limits, self._environment)
        _log.info("the task's process %d answers with %s", worker.pid, settings.app)
        return worker


def _check_files(settings: NodeSettings) -> None:
    for path in filter(None, (settings.root_certificates, settings.key)):
        if not path.is_file():
            raise NodeRefusedError(
                f"{path}: is no longer there; a kit that was moved, or revoked where the others "
                "are made, is started from where it is now"
            )


def _check_port(settings: NodeSettings) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise NodeRefusedError(
            f"{settings.address}, where the SuperNode meets its runner: {error.strerror}; stop "
            "what listens there, or give this client another port in federation.toml"
        ) from None
