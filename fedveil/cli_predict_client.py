"""Asks a running inference service, and says in one line what is wrong where it does not answer."""

from __future__ import annotations

import json
import re
from types import TracebackType
from typing import Annotated, Self, TypeVar

import httpx
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedveil.cli_predict_access import (
    Access,
    AskError,
    checked_address,
    printable,
    tls_context,
)
from fedveil.server.inference.about import About
from fedveil.server.inference.oip import DTYPES, Array, TensorSpec

__all__ = ["Claim", "Metadata", "ServiceClient"]

_HEADER_LENGTH = "Inference-Header-Content-Length"
_MOST_SHOWN = 300
# Other clients of the protocol are given this part of an address, too.
_PROTOCOL_PLACE = re.compile(r"/v2(/(models|health)(/.*)?)?/?$")


class _Told(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Claim(_Told):
    """What the service's metadata says of the round that answers.

    Parameters
    ----------
    run : str
        The run.
    round : int
        The round, which is the protocol's version.
    privacy_unit : str
        Whose presence is hidden, "record" or "none".
    epsilon, delta : float or None
        The guarantee; None where there is none.
    outputs : str
        What an answer gives away: full, labels, top-K or round-D.
    """

    run: str
    round: int
    privacy_unit: str = "none"
    epsilon: float | None = None
    delta: float | None = None
    outputs: str = "full"


class _Tensor(_Told):
    name: str
    datatype: str
    shape: Annotated[tuple[int, ...], Field(min_length=1)]


class Metadata(_Told):
    """The protocol's metadata of a model, as far as it is used here."""

    name: str
    inputs: Annotated[tuple[_Tensor, ...], Field(min_length=1, max_length=1)]
    parameters: Claim

    @property
    def input(self) -> TensorSpec:
        """What the model takes."""
        tensor = self.inputs[0]
        return TensorSpec(tensor.name, tensor.datatype, tensor.shape[1:])


class _Output(_Told):
    datatype: str
    shape: Annotated[tuple[int, ...], Field(min_length=1)]


class _Answer(_Told):
    outputs: Annotated[tuple[_Output, ...], Field(min_length=1, max_length=1)]


class _Refusal(_Told):
    error: str


class ServiceClient:
    """A connection to one service.

    Parameters
    ----------
    url : str
        Where it is, for example ``http://127.0.0.1:8080``; with or without ``/v2``.
    access : Access
        How it is reached.

    Raises
    ------
    AskError
        If the address is none, a token would cross a network in clear, or a certificate cannot be
        read.
    """

    def __init__(self, url: str, access: Access) -> None:
        self._url = _PROTOCOL_PLACE.sub("", url).rstrip("/")
        self._access = access
        checked_address(url, access)
        headers = {} if access.token is None else {"authorization": f"Bearer {access.token}"}
        # Settings of the surroundings could lead a token to a proxy.
        self._client = httpx.Client(
            headers=headers, verify=tls_context(access), timeout=access.seconds, trust_env=False
        )

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self._client.close()

    def about(self) -> About:
        """Return what the service says to people.

        Raises
        ------
        AskError
            If it does not answer, refuses, or is no such service.
        """
        return self._parsed(About, self._send("GET", "/about").content)

    def metadata(self, model: str) -> Metadata:
        """Return the metadata of a model; errors are those of `about`."""
        found = self._parsed(Metadata, self._send("GET", f"/v2/models/{model}").content)
        if found.inputs[0].datatype not in DTYPES:
            raise self._stranger()
        return found

    def infer(self, metadata: Metadata, rows: Array) -> Array:
        """Return the round's outputs for some rows.

        Parameters
        ----------
        metadata : Metadata
            Of the model, and the round.
        rows : ndarray, shape (n, ...)
            Of the model's type.

        Raises
        ------
        AskError
            As in `about`.
        """
        spec = metadata.input
        tensor = {
            "name": spec.name,
            "shape": list(rows.shape),
            "datatype": spec.dtype,
            "parameters": {"binary_data_size": rows.nbytes},
        }
        fields = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        head = json.dumps(fields).encode()
        reply = self._send(
            "POST",
            f"/v2/models/{metadata.name}/versions/{metadata.parameters.round}/infer",
            head + rows.tobytes(),
            {_HEADER_LENGTH: str(len(head)), "content-type": "application/octet-stream"},
        )
        told = reply.headers.get(_HEADER_LENGTH, "")
        if not told.isdigit():
            raise self._stranger()
        length = int(told)
        output = self._parsed(_Answer, reply.content[:length]).outputs[0]
        try:
            flat = np.frombuffer(reply.content[length:], DTYPES[output.datatype])
            found: Array = flat.reshape(output.shape)
        except (KeyError, ValueError):
            raise self._stranger() from None
        if len(found) != len(rows):
            raise self._stranger()
        return found

    def _send(
        self,
        method: str,
        place: str,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        try:
            reply = self._client.request(
                method, self._url + place, content=content, headers=headers
            )
        except httpx.TimeoutException:
            raise AskError(
                f"{self._url}: no answer within {self._access.seconds:g} s; see whether the "
                "service is busy, or give a longer --timeout"
            ) from None
        except httpx.TransportError as error:
            raise AskError(f"{self._url}: {_reason(error)}") from None
        if reply.status_code != httpx.codes.OK:
            raise AskError(f"{self._url}: {self._refusal(reply)}")
        return reply

    def _refusal(self, reply: httpx.Response) -> str:
        try:
            said = printable(_Refusal.model_validate_json(reply.content).error)[:_MOST_SHOWN]
        except ValidationError:
            return (
                f"answers {reply.status_code}, and not as an inference service of Fedveil does; "
                "check the address"
            )
        status = reply.status_code
        if status == httpx.codes.UNAUTHORIZED and self._access.token is None:
            return "takes a token; give --token-file FILE, or set FEDVEIL_TOKEN"
        if status == httpx.codes.FORBIDDEN and self._access.token is not None:
            return f"refuses (403): {said}; this command asks with the scopes infer and metadata"
        wait = reply.headers.get("retry-after", "")
        again = f"; try again in {wait} s" if wait.isdigit() else ""
        return f"refuses ({status}): {said}{again}"

    def _parsed(self, kind: type[Model], content: bytes) -> Model:
        try:
            return kind.model_validate_json(content)
        except ValidationError:
            raise self._stranger() from None

    def _stranger(self) -> AskError:
        return AskError(
            f"{self._url}: does not answer as an inference service of Fedveil does; check the "
            "address and the versions"
        )


Model = TypeVar("Model", bound=BaseModel)


def _reason(error: httpx.TransportError) -> str:
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        found = re.search(r"verify failed: ([^(]*)", text)
        why = found[1].strip() if found else "not trusted"
        return f"its certificate is refused ({printable(why)}); give its authority with --ca FILE"
    if "SSL" in text:
        return "what answers there does not speak TLS as https:// needs it; try http://"
    if isinstance(error, httpx.ConnectError):
        return "no service answers there; start one with: fedveil serve RUN"
    return (
        "the connection broke; see whether the service takes https://, and whether it demands a "
        "client certificate (--cert and --key)"
    )
