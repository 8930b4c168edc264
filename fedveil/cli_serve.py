"""The command `fedveil serve`: the inference service."""

from __future__ import annotations

import gc
import ipaddress
import os
import signal
import socket
import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedveil.cli_callers import (
    AuditLogOption,
    BudgetFileOption,
    OutputsOption,
    QueryBudgetOption,
    RateOption,
    RateRowsOption,
    parse_policy,
)
from fedveil.cli_models import KekOption, SignerOption, parse_signer
from fedveil.cli_server import CertificateOption, HostOption, PrivateKeyOption
from fedveil.cli_serving import announce, log_to_stderr, reload_files, say, shown_host, warn
from fedveil.cli_workers import serve_with
from fedveil.errors import FedveilError

if TYPE_CHECKING:
    from fedveil.server.inference.grpc_server import GrpcServer
    from fedveil.server.inference.http_server import HttpServer
    from fedveil.server.inference.source import RunSource
    from fedveil.server.inference.tls import TlsFiles
    from fedveil.server.inference.workers import Worker

__all__ = ["serve"]

_DRAIN_SECONDS = 30.0

_err = Console(stderr=True, soft_wrap=True)


def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, for example runs/RUN.")],
    kek: KekOption = None,
    signer: SignerOption = None,
    host: HostOption = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port for HTTP; 0 takes a free one.")
    ] = 8080,
    grpc_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port for gRPC; 0 takes a free one. Default: none."),
    ] = None,
    ssl_certfile: CertificateOption = None,
    ssl_keyfile: PrivateKeyOption = None,
    ssl_client_ca: Annotated[
        Path | None,
        typer.Option(help="Admit only clients with a certificate of this authority (PEM)."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--tokens",
            metavar="FILE",
            help="Admit only callers with a token of this file; see `fedveil tokens`.",
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Listen without TLS where other machines can reach the port."
        ),
    ] = False,
    known_as: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A further name that the service is asked under, where no --tokens are in use. "
            "May be repeated.",
        ),
    ] = None,
    outputs: OutputsOption = "full",
    rate: RateOption = None,
    rate_rows: RateRowsOption = None,
    query_budget: QueryBudgetOption = None,
    budget_file: BudgetFileOption = None,
    audit_log: AuditLogOption = None,
    interval: Annotated[
        float, typer.Option(min=0.05, help="Seconds between two looks for a new round.")
    ] = 1.0,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="fp32|bf16",
            help="bf16 computes in bfloat16: faster where the hardware has it, less exact.",
        ),
    ] = "fp32",
    compile_: Annotated[
        bool,
        typer.Option(
            "--compile", help="Run the model through torch.compile. The start takes longer."
        ),
    ] = False,
    replicas: Annotated[
        int | None,
        typer.Option(
            help="Copies of the model that answer side by side. Default: one on each GPU; without "
            "a GPU one on the CPU."
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            max=256,
            help="Processes that answer side by side, for more processors than one. Each has a "
            "copy of the model; --rate and --rate-rows are divided among them.",
        ),
    ] = 1,
    worker: Annotated[str | None, typer.Option("--worker", hidden=True)] = None,
) -> None:
    """Serve the newest round of a run over the Open Inference Protocol v2.

    Weights are decrypted into memory only. A round is served once its signature and every byte of
    it are verified, the store is no older than what was seen before, and the model has answered a
    first input. While a run is still trained, each new round takes over by itself; one that fails
    a check is refused, and the old one goes on.

    SIGTERM or Ctrl-C finishes what is being answered, then ends. SIGHUP reads the files of TLS
    anew.

    Examples: `fedveil serve runs/RUN` on one machine; for others, `fedveil tokens new web-shop`,
    then `fedveil serve runs/RUN --host 0.0.0.0 --ssl-certfile server.pem --ssl-keyfile server.key
    --tokens ~/.config/fedveil/tokens.json`.
    """
    pinned = parse_signer(signer)
    tls = _tls(ssl_certfile, ssl_keyfile, ssl_client_ca, is_insecure=insecure)
    if tls is None and not insecure and not _is_local(host):
        raise FedveilError(
            f"{host} can be reached from other machines: give --ssl-certfile and --ssl-keyfile, or "
            "say --insecure if whoever sees the traffic may have inputs, answers and tokens"
        )
    if known_as and token_file is not None:
        raise FedveilError(
            f"--known-as {known_as[0]}: no names are looked at where --tokens are in use; drop one"
        )
    if grpc_port is not None and grpc_port == port != 0:
        raise FedveilError(f"--port and --grpc-port are both {port}; choose two, or one of them 0")
    # Not before: the other commands do without them.
    from fedveil.server.inference.listening import begin, check_free, listen
    from fedveil.server.inference.oip import Limits
    from fedveil.server.inference.open_files import files_for, limits_within, raise_limit
    from fedveil.server.inference.source import open_source
    from fedveil.server.inference.tokens import TokenFile
    from fedveil.server.inference.workers import Worker

    place = None if worker is None else Worker.parse(worker)
    log_to_stderr(place)
    if workers > 1 and place is None:
        serve_with(workers, host, port, grpc_port, _DRAIN_SECONDS)
        return
    speaks = place is None or place.speaks
    listeners, wanted = 1 if grpc_port is None else 2, Limits()
    limits = limits_within(raise_limit(files_for(wanted, listeners)), listeners, wanted)
    if speaks and limits != wanted:
        warn(
            f"so few files may be open that only {limits.connections} connections are taken at a "
            "time; raise that limit with ulimit -n"
        )
    policy = parse_policy(
        outputs,
        None if rate is None else rate / workers,
        None if rate_rows is None else rate_rows / workers,
        query_budget,
        budget_file,
        audit_log,
    )
    admitted = None if token_file is None else TokenFile(token_file)
    # Before what takes seconds, so that a port in use is told at once.
    if place is None:
        listener = listen(host, port)
        if grpc_port:
            check_free(host, grpc_port)
    else:
        listener = socket.socket(fileno=place.listener)
    source = open_source(run, kek, pinned)
    _check_begun(run, source)
    with _waiting("Loading PyTorch ...", place):
        import torch

        from fedveil.server.inference.devices import Acceleration
        from fedveil.server.inference.http_server import HttpServer
        from fedveil.server.inference.service import InferenceService

    acceleration = Acceleration(dtype, compile_, replicas)
    if place is not None:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // place.count))
    with _waiting("Compiling the model ..." if compile_ else "Loading the model ...", place):
        service = InferenceService(
            source, limits, admitted, interval, acceleration, policy, is_alone=place is None
        )
    http = HttpServer(service, host, listener, tls, tuple(known_as or ()))
    if speaks and admitted is None and ssl_client_ca is None:
        _warn_of_strangers(host, has_budget=query_budget is not None)
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    servers: list[HttpServer | GrpcServer] = [http]
    signal.signal(signal.SIGHUP, lambda *_: reload_files(servers, has_tls=tls is not None))
    begin(listener)
    http.start()
    grpc = None
    if grpc_port is not None:
        from fedveil.server.inference.grpc_server import GrpcServer

        shared = grpc_port if place is None else place.grpc_port
        grpc = GrpcServer(service, host, shared, tls, shares_port=place is not None)
        servers.append(grpc)
        grpc.start()
    service.watcher.start()
    # What is there now stays; to look through it again and again would make requests wait.
    gc.collect()
    gc.freeze()
    if place is not None:
        place.is_ready()
        place.end_with_parent(ending)
    if speaks:
        announce(service, host, http.port, tls, needs_token=admitted is not None)
    if speaks and grpc is not None:
        say(f"gRPC on {shown_host(host)}:{grpc.port}")
    ending.wait()
    if place is None:
        say("finishing what is being answered")
    service.drain()
    http.stop(_DRAIN_SECONDS)
    if grpc is not None:
        grpc.stop(_DRAIN_SECONDS)
    service.close()


def _tls(
    certificate: Path | None, key: Path | None, authority: Path | None, *, is_insecure: bool
) -> TlsFiles | None:
    """Return the files of TLS if they are asked for; they are checked here already."""
    from fedveil.server.inference.tls import TlsFiles, server_context

    if (certificate is None) != (key is None):
        raise FedveilError("--ssl-certfile and --ssl-keyfile belong together: give both or neither")
    if certificate is None or key is None:
        if authority is not None:
            raise FedveilError("--ssl-client-ca needs TLS: give --ssl-certfile and --ssl-keyfile")
        return None
    if is_insecure:
        raise FedveilError("--ssl-certfile asks for TLS, --insecure for none: drop one")
    files = TlsFiles(certificate, key, authority)
    server_context(files)
    return files


def _check_begun(run: Path, source: RunSource) -> None:
    """Refuse a run that has no round yet; that rounds were removed is told by the reader."""
    if not source.reader.rounds() and source.reader.check_mark() is None:
        raise FedveilError(
            f"{run}: has no round yet; serve it once its first round is committed, or go on with "
            f"its training: fedveil simulate --resume {run}"
        )


def _warn_of_strangers(host: str, *, has_budget: bool) -> None:
    if not _is_local(host):
        warn(
            f"whoever reaches {host} may use the model; --tokens FILE or --ssl-client-ca FILE "
            "admits only those whom you know"
        )
    if has_budget:
        warn(
            "without --tokens or --ssl-client-ca an address is a caller: those behind one share a "
            "budget, and who has several has several budgets"
        )


def _is_local(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise FedveilError(
            f"--host {host}: is no address; give one of this machine, or 0.0.0.0 for all"
        ) from None
    return all(ipaddress.ip_address(address[0]).is_loopback for *_, address in found)


def _waiting(what: str, place: Worker | None) -> AbstractContextManager[object]:
    """Say what is waited for; of several workers their parent does."""
    return _err.status(what) if place is None else nullcontext()
