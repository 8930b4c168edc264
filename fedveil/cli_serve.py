"""The commands `fedveil serve` and `fedveil tokens`: the inference service and who may use it."""

from __future__ import annotations

import gc
import ipaddress
import json
import logging
import os
import signal
import socket
import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

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
from fedveil.cli_workers import serve_with
from fedveil.errors import FedveilError
from fedveil.home import default_tokens_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedveil.server.inference.grpc_server import GrpcServer
    from fedveil.server.inference.http_server import HttpServer
    from fedveil.server.inference.service import InferenceService
    from fedveil.server.inference.workers import Worker

__all__ = ["serve", "tokens"]

_DRAIN_SECONDS = 30.0
_SHOWN_VALUES = 128

_out = Console(soft_wrap=True)
_err = Console(stderr=True, soft_wrap=True)

tokens = typer.Typer(
    help=(
        "Make, list and revoke the tokens that callers of `fedveil serve --tokens FILE` send.\n\n"
        "The file keeps a hash of each token. A running service sees a change within seconds."
    ),
    no_args_is_help=True,
)

TokensPath = Annotated[
    Path | None,
    typer.Option("--file", help="The file of tokens. Default: tokens.json in $FEDVEIL_HOME."),
]


@tokens.command("new")
def tokens_new(
    name: Annotated[str, typer.Argument(help="Whose it is, for example web-shop.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="infer, metadata or admin; may be repeated. Default: infer and metadata."
        ),
    ] = None,
    file: TokensPath = None,
) -> None:
    """Make a token and print it. It is shown this once: only its hash is kept."""
    from fedveil.server.inference.tokens import SCOPES, Scope, add_token

    known: dict[str, Scope] = {"infer": "infer", "metadata": "metadata", "admin": "admin"}
    wanted = scope or ["infer", "metadata"]
    for given in wanted:
        if given not in known:
            raise FedveilError(f"--scope {given}: a scope is one of {', '.join(SCOPES)}")
    scopes = tuple(known[given] for given in dict.fromkeys(wanted))
    print(add_token(file or default_tokens_file(), name, scopes))  # noqa: T201


@tokens.command("list")
def tokens_list(file: TokensPath = None) -> None:
    """List the tokens: names, scopes and when they were made."""
    from fedveil.server.inference.tokens import read_tokens

    table = Table("name", "scopes", "created")
    for token in read_tokens(file or default_tokens_file()):
        table.add_row(token.name, ", ".join(token.scopes), token.created)
    _out.print(table)


@tokens.command("revoke")
def tokens_revoke(
    name: Annotated[str, typer.Argument(help="Whose token is revoked.")], file: TokensPath = None
) -> None:
    """Revoke a token; a running service refuses it within seconds."""
    from fedveil.server.inference.tokens import remove_token

    remove_token(file or default_tokens_file(), name)
    _out.print(f"revoked {name}", highlight=False)


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
    if (ssl_certfile is None) != (ssl_keyfile is None):
        raise FedveilError("--ssl-certfile and --ssl-keyfile belong together: give both or neither")
    if ssl_client_ca is not None and ssl_certfile is None:
        raise FedveilError("--ssl-client-ca needs TLS: give --ssl-certfile and --ssl-keyfile")
    if ssl_certfile is None and not insecure and not _is_local(host):
        raise FedveilError(
            f"{host} can be reached from other machines: give --ssl-certfile and --ssl-keyfile, or "
            "say --insecure if whoever sees the traffic may have inputs, answers and tokens"
        )
    # Not before: the other commands do without it.
    from fedveil.server.inference.workers import Worker

    place = None if worker is None else Worker.parse(worker)
    _log_to_stderr(place)
    if workers > 1 and place is None:
        serve_with(workers, host, port, grpc_port, _DRAIN_SECONDS)
        return
    speaks = place is None or place.speaks
    with _waiting("Loading PyTorch ...", place):
        import torch

        from fedveil.server.inference.devices import Acceleration
        from fedveil.server.inference.http_server import HttpServer
        from fedveil.server.inference.oip import Limits
        from fedveil.server.inference.service import InferenceService
        from fedveil.server.inference.source import open_source
        from fedveil.server.inference.tls import TlsFiles
        from fedveil.server.inference.tokens import TokenFile

    tls = (
        None
        if ssl_certfile is None or ssl_keyfile is None
        else TlsFiles(ssl_certfile, ssl_keyfile, ssl_client_ca)
    )
    admitted = None if token_file is None else TokenFile(token_file)
    acceleration = Acceleration(dtype, compile_, replicas)
    if place is not None:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // place.count))
    policy = parse_policy(
        outputs,
        None if rate is None else rate / workers,
        None if rate_rows is None else rate_rows / workers,
        query_budget,
        budget_file,
        audit_log,
    )
    source = open_source(run, kek, pinned)
    with _waiting("Compiling the model ..." if compile_ else "Loading the model ...", place):
        service = InferenceService(
            source, Limits(), admitted, interval, acceleration, policy, is_alone=place is None
        )
    listener = port if place is None else socket.socket(fileno=place.listener)
    http = HttpServer(service, host, listener, tls, tuple(known_as or ()))
    if speaks and admitted is None and ssl_client_ca is None and not _is_local(host):
        _err.print(
            f"[bold yellow]warning:[/] whoever reaches {host} may use the model; --tokens FILE or "
            "--ssl-client-ca FILE admits only those whom you know",
            highlight=False,
        )
    if speaks and query_budget is not None and admitted is None and ssl_client_ca is None:
        _err.print(
            "[bold yellow]warning:[/] without --tokens or --ssl-client-ca an address is a caller: "
            "those behind one share a budget, and who has several has several budgets",
            highlight=False,
        )
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    servers: list[HttpServer | GrpcServer] = [http]
    signal.signal(signal.SIGHUP, lambda *_: _reload(servers, has_tls=tls is not None))
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
    scheme = "http" if tls is None else "https"
    if speaks:
        _announce(
            service, f"{scheme}://{_shown(host)}:{http.port}", needs_token=admitted is not None
        )
    if speaks and grpc is not None:
        _err.print(f"gRPC on {_shown(host)}:{grpc.port}", highlight=False)
    ending.wait()
    if place is None:
        _err.print("finishing what is being answered", highlight=False)
    service.drain()
    http.stop(_DRAIN_SECONDS)
    if grpc is not None:
        grpc.stop(_DRAIN_SECONDS)
    service.close()


def _announce(service: InferenceService, url: str, *, needs_token: bool) -> None:
    """Say where the service is, and give a line that asks it something."""
    served = service.holder.current
    _err.print(
        f"serving {service.name}, round {served.round} of run {escape(served.run)}, on "
        f"{service.engine.place}: {url}",
        highlight=False,
    )
    token = " -H 'Authorization: Bearer TOKEN'" if needs_token else ""
    model = f"{url}/v2/models/{service.name}"
    values = service.engine.example()
    if len(values) > _SHOWN_VALUES:
        line = f"curl -s{token} {model}"
    else:
        tensor = {
            "name": service.engine.input.name,
            "shape": [1, *service.engine.input.row_shape],
            "datatype": service.engine.input.dtype,
            "data": values,
        }
        body = json.dumps({"inputs": [tensor]}, separators=(",", ":"))
        line = f"curl -s{token} {model}/infer -d '{body}'"
    _err.print(f"try: {escape(line)}", highlight=False)
    _err.print(f"for people: {url}/ in a browser, or: fedveil predict {url}", highlight=False)


def _reload(servers: Sequence[HttpServer | GrpcServer], *, has_tls: bool) -> None:
    if not has_tls:
        _err.print("there is no TLS here, so that no files were read anew", highlight=False)
        return
    try:
        for server in servers:
            server.reload_certificate()
    except FedveilError as error:
        _err.print(
            f"[bold red]error:[/] {escape(str(error))}; the old certificate stays", highlight=False
        )
    else:
        _err.print("the files of TLS were read anew", highlight=False)


def _is_local(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise FedveilError(
            f"--host {host}: is no address; give one of this machine, or 0.0.0.0 for all"
        ) from None
    return all(ipaddress.ip_address(address[0]).is_loopback for *_, address in found)


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _waiting(what: str, place: Worker | None) -> AbstractContextManager[object]:
    """Say what is waited for; of several workers their parent does."""
    return _err.status(what) if place is None else nullcontext()


def _log_to_stderr(place: Worker | None) -> None:
    handler = logging.StreamHandler()
    who = "" if place is None else f"worker {place.number}: "
    handler.setFormatter(logging.Formatter(f"%(asctime)s {who}%(message)s", "%Y-%m-%dT%H:%M:%S"))
    log = logging.getLogger("fedveil")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
