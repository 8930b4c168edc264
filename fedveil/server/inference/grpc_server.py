"""The Open Inference Protocol v2 over gRPC: grpcio's synchronous server, within limits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc

from fedveil.server.inference.errors import ServeError
from fedveil.server.inference.grpc_calls import GrpcCalls
from fedveil.server.inference.grpc_open import MOST_CALLS, MOST_MESSAGE, OpenCalls
from fedveil.server.inference.service import InferenceService
from fedveil.server.inference.tls import TlsFiles, read_tls

__all__ = ["GrpcServer"]

_MOST_MESSAGE_OVERHEAD = 64 * 1024
_IDENTITY_ALONE = 1
_IDLE_MS = 75_000


class GrpcServer:
    """Listens for gRPC.

    Parameters
    ----------
    service : InferenceService
        What answers.
    host : str
        Address to listen on.
    port : int
        Port; 0 takes a free one.
    tls : TlsFiles or None
        Certificate and key; None for no TLS.
    shares_port : bool
        Whether other processes listen on the same port.

    Raises
    ------
    ServeError
        If the address cannot be listened on.
    """

    def __init__(
        self,
        service: InferenceService,
        host: str,
        port: int,
        tls: TlsFiles | None = None,
        *,
        shares_port: bool = False,
    ) -> None:
        self._certificates = None if tls is None else _Certificates(tls)
        most = min(service.limits.body_bytes, MOST_MESSAGE) + _MOST_MESSAGE_OVERHEAD
        # A call has a thread while its message comes: with fewer, some slow ones would stop all.
        self._threads = ThreadPoolExecutor(MOST_CALLS, thread_name_prefix="fedveil-grpc")
        self._server = grpc.server(
            self._threads,
            maximum_concurrent_rpcs=MOST_CALLS,
            options=[
                ("grpc.max_receive_message_length", most),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", service.limits.header_bytes),
                ("grpc.absolute_max_metadata_size", service.limits.header_bytes),
                ("grpc.max_concurrent_streams", MOST_CALLS),
                # grpcio 1.81 unpacks a compressed message whole, however large, and then weighs it.
                ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ALONE),
                # Else connections that say nothing could use up the files that may be open.
                ("grpc.server_handshake_timeout_ms", int(service.limits.read_seconds * 1000)),
                ("grpc.max_connection_idle_ms", _IDLE_MS),
                ("grpc.max_allowed_incoming_connections", service.limits.connections),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.so_reuseport", int(shares_port)),
            ],
        )
        self._calls = OpenCalls(service.limits)
        self._server.add_generic_rpc_handlers([GrpcCalls(service, self._calls).handlers()])
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if self._certificates is None:
                self.port: int = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, self._certificates.credentials)
        except RuntimeError:
            self._calls.close()
            raise ServeError(
                f"cannot listen on {host}, port {port} for gRPC; choose another --grpc-port"
            ) from None

    def start(self) -> None:
        """Answer requests from now on."""
        self._server.start()

    def reload_certificate(self) -> None:
        """Read the files of TLS anew, for connections from now on.

        Raises
        ------
        ServeError
            If they cannot be used; the old ones stay then.
        """
        if self._certificates is not None:
            self._certificates.renew()

    def stop(self, patience: float) -> None:
        """Take no more requests, finish those that are being answered, and end.

        Parameters
        ----------
        patience : float
            Seconds after which what is not finished is cut off.
        """
        self._server.stop(patience).wait()
        self._threads.shutdown()
        self._calls.close()


class _Certificates:
    """What handshakes use; grpcio asks at each of them whether there is anything new."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._fresh: grpc.ServerCertificateConfiguration | None = None
        self.credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            self._read(), self._take, require_client_authentication=files.authority is not None
        )

    def renew(self) -> None:
        self._fresh = self._read()

    def _read(self) -> grpc.ServerCertificateConfiguration:
        found = read_tls(self._files)
        return grpc.ssl_server_certificate_configuration(
            [(found.key, found.certificate)], root_certificates=found.authority
        )

    def _take(self) -> grpc.ServerCertificateConfiguration | None:
        fresh, self._fresh = self._fresh, None
        return fresh
