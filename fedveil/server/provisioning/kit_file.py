"""`kit.toml`: whose kit a folder is, and what its party has to know."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fedveil import __version__
from fedveil.server.provisioning.errors import KitError
from fedveil.server.provisioning.layout import KIT
from fedveil.settings import ConfigError, read_toml

__all__ = [
    "KIT_FORMAT",
    "AnyKit",
    "ClientKit",
    "CoordinatorKit",
    "InferenceKit",
    "K",
    "flower_version",
    "read_any_kit",
    "read_kit",
]

KIT_FORMAT: Final = "fedveil-kit-1"

_Port = Annotated[int, Field(ge=1, le=65535)]


def flower_version() -> str:
    """Return major and minor of the Flower that is installed; kits are made for one of them."""
    return ".".join(version("flwr").split(".")[:2])


class _Kit(BaseModel):
    """What all kits say.

    Parameters
    ----------
    name, federation : str
        Whose kit it is, and of which federation.
    made_with, flower : str
        Versions of Fedveil and Flower that it was made for.
    authority : str
        Public key (Ed25519, base64) of the authority that signs the roster.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["fedveil-kit-1"] = KIT_FORMAT
    name: str
    federation: str
    made_with: str = __version__
    flower: str = Field(default_factory=flower_version)
    authority: str

    def to_toml(self) -> bytes:
        """Return the file."""
        return tomli_w.dumps(self.model_dump(exclude_none=True)).encode()


class CoordinatorKit(_Kit):
    """Of the coordinator.

    Parameters
    ----------
    superlink_address : str
        What SuperNodes and `flwr` connect to, host:port.
    listen, port
        Where the SuperLink listens.
    connection : str
        Its name in the kit's Flower configuration.
    signer : str
        What the signatures of its models are checked with (Ed25519, base64).
    """

    party: Literal["coordinator"] = "coordinator"
    superlink_address: str
    listen: str
    port: _Port
    connection: str
    signer: str


class ClientKit(_Kit):
    """Of a client.

    Parameters
    ----------
    superlink_address : str
        What it connects to, host:port.
    place : int
        Which part of the data it holds: Flower's ``partition-id``.
    runtime_host, runtime_port
        Where its SuperNode listens for the app, on its own machine.
    """

    party: Literal["client"] = "client"
    superlink_address: str
    place: Annotated[int, Field(ge=0)]
    runtime_host: str
    runtime_port: _Port


class InferenceKit(_Kit):
    """Of an inference service.

    Parameters
    ----------
    address : str
        What callers connect to, host:port.
    listen, port, grpc_port
        Where it listens; without `grpc_port` for HTTP only.
    run : str
        The run folder that it serves; a relative path lies in the kit.
    signer : str
        What the signatures of the models are checked with (Ed25519, base64).
    """

    party: Literal["inference"] = "inference"
    address: str
    listen: str
    port: _Port
    grpc_port: _Port | None = None
    run: str
    signer: str


AnyKit = CoordinatorKit | ClientKit | InferenceKit

K = TypeVar("K", CoordinatorKit, ClientKit, InferenceKit)

_ADAPTER: TypeAdapter[AnyKit] = TypeAdapter(Annotated[AnyKit, Field(discriminator="party")])


def read_kit(folder: Path, kind: type[K]) -> K:
    """Return what the kit of a certain party says.

    Raises
    ------
    KitError
        If the folder is no kit, or that of another party.
    """
    found = read_any_kit(folder)
    if not isinstance(found, kind):
        wanted = kind.model_fields["party"].default
        raise KitError(
            f"{folder}: is the kit of {found.name} ({found.party}), and the one of a {wanted} is "
            "needed here"
        )
    return found


def read_any_kit(folder: Path) -> AnyKit:
    """Return what a kit says.

    Raises
    ------
    KitError
        If the folder is no kit, or this version does not read it.
    """
    path = folder / KIT
    if not path.is_file():
        raise KitError(
            f"{folder}: is no kit, as there is no {KIT} in it; `fedveil provision` makes kits"
        )
    try:
        tree = read_toml(path)
    except ConfigError as error:
        raise KitError(str(error)) from None
    if tree.get("format") != KIT_FORMAT:
        raise KitError(
            f"{path}: has the format {tree.get('format')!r:.40}, and this Fedveil ({__version__}) "
            f"reads {KIT_FORMAT}; use the version that made it, or make the kits anew"
        )
    try:
        return _ADAPTER.validate_python(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        raise KitError(f"{path}: {where}: {first['msg']}") from None
