"""The page for people: its files, and what a browser is told about them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType

__all__ = ["PAGE_HEADERS", "page_files"]

PAGE_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        b"require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"cache-control", b"no-cache"),
)
"""Nothing is loaded from elsewhere, nothing runs that is no file of ours, nobody frames the page,
and nothing that a script writes can become HTML (W3C, Content Security Policy 3; Trusted Types)."""

_FILES = (
    ("/", "page.html", b"text/html; charset=utf-8"),
    ("/page.css", "page.css", b"text/css; charset=utf-8"),
    ("/page.js", "page.js", b"text/javascript; charset=utf-8"),
    ("/inputs.js", "inputs.js", b"text/javascript; charset=utf-8"),
    ("/charts.js", "charts.js", b"text/javascript; charset=utf-8"),
    ("/icon.svg", "icon.svg", b"image/svg+xml"),
)


def page_files() -> Mapping[str, tuple[bytes, bytes]]:
    """Return body and content type of each file, by its address."""
    folder = files("fedveil.server.inference") / "web"
    return MappingProxyType(
        {address: ((folder / name).read_bytes(), kind) for address, name, kind in _FILES}
    )
