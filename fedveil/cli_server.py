"""The command `fedveil server`: Flower's SuperLink, with nothing of the model on a disk."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from click.core import ParameterSource
from rich.console import Console

from fedveil.cli_kits import LogFormatOption
from fedveil.cli_server_kit import serve_kit
from fedveil.errors import FedveilError
from fedveil.logs import LogFormat
from fedveil.server.inference.tls import TlsFiles, server_context

__all__ = [
    "CertificateOption",
    "HostOption",
    "PrivateKeyOption",
    "ServerCommandError",
    "check_address",
    "server",
    "superlink_arguments",
    "superlink_environment",
]

HostOption = Annotated[
    str,
    typer.Option(help="Address to listen on: 127.0.0.1 for this machine, 0.0.0.0 for all."),
]
CertificateOption = Annotated[
    Path | None, typer.Option("--ssl-certfile", help="TLS certificate of this server (PEM).")
]
PrivateKeyOption = Annotated[
    Path | None,
    typer.Option("--ssl-keyfile", help="Its private key (PEM, no passphrase, mode 0600)."),
]

_IN_MEMORY = ":flwr-in-memory:"
_SUPERLINK = "flower-superlink"
_PRIVATE_UMASK = 0o077
_BESIDE_A_KIT = {"kit", "log_format", "metrics_port"}

_err = Console(stderr=True, soft_wrap=True)


class ServerCommandError(FedveilError):
    """The SuperLink cannot be started as asked."""


def server(
    context: typer.Context,
    kit: Annotated[
        Path | None,
        typer.Argument(metavar="KIT", help="A coordinator's kit: it says where and with what."),
    ] = None,
    host: HostOption = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(min=1, max=65535, help="Port for SuperNodes, for `flwr run` and for the app."),
    ] = 8000,
    ssl_certfile: CertificateOption = None,
    ssl_keyfile: PrivateKeyOption = None,
    ssl_ca_certfile: Annotated[
        Path | None, typer.Option(help="Certificate of the authority that signed it (PEM).")
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Do without TLS: whoever sees the traffic has the model."),
    ] = False,
    enable_supernode_auth: Annotated[
        bool,
        typer.Option(
            "--enable-supernode-auth",
            help="Admit only SuperNodes registered with `flwr supernode register`; needs TLS.",
        ),
    ] = False,
    database: Annotated[
        str,
        typer.Option(help="Stays in memory: Flower's database on disk holds weights in clear."),
    ] = _IN_MEMORY,
    log_format: LogFormatOption = LogFormat.TEXT,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="With a KIT: serve metrics for Prometheus there, to this machine alone.",
        ),
    ] = None,
) -> None:
    """Start Flower's SuperLink so that it writes no weights to a disk.

    From a KIT that `fedveil provision` made it starts with TLS, admits the SuperNodes of the kit's
    parties alone, and registers them, also those that a later `fedveil provision` adds.

    SuperNodes connect to it and `flwr run` submits to it, as to any SuperLink. Its state stays in
    memory, whatever the environment says: of Flower's variables only FLWR_HOME is passed on. It
    installs nothing at run time, reports nothing to Flower's makers and leaves no core dump, and
    the files that it makes are private. When it stops, a run stops with it; run.resume continues
    the run from its encrypted folder.

    Without a KIT it needs a TLS certificate, or --insecure. The certificate must name the address
    that clients connect to, and 127.0.0.1 or --host, where the app on this machine connects. The
    command then turns into the `flower-superlink` process: signals and exit code are its own.

    Examples: `fedveil server kits/coordinator`; without a kit `fedveil server --insecure` on one
    machine; over several, `fedveil server --host 0.0.0.0 --ssl-certfile server.pem --ssl-keyfile
    server.key --ssl-ca-certfile ca.pem`.
    """
    if kit is not None:
        _check_alone(context)
        serve_kit(kit, log_format, metrics_port)
        return
    if log_format is not LogFormat.TEXT or metrics_port is not None:
        raise ServerCommandError(
            "--log-format and --metrics-port: without a KIT the process is Flower's own; name one"
        )
    if database != _IN_MEMORY:
        raise ServerCommandError(
            f"--database {database}: refused, since Flower writes the global model into its "
            "database unencrypted; leave it out, and continue a stopped run with run.resume"
        )
    local = check_address(host, port)
    files = {
        "--ssl-certfile": ssl_certfile,
        "--ssl-keyfile": ssl_keyfile,
        "--ssl-ca-certfile": ssl_ca_certfile,
    }
    tls = {option: path for option, path in files.items() if path is not None}
    if insecure:
        _check_insecure(tls, enable_supernode_auth)
        if not local:
            _err.print(
                f"[bold yellow]warning:[/] no TLS on {host}: whoever sees the traffic has the "
                "model, and anybody who reaches the port can take part",
                highlight=False,
            )
    else:
        _check_tls(tls, host, local)
    program, environment = _find_superlink(os.environ)
    os.umask(_PRIVATE_UMASK)
    arguments = superlink_arguments(host, port, tls, enable_supernode_auth)
    # In place of this process: nothing is left that could outlive the SuperLink or hide its end.
    try:
        os.execve(program, [program, *arguments], environment)  # noqa: S606  # no shell wanted
    except OSError as error:
        raise ServerCommandError(f"{program}: cannot be started ({error.strerror})") from None


def superlink_arguments(
    host: str, port: int, tls: Mapping[str, Path], enable_supernode_auth: bool
) -> list[str]:
    """Return what `flower-superlink` is told.

    Parameters
    ----------
    host, port
        Where it listens.
    tls : mapping of option to path
        The three files of TLS by Flower's name of the option; empty without TLS.
    enable_supernode_auth : bool
        Whether it admits registered SuperNodes only.
    """
    arguments = ["--host", host, "--port", str(port), "--database", _IN_MEMORY]
    arguments += ["--disable-runtime-dependency-installation"]
    arguments += [part for option, path in tls.items() for part in (option, str(path))]
    arguments += [] if tls else ["--insecure"]
    arguments += ["--enable-supernode-auth"] if enable_supernode_auth else []
    return arguments


def superlink_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` without what would change the SuperLink's state, ports or reports.

    Of the variables that Flower reads, ``FLWR_HOME`` alone is kept: others name a database
    (``FLWR_DATABASE``), open more ports on all addresses (``FLWR_INTERNAL_GRPC_*``), or log more
    than is safe (``FLWR_LOG_LEVEL``). Telemetry and the check for updates, which both call
    Flower's makers, are off. The programs of this installation come first in ``PATH``, since
    Flower starts its own by name.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith("FLWR_") or name == "FLWR_HOME"
    }
    return kept | {
        "PATH": os.pathsep.join([str(_programs()), environ.get("PATH", os.defpath)]),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


def _check_alone(context: typer.Context) -> None:
    """Refuse options beside a kit, which says the same."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in _BESIDE_A_KIT and source is ParameterSource.COMMANDLINE:
            option = f"--{name.replace('_', '-')}"
            raise ServerCommandError(
                f"{option}: the kit says it; leave it out, or change federation.toml and run "
                "`fedveil provision` again"
            )


def _programs() -> Path:
    return Path(sys.executable).parent


def _find_superlink(environ: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    environment = superlink_environment(environ)
    program = shutil.which(_SUPERLINK, path=environment["PATH"])
    if program is None:
        raise ServerCommandError(
            f"{_SUPERLINK} is neither in {_programs()} nor on PATH; install Fedveil there with "
            "pip, which brings it along"
        )
    return program, environment


def check_address(host: str, port: int) -> bool:
    """Return whether only this machine can reach `host`; refuse it if it cannot be listened on."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ServerCommandError(
            f"--host {host}: is no address; give one of this machine, or 0.0.0.0 for all"
        ) from None
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            raise ServerCommandError(
                f"cannot listen on {host}, port {port} ({error.strerror}); choose another --port "
                "or --host, or stop what listens there"
            ) from None
    return all(ipaddress.ip_address(address[0]).is_loopback for *_, address in found)


def _check_insecure(tls: Mapping[str, Path], enable_supernode_auth: bool) -> None:
    if tls:
        raise ServerCommandError(f"{next(iter(tls))} asks for TLS, --insecure for none: drop one")
    if enable_supernode_auth:
        raise ServerCommandError("--enable-supernode-auth needs TLS: drop it, or drop --insecure")


def _check_tls(tls: Mapping[str, Path], host: str, local: bool) -> None:
    """Refuse what TLS cannot start with, or a private key that others may read."""
    if not tls:
        reach = "is on this machine" if local else "can be reached from other machines"
        raise ServerCommandError(
            f"no TLS certificate, and {host} {reach}: give --ssl-certfile, --ssl-keyfile and "
            "--ssl-ca-certfile, or say --insecure if whoever sees the traffic may have the model"
        )
    for option in ("--ssl-certfile", "--ssl-keyfile", "--ssl-ca-certfile"):
        if option not in tls:
            raise ServerCommandError(f"{option} is missing: TLS needs all three --ssl files")
    # Flower reads them by itself; what is wrong with them is said here, in one line.
    server_context(TlsFiles(tls["--ssl-certfile"], tls["--ssl-keyfile"], tls["--ssl-ca-certfile"]))
