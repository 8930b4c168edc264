"""A KEK in the transit engine of HashiCorp Vault or OpenBao: ``vault:[MOUNT/]KEY``."""

from __future__ import annotations

import base64
import binascii
import os
import re
from typing import ClassVar

import hvac
import requests

from fedveil.vault.errors import KekError, TamperedError
from fedveil.vault.kek.address import check_address, is_encrypted
from fedveil.vault.kek.interface import WrappedKey
from fedveil.vault.kek.sealing import LABEL, check_secret, check_unwrapped, check_wrapped, frame

__all__ = ["HashicorpKek", "open_hashicorp"]

_TIMEOUT_S = 15
_DEFAULT_MOUNT = "transit"
_KEY_TYPE = "aes256-gcm96"
_PREFIX = b"vault:v"
_SEGMENT = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
_PATH = re.compile(rf"{_SEGMENT}(/{_SEGMENT})*")
_MOST_PATH = 200
_DAMAGED = ("message authentication failed", "invalid ciphertext")


class _DeniedError(KekError):
    """The token may not do this."""


class HashicorpKek:
    """Wraps with a key of type ``aes256-gcm96`` that never leaves the server.

    The label, the provider's name and the context are the associated data; the blob is the
    server's ciphertext, ``vault:v...``. No released server takes associated data for ``rewrap``,
    so `rewrap` decrypts and encrypts.

    Parameters
    ----------
    address : str
        Of the server; https unless it is this machine.
    token : str
        May read the key, and encrypt and decrypt with it.
    path : str
        Name of the key, with the mount of the engine before it unless that is ``transit``.
    namespace : str
        Namespace of Vault Enterprise or OpenBao; empty for none.

    Raises
    ------
    KekError
        If address, token, path or namespace are not allowed.
    """

    name: ClassVar[str] = "vault"

    def __init__(self, address: str, token: str, path: str, namespace: str = "") -> None:
        self._shown = check_address(address, "VAULT_ADDR")
        namespace = namespace.strip("/")
        for what, value in (("key of vault:", path), ("VAULT_NAMESPACE", namespace or "none")):
            if len(value) > _MOST_PATH or not _PATH.fullmatch(value):
                raise KekError(
                    f"the {what} is not a path of letters, digits, '-', '_' and '.', up to "
                    f"{_MOST_PATH} in all; for example vault:fedveil or vault:MOUNT/fedveil"
                )
        if not (token and token.isascii() and token.isprintable() and " " not in token):
            raise KekError("VAULT_TOKEN is empty or holds characters that no token has")
        mount, _, self._key = path.rpartition("/")
        self._mount = mount or _DEFAULT_MOUNT
        self._key_id = "/".join(part for part in (namespace, self._mount, self._key) if part)
        # A redirect would carry the token, and the secret, to wherever it points.
        self._client = hvac.Client(
            url=address,
            token=token,
            namespace=namespace or None,
            timeout=_TIMEOUT_S,
            allow_redirects=False,
        )
        # What is not encrypted must not leave this machine through a proxy of the environment.
        self._client.adapter.session.trust_env = is_encrypted(address)

    @property
    def key_id(self) -> str:
        """Path of the key on the server, namespace and mount included."""
        return self._key_id

    def wrap(self, secret: bytes, context: bytes) -> WrappedKey:
        """Encrypt a secret of 32 bytes; see `KekProvider.wrap`.

        Raises
        ------
        KekError
            Also if the key does not exist (the server would make one), has another type, or the
            server takes no notice of associated data, as Vault before 1.13 does.
        """
        check_secret(secret)
        self._check_key()
        plaintext = base64.b64encode(secret).decode("ascii")
        answer = self._ask("encrypt", {"plaintext": plaintext, **_associated(context)})
        ciphertext = answer.get("ciphertext")
        if not isinstance(ciphertext, str) or not ciphertext.startswith(_PREFIX.decode("ascii")):
            raise self._not_understood()
        self._check_binding(ciphertext, context)
        return WrappedKey(self.name, self._key_id, ciphertext.encode(), {})

    def unwrap(self, wrapped: WrappedKey, context: bytes) -> bytes:
        """Return the secret that `wrap` was given; see `KekProvider.unwrap`."""
        check_wrapped(wrapped, self.name, self._key_id)
        if not (wrapped.blob.isascii() and wrapped.blob.startswith(_PREFIX)):
            raise TamperedError(self._changed())
        return self._decrypt(wrapped.blob.decode("ascii"), context)

    def rewrap(self, wrapped: WrappedKey, context: bytes) -> WrappedKey:
        """Wrap the same secret under the newest version of the key; see `KekProvider.rewrap`."""
        return self.wrap(self.unwrap(wrapped, context), context)

    def _decrypt(self, ciphertext: str, context: bytes) -> bytes:
        answer = self._ask("decrypt", {"ciphertext": ciphertext, **_associated(context)})
        plaintext = answer.get("plaintext")
        if not isinstance(plaintext, str):
            raise self._not_understood()
        try:
            secret = base64.b64decode(plaintext, validate=True)
        except (ValueError, binascii.Error):
            raise self._not_understood() from None
        return check_unwrapped(secret)

    def _check_key(self) -> None:
        # `encrypt` makes a key that does not exist if the token allows it: a mistyped name would
        # become the KEK of a store.
        kind = self._ask("keys", None).get("type")
        if kind != _KEY_TYPE:
            raise KekError(
                f"the key {self._key_id!r} on {self._shown} is of type {kind!r:.40}; fedveil needs "
                f"a key of type {_KEY_TYPE}"
            )

    def _check_binding(self, ciphertext: str, context: bytes) -> None:
        try:
            self._decrypt(ciphertext, context + b"/another")
        except (TamperedError, _DeniedError):
            return
        raise KekError(
            f"the server at {self._shown} ignores associated data, as Vault before 1.13 does, so "
            "that a wrapped key would open for any store; update the server"
        )

    def _ask(self, what: str, body: dict[str, str] | None) -> dict[str, object]:
        url = f"/v1/{self._mount}/{what}/{self._key}"
        adapter = self._client.adapter
        try:
            answer = adapter.get(url) if body is None else adapter.post(url, json=body)
        except hvac.exceptions.VaultError as error:
            raise self._refused(what, error) from None
        except requests.exceptions.SSLError:
            raise KekError(
                f"the certificate of {self._shown} is not trusted, or it speaks no TLS; name the "
                "file with its authority's certificate in VAULT_CACERT"
            ) from None
        except OSError as error:
            raise self._unreachable(error) from None
        except (ValueError, TypeError, AttributeError):
            # What hvac makes of an answer that is not Vault's.
            raise self._not_understood() from None
        if isinstance(answer, requests.Response) and answer.is_redirect:
            raise KekError(
                f"the server at {self._shown} points to another one, and the token is not sent "
                "on; name the active server in VAULT_ADDR"
            )
        data = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(data, dict):
            raise self._not_understood()
        return data

    def _refused(self, what: str, error: hvac.exceptions.VaultError) -> KekError | TamperedError:
        reason = _one_line(error.errors)
        no_key = KekError(
            f"there is no transit key {self._key_id!r} on {self._shown}; check vault:, "
            "VAULT_NAMESPACE and VAULT_ADDR, or create the key"
        )
        if isinstance(error, hvac.exceptions.Forbidden):
            return self._denied(what)
        if isinstance(error, hvac.exceptions.InvalidPath) or "key not found" in reason:
            return no_key
        if isinstance(error, hvac.exceptions.VaultDown):
            return KekError(f"the server at {self._shown} is sealed or in maintenance; unseal it")
        if any(text in reason for text in _DAMAGED):
            return TamperedError(self._changed())
        if "too old" in reason:
            return KekError(
                f"the key {self._key_id!r} on {self._shown} no longer decrypts with the version "
                "that wrapped this; lower its min_decryption_version, then rotate"
            )
        return KekError(
            f"{self._shown} refuses {self._mount}/{what}/{self._key}: {reason or 'no reason given'}"
        )

    def _denied(self, what: str) -> KekError:
        # The server answers both with 403; only its own page on the token tells them apart.
        try:
            self._client.auth.token.lookup_self()
        except hvac.exceptions.Forbidden:
            return _DeniedError(
                f"the token in VAULT_TOKEN has expired or is not one of {self._shown}; log in again"
            )
        except (hvac.exceptions.VaultError, OSError):
            pass
        capability = "read" if what == "keys" else "update"
        return _DeniedError(
            f"permission denied by {self._shown}: the token's policies must allow {capability!r} "
            f"on {self._mount}/{what}/{self._key}"
        )

    def _unreachable(self, error: OSError) -> KekError:
        timed_out = isinstance(error, requests.exceptions.Timeout)
        how = f"did not answer within {_TIMEOUT_S} s" if timed_out else "cannot be reached"
        return KekError(
            f"the server at {self._shown} {how}; check VAULT_ADDR, VAULT_CACERT and the network"
        )

    def _not_understood(self) -> KekError:
        return KekError(
            f"what {self._shown} answers is not an answer of Vault's transit engine; check "
            "VAULT_ADDR"
        )

    def _changed(self) -> str:
        return (
            f"the key wrapped by {self._key_id!r} on {self._shown} was changed, or belongs to "
            "another store, or another server's key of that name wrapped it"
        )


def open_hashicorp(path: str) -> HashicorpKek:
    """Return a KEK of the server that ``VAULT_ADDR`` and ``VAULT_TOKEN`` name.

    Raises
    ------
    KekError
        If one of them is not set, or as `HashicorpKek` does. The server is not asked yet.
    """
    for variable in ("VAULT_ADDR", "VAULT_TOKEN"):
        if not os.environ.get(variable):
            raise KekError(f"vault: needs the environment variable {variable}")
    return HashicorpKek(
        os.environ["VAULT_ADDR"],
        os.environ["VAULT_TOKEN"],
        path,
        os.environ.get("VAULT_NAMESPACE", ""),
    )


def _associated(context: bytes) -> dict[str, str]:
    data = frame(LABEL, HashicorpKek.name.encode(), context)
    return {"associated_data": base64.b64encode(data).decode("ascii")}


def _one_line(errors: object) -> str:
    first = str(errors[0]) if isinstance(errors, list) and errors else ""
    words = "".join(each if each.isprintable() else " " for each in first).split()
    return " ".join(words)[:160]
