"""A double of HashiCorp Vault's transit engine, for tests: no part of it is Vault.

It is a real HTTP server on 127.0.0.1 that really encrypts, and answers the few requests that
Fedveil makes as Vault's API documentation and an OpenBao server do, errors included. A request
that is not exactly what is expected (method, path, headers, fields of the body) is kept in
`TransitDouble.unexpected` and answered with status 418, so that a test cannot overlook it.
"""

from __future__ import annotations

import base64
import json
import secrets
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["TransitDouble", "transit_double"]

Answer = tuple[int, dict[str, object]]


@dataclass
class TransitDouble:
    """What the server holds, and what a test changes about it."""

    url: str = ""
    tokens: set[str] = field(default_factory=lambda: {"good-token"})
    denied: set[str] = field(default_factory=set)
    namespace: str | None = None
    mount: str = "transit"
    keys: dict[str, list[bytes]] = field(
        default_factory=lambda: {"fedveil": [secrets.token_bytes(32)]}
    )
    kinds: dict[str, str] = field(default_factory=dict)
    least_version: int = 1
    sealed: bool = False
    ignores_associated_data: bool = False
    # Sent in the place of every answer: status, content type, body.
    instead: tuple[int, str, bytes] | None = None
    redirect: str | None = None
    requests: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def rotate(self, key: str) -> None:
        self.keys[key].append(secrets.token_bytes(32))

    def answer(self, method: str, path: str, token: str, body: object) -> Answer:
        if self.sealed:
            return 503, {"errors": ["Vault is sealed"]}
        if token not in self.tokens:
            return 403, {"errors": ["permission denied"]}
        if (method, path) == ("GET", "/v1/auth/token/lookup-self"):
            return 200, {"data": {"policies": ["default"]}}
        front = f"/v1/{self.mount}/"
        what, _, key = path.removeprefix(front).partition("/")
        if not path.startswith(front) or "/" in key:
            return 404, {"errors": [f'no handler for route "{path[4:]}". route entry not found.']}
        if what in self.denied:
            return 403, {"errors": ["1 error occurred:\n\t* permission denied\n\n"]}
        if (method, what) == ("GET", "keys") and body is None:
            return self._read(key)
        if (method, what) == ("POST", "encrypt"):
            return self._encrypt(key, self._fields(body, "plaintext"))
        if (method, what) == ("POST", "decrypt"):
            return self._decrypt(key, self._fields(body, "ciphertext"))
        return self._unexpected(f"{method} {path} {body}")

    def _unexpected(self, what: str) -> Answer:
        self.unexpected.append(what)
        return 418, {"errors": [f"unexpected {what}"]}

    def _fields(self, body: object, name: str) -> tuple[str, bytes] | None:
        if not isinstance(body, dict) or set(body) != {name, "associated_data"}:
            return None
        associated = base64.b64decode(body["associated_data"], validate=True)
        return body[name], b"" if self.ignores_associated_data else associated

    def _read(self, key: str) -> Answer:
        if key not in self.keys:
            return 404, {"errors": []}
        kind = self.kinds.get(key, "aes256-gcm96")
        return 200, {"data": {"type": kind, "latest_version": len(self.keys[key])}}

    def _encrypt(self, key: str, fields: tuple[str, bytes] | None) -> Answer:
        if fields is None:
            return self._unexpected("body of encrypt")
        # As the real server: a key that is not there is made.
        versions = self.keys.setdefault(key, [secrets.token_bytes(32)])
        nonce = secrets.token_bytes(12)
        plaintext = base64.b64decode(fields[0], validate=True)
        sealed = nonce + AESGCM(versions[-1]).encrypt(nonce, plaintext, fields[1])
        ciphertext = f"vault:v{len(versions)}:{base64.b64encode(sealed).decode()}"
        return 200, {"data": {"ciphertext": ciphertext, "key_version": len(versions)}}

    def _decrypt(self, key: str, fields: tuple[str, bytes] | None) -> Answer:
        if fields is None:
            return self._unexpected("body of decrypt")
        if key not in self.keys:
            return 400, {"errors": ["encryption key not found"]}
        try:
            number, encoded = fields[0].removeprefix("vault:v").split(":")
            version, sealed = int(number), base64.b64decode(encoded, validate=True)
        except ValueError:
            return 400, {"errors": ["invalid ciphertext: could not decode"]}
        if version > len(self.keys[key]):
            return 400, {"errors": ["invalid ciphertext: version is too new"]}
        if version < self.least_version:
            reason = "ciphertext or signature version is disallowed by policy (too old)"
            return 400, {"errors": [reason]}
        try:
            opener = AESGCM(self.keys[key][version - 1])
            plaintext = opener.decrypt(sealed[:12], sealed[12:], fields[1])
        except (InvalidTag, ValueError):
            return 400, {"errors": ["cipher: message authentication failed"]}
        return 200, {"data": {"plaintext": base64.b64encode(plaintext).decode()}}


@contextmanager
def transit_double(tls: ssl.SSLContext | None = None) -> Iterator[TransitDouble]:
    """Serve a double on a free port of 127.0.0.1 until the end of the block, over TLS if given."""
    state = TransitDouble()

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            self._serve("GET", None)

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            self._serve("POST", json.loads(self.rfile.read(length)))

        def _serve(self, method: str, body: object) -> None:
            state.requests.append(f"{method} {self.path}")
            status, content = state.answer(
                method, self.path, self.headers.get("X-Vault-Token", ""), body
            )
            namespace = self.headers.get("X-Vault-Namespace")
            if namespace != state.namespace:
                status, content = 404, {"errors": ["namespace not found"]}
            if self.headers.get("X-Vault-Request") != "true":
                status, content = state._unexpected("request without X-Vault-Request")
            kind, data = "application/json", json.dumps(content).encode()
            if state.instead is not None:
                status, kind, data = state.instead
            if state.redirect is not None:
                status = 307
            self.send_response(status)
            if state.redirect is not None:
                self.send_header("Location", state.redirect + self.path)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    state.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
