"""The federation's file: who takes part, where the coordinator is, and what is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedveil.config import first_complaint
from fedveil.rosters import parse_public_key
from fedveil.secagg.errors import RosterError
from fedveil.server.provisioning.addresses import check_host, check_listen, is_local
from fedveil.server.provisioning.errors import ProvisionError
from fedveil.server.provisioning.layout import COORDINATOR, RESERVED
from fedveil.server.provisioning.supernode_keys import parse_supernode_key
from fedveil.settings import Tree, read_toml

__all__ = [
    "CertificateEntry",
    "ClientEntry",
    "ContainerEntry",
    "CoordinatorEntry",
    "FederationFile",
    "InferenceEntry",
    "PolicyEntry",
    "RunEntry",
    "listens_on",
    "read_federation",
]

# Together they are at most 62 characters: the name of a service under Kubernetes.
_NAME = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"
_FEDERATION_NAME = r"^[a-z]([a-z0-9-]{0,18}[a-z0-9])?$"
_IMAGE = r"^[a-z0-9][A-Za-z0-9._/:@-]{0,254}$"
_PATH = r"^[^\x00-\x1f\x7f]+$"


def _check_identity(text: str) -> str:
    try:
        parse_public_key(text)
    except RosterError as error:
        raise ValueError(str(error)) from None
    return text


def _check_supernode_key(text: str) -> str:
    try:
        return parse_supernode_key(text)
    except ProvisionError as error:
        raise ValueError(str(error)) from None


_Name = Annotated[str, Field(pattern=_NAME)]
_Port = Annotated[int, Field(ge=1, le=65535)]
_Host = Annotated[str, AfterValidator(check_host)]
_Hosts = Annotated[tuple[_Host, ...], Field(min_length=1, strict=False)]
_Listen = Annotated[str, AfterValidator(check_listen)]
_Days = Annotated[int, Field(ge=1, le=36_500)]
_Path = Annotated[str, Field(pattern=_PATH)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class CoordinatorEntry(_Section):
    """Where the SuperLink is.

    Parameters
    ----------
    hosts : tuple of str
        Names and addresses that its certificate is good for. The first is what clients connect to.
    port : int
        Its port, for SuperNodes and `flwr` alike.
    listen : str, optional
        Address that it listens on. Default: 127.0.0.1 if all hosts are of this machine, else
        0.0.0.0.
    """

    hosts: _Hosts
    port: _Port = 8000
    listen: _Listen | None = None


class RunEntry(_Section):
    """What is trained.

    Parameters
    ----------
    scenario : str
        A built-in scenario, or the TOML file of one.
    settings : dict
        Settings over those of the scenario, in sections as there. ``federation.clients`` follows
        from the clients of this file.
    """

    scenario: Annotated[str, Field(min_length=1)] = "digits"
    settings: Tree = {}

    @model_validator(mode="after")
    def _leaves_the_clients_alone(self) -> Self:
        federation = self.settings.get("federation")
        if isinstance(federation, dict) and "clients" in federation:
            raise ValueError("leave settings.federation.clients out: the clients are listed here")
        return self


class PolicyEntry(_Section):
    """What each client's policy starts from; its owner edits it.

    Parameters
    ----------
    epsilon, delta : float, optional
        Budget of all runs together. Default: ``dp.target_epsilon`` and ``dp.delta`` of the run.
    min_cohort : int
        Least number of clients in a sum.
    """

    epsilon: Annotated[float, Field(gt=0, le=100)] | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    min_cohort: Annotated[int, Field(ge=1)] = 2


class ClientEntry(_Section):
    """A client.

    Parameters
    ----------
    place : int, optional
        Which part of the data it holds, from 0 on. Default: the next that was never taken. Once
        given, it stays.
    port : int, optional
        Port on its own machine that its SuperNode listens on for the app. Default: 9101 + place.
    data_dir : str, optional
        Where its data files lie on its own machine.
    identity, supernode_key : str, optional
        Public halves of keys that its owner made, as `fedveil keys new-identity` and
        `ssh-keygen -t ecdsa -b 384` print them. Its kit then comes without private keys.
    """

    place: Annotated[int, Field(ge=0, lt=1_000_000)] | None = None
    port: _Port | None = None
    data_dir: _Path | None = None
    identity: Annotated[str, AfterValidator(_check_identity)] | None = None
    supernode_key: Annotated[str, AfterValidator(_check_supernode_key)] | None = None

    @model_validator(mode="after")
    def _both_keys_or_none(self) -> Self:
        if (self.identity is None) != (self.supernode_key is None):
            raise ValueError("identity and supernode_key belong together: give both or neither")
        return self


class InferenceEntry(_Section):
    """An inference service.

    Parameters
    ----------
    hosts : tuple of str
        Names and addresses that its certificate is good for. The first is what callers connect to.
    port : int
        Port for HTTP.
    grpc_port : int, optional
        Port for gRPC. Default: none.
    listen : str, optional
        Address that it listens on, chosen as the coordinator's.
    run : str
        Run folder that it serves: a path on its machine, or one inside its kit.
    """

    hosts: _Hosts
    port: _Port = 8443
    grpc_port: _Port | None = None
    listen: _Listen | None = None
    run: _Path = "run"


class CertificateEntry(_Section):
    """How long certificates are valid.

    Parameters
    ----------
    days : int
        Those of the servers.
    authority_days : int
        That of the authority that signs them.
    """

    days: _Days = 365
    authority_days: _Days = 3650


class ContainerEntry(_Section):
    """What the compose and Kubernetes files start.

    Parameters
    ----------
    image : str
        An image in which `fedveil` is installed.
    """

    image: Annotated[str, Field(pattern=_IMAGE)] = "fedveil:latest"


class FederationFile(_Section):
    """A federation, whole.

    Parameters
    ----------
    name : str
        1 to 20 lower-case letters, digits and dashes, a letter first; names of parties have at
        most 40 and may begin with a digit.
    clients : dict
        Clients by name; secure aggregation tells them apart by it.
    inference : dict
        Inference services by name.
    """

    format: Literal["fedveil-federation-1"]
    name: Annotated[str, Field(pattern=_FEDERATION_NAME)]
    coordinator: CoordinatorEntry
    run: RunEntry = RunEntry()
    policy: PolicyEntry = PolicyEntry()
    clients: Annotated[dict[_Name, ClientEntry], Field(min_length=1)]
    inference: dict[_Name, InferenceEntry] = {}
    certificates: CertificateEntry = CertificateEntry()
    containers: ContainerEntry = ContainerEntry()

    @property
    def parties(self) -> tuple[str, ...]:
        """The names of all parties, the coordinator's first."""
        return (COORDINATOR, *self.clients, *self.inference)

    @model_validator(mode="after")
    def _names_are_told_apart(self) -> Self:
        for name in [*self.clients, *self.inference]:
            if name in RESERVED:
                raise ValueError(f"the name {name} is taken; call the party another")
        both = sorted(set(self.clients) & set(self.inference))
        if both:
            raise ValueError(f"{both[0]} is a client and an inference service; take two names")
        places: dict[int, str] = {}
        for name, client in self.clients.items():
            if client.place is None:
                continue
            if client.place in places:
                raise ValueError(
                    f"{places[client.place]} and {name} both have place {client.place}"
                )
            places[client.place] = name
        return self


def read_federation(path: Path) -> FederationFile:
    """Read a federation's file.

    Raises
    ------
    ConfigError
        If it cannot be read or is not TOML.
    ProvisionError
        If it is malformed or contradicts itself.
    """
    tree = read_toml(path)
    try:
        return FederationFile.model_validate(tree)
    except ValidationError as error:
        raise ProvisionError(f"{path}: {first_complaint(error, FederationFile)}") from None


def listens_on(entry: CoordinatorEntry | InferenceEntry) -> str:
    """Return the address that a server listens on."""
    if entry.listen is not None:
        return entry.listen
    return "127.0.0.1" if all(is_local(host) for host in entry.hosts) else "0.0.0.0"  # noqa: S104
