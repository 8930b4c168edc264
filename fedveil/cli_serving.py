"""What `fedveil serve` says while it runs: where it is, how to ask it, what is risky, its log."""

from __future__ import annotations

import ipaddress
import json
import logging
import shlex
from typing import TYPE_CHECKING

from cryptography import x509
from rich.console import Console
from rich.markup import escape

from fedveil.errors import FedveilError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fedveil.server.inference.grpc_server import GrpcServer
    from fedveil.server.inference.http_server import HttpServer
    from fedveil.server.inference.service import InferenceService
    from fedveil.server.inference.tls import TlsFiles
    from fedveil.server.inference.workers import Worker

__all__ = ["announce", "log_to_stderr", "reload_files", "say", "shown_host", "warn"]

_SHOWN_VALUES = 128

_err = Console(stderr=True, soft_wrap=True)


def say(text: str) -> None:
    """Tell the user something."""
    _err.print(escape(text), highlight=False)


def warn(text: str) -> None:
    """Tell the user of a risk."""
    _err.print(f"[bold yellow]warning:[/] {escape(text)}", highlight=False)


def announce(
    service: InferenceService, host: str, port: int, tls: TlsFiles | None, *, needs_token: bool
) -> None:
    """Say where the service is, and give lines that ask it something.

    Parameters
    ----------
    service : InferenceService
        What answers.
    host, port
        Where it listens for HTTP.
    tls : TlsFiles or None
        What it shows, and demands.
    needs_token : bool
        Whether it takes a token.
    """
    served = service.holder.current
    scheme = "http" if tls is None else "https"
    say(
        f"serving {service.name}, round {served.round} of run {served.run}, on "
        f"{service.engine.place}: {scheme}://{shown_host(host)}:{port}"
    )
    url = f"{scheme}://{shown_host(_asked_host(host, tls))}:{port}"
    say(f"try: curl -sS{_credentials(tls, needs_token=needs_token)} {_request(service, url)}")
    trusts = "" if tls is None else f" --ca {shlex.quote(str(tls.certificate))}"
    shows = "" if tls is None or tls.authority is None else " --cert CLIENT.pem --key CLIENT.key"
    say(f"for people: {url}/ in a browser, or: fedveil predict {url}{trusts}{shows}")


def shown_host(host: str) -> str:
    """Return a host as it stands in an address."""
    return f"[{host}]" if ":" in host else host


def _credentials(tls: TlsFiles | None, *, needs_token: bool) -> str:
    """Return the options of curl that show who asks, and say whom to trust."""
    words = " -H 'Authorization: Bearer TOKEN'" if needs_token else ""
    if tls is not None:
        words += f" --cacert {shlex.quote(str(tls.certificate))}"
        words += "" if tls.authority is None else " --cert CLIENT.pem --key CLIENT.key"
    return words


def _request(service: InferenceService, url: str) -> str:
    model = f"{url}/v2/models/{service.name}"
    values = service.engine.example()
    if len(values) > _SHOWN_VALUES:
        return model
    tensor = {
        "name": service.engine.input.name,
        "shape": [1, *service.engine.input.row_shape],
        "datatype": service.engine.input.dtype,
        "data": values,
    }
    return f"{model}/infer -d '{json.dumps({'inputs': [tensor]}, separators=(',', ':'))}'"


def _asked_host(host: str, tls: TlsFiles | None) -> str:
    """Return what the service can be asked under: a name in its certificate, an address."""
    names = [] if tls is None else _names(tls.certificate)
    if names:
        return host if host in names else names[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "::1"
    return host


def _names(certificate: Path) -> list[str]:
    """Return the names that a certificate is for and that one can ask for."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return []
    of_hosts = [name for name in names.get_values_for_type(x509.DNSName) if "*" not in name]
    return of_hosts + [str(address) for address in names.get_values_for_type(x509.IPAddress)]


def reload_files(servers: Sequence[HttpServer | GrpcServer], *, has_tls: bool) -> None:
    """Read the files of TLS anew, and say how that went."""
    if not has_tls:
        say("there is no TLS here, so that no files were read anew")
        return
    try:
        for server in servers:
            server.reload_certificate()
    except FedveilError as error:
        _err.print(
            f"[bold red]error:[/] {escape(str(error))}; the old certificate stays", highlight=False
        )
    else:
        say("the files of TLS were read anew")


def log_to_stderr(place: Worker | None) -> None:
    """Write the log of Fedveil to standard error; of a worker with its number."""
    handler = logging.StreamHandler()
    who = "" if place is None else f"worker {place.number}: "
    handler.setFormatter(logging.Formatter(f"%(asctime)s {who}%(message)s", "%Y-%m-%dT%H:%M:%S"))
    log = logging.getLogger("fedveil")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
