"""NVIDIA's own client asks the service, in an environment of its own (`make triton`)."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from certificates import make_certificate
from served_grpc import over_grpc
from served_run import run_of, serving
from served_text import TEXTS, codes, text_run

from fedveil.server.inference.http_server import HttpServer
from fedveil.server.inference.oip import Limits
from fedveil.server.inference.tls import TlsFiles
from fedveil.server.inference.tokens import TokenFile, add_token

TESTS = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("FEDVEIL_TRITON_PYTHON") or str(
    TESTS.parent / ".venv-triton" / "bin" / "python"
)
LIMITS = Limits(rows=64, body_bytes=100_000)

needs_triton = pytest.mark.skipif(
    not Path(PYTHON).exists(),
    reason="tritonclient has no environment here; make it with: make triton",
)


@needs_triton
def test_tritonclient_over_http_and_grpc(tmp_path: Path) -> None:
    """Everything at once: the client alone takes seconds to start."""
    run_of(tmp_path / "run", 1)
    text_run(tmp_path / "text")
    authority = make_certificate(tmp_path, "ca", None)
    for name in ("server", "client"):
        make_certificate(tmp_path, name, authority)
    make_certificate(tmp_path, "stranger", None)
    files = TlsFiles(tmp_path / "server.pem", tmp_path / "server.key", tmp_path / "ca.pem")
    path = tmp_path / "tokens.json"
    told: dict[str, object] = {
        "certificates": str(tmp_path),
        "token": add_token(path, "shop", ("infer",)),
        "texts": TEXTS,
        "codes": [codes(text) for text in TEXTS],
    }
    with ExitStack() as stack:
        services = {
            name: stack.enter_context(serving(tmp_path / run, LIMITS, tokens))
            for name, run, tokens in (
                ("open", "run", None),
                ("guarded", "run", TokenFile(path)),
                ("text", "text", None),
            )
        }
        for name, (service, url) in services.items():
            server = stack.enter_context(over_grpc(service))
            told[name] = {"http": int(url.rpartition(":")[2]), "grpc": server.port}
        http = HttpServer(services["open"][0], "127.0.0.1", 0, files)
        http.start()
        stack.callback(http.stop, 1)
        secured = stack.enter_context(over_grpc(services["open"][0], files))
        told["secured"] = {"http": http.port, "grpc": secured.port}
        done = subprocess.run(
            [PYTHON, str(TESTS / "triton_asks.py"), json.dumps(told)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.stdout.strip() == "all well", done.stderr
