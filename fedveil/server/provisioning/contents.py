"""What a kit holds that can be made anew: everything but private keys and the owner's own files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import tomli_w
from cryptography import x509

from fedveil.client.policy_file import new_policy
from fedveil.config import Config
from fedveil.server.new_app import app_files
from fedveil.server.provisioning.addresses import host_and_port
from fedveil.server.provisioning.certificates import show_certificate
from fedveil.server.provisioning.errors import ProvisionError
from fedveil.server.provisioning.federation_file import FederationFile, listens_on
from fedveil.server.provisioning.kit_file import (
    AnyKit,
    ClientKit,
    CoordinatorKit,
    InferenceKit,
)
from fedveil.server.provisioning.layout import (
    APP,
    CA,
    CONNECTION,
    COORDINATOR,
    KIT,
    NODE,
    POLICY,
    ROSTER,
    public_key_file,
)
from fedveil.server.provisioning.readme import readme
from fedveil.server.provisioning.scripts import (
    client_scripts,
    coordinator_scripts,
    inference_scripts,
)
from fedveil.server.provisioning.services import container_files
from fedveil.server.provisioning.signed_roster import SignedRoster

__all__ = ["Federation", "starting_policy"]

_FIRST_RUNTIME_PORT = 9101
_RUNTIME_HOST = "127.0.0.1"

_NODE = """\
# What this client adds to Flower's node configuration; its owner's alone. Known to Fedveil:
# data-dir = "/path"            # where the data files of the task lie
# secagg = "off"                # let the server have this client's update by itself
# secagg-min-clients, secagg-min-bits, secagg-max-clip-norm, secagg-corrupt-share,
# secagg-sparse-corrupt-share   # floors of secure aggregation: docs/secagg.md
"""


@dataclass(frozen=True)
class Federation:
    """All that the files of kits follow from.

    Parameters
    ----------
    file : FederationFile
        Who takes part.
    config : Config
        What is run.
    certificate : Certificate
        The authority's.
    authority, signer : str
        Public keys (base64): what rosters and models are checked with.
    roster : SignedRoster
        The clients.
    places : Mapping
        Their parts of the data.
    supernode_keys : Mapping
        Their SuperNode keys, public halves.
    """

    file: FederationFile
    config: Config
    certificate: x509.Certificate
    authority: str
    signer: str
    roster: SignedRoster
    places: Mapping[str, int]
    supernode_keys: Mapping[str, str]

    def kit(self, name: str) -> AnyKit:
        """Return what a party's `kit.toml` says."""
        federation, authority = self.file.name, self.authority
        if name == COORDINATOR:
            coordinator = self.file.coordinator
            return CoordinatorKit(
                name=name,
                federation=federation,
                authority=authority,
                superlink_address=self._superlink,
                listen=listens_on(coordinator),
                port=coordinator.port,
                connection=CONNECTION,
                signer=self.signer,
            )
        if name in self.file.clients:
            place = self.places[name]
            port = self.file.clients[name].port
            return ClientKit(
                name=name,
                federation=federation,
                authority=authority,
                superlink_address=self._superlink,
                place=place,
                runtime_host=_RUNTIME_HOST,
                runtime_port=_FIRST_RUNTIME_PORT + place if port is None else port,
            )
        entry = self.file.inference[name]
        return InferenceKit(
            name=name,
            federation=federation,
            authority=authority,
            address=host_and_port(entry.hosts[0], entry.port),
            listen=listens_on(entry),
            port=entry.port,
            grpc_port=entry.grpc_port,
            run=entry.run,
            signer=self.signer,
        )

    def files(self, name: str) -> dict[str, bytes]:
        """Return the files of a party's kit that can be made anew, by path in it."""
        kit = self.kit(name)
        files = {
            KIT: kit.to_toml(),
            CA: show_certificate(self.certificate),
            "README.md": readme(kit),
            **container_files(kit, self.file.containers.image),
        }
        if isinstance(kit, InferenceKit):
            return files | inference_scripts(kit)
        files[ROSTER] = self.roster.to_toml()
        if isinstance(kit, ClientKit):
            return files | client_scripts(kit)
        registered = {
            public_key_file(client): f"{key} {client}\n".encode()
            for client, key in self.supernode_keys.items()
        }
        app = app_files(self.file.name, self.config)
        return {
            **files,
            **coordinator_scripts(kit),
            **registered,
            **{f"{APP}/{path}": content for path, content in app.items()},
        }

    def own_files(self, client: str) -> dict[str, bytes]:
        """Return the files of a client that are its owner's from then on, by path in its kit.

        Raises
        ------
        FedveilError
            As `starting_policy` does.
        """
        return {
            POLICY: starting_policy(self.file, self.config),
            NODE: _node_file(self.file.clients[client].data_dir),
        }

    @property
    def _superlink(self) -> str:
        coordinator = self.file.coordinator
        return host_and_port(coordinator.hosts[0], coordinator.port)


def starting_policy(file: FederationFile, config: Config) -> bytes:
    """Return the policy that each client's kit begins with.

    Raises
    ------
    ProvisionError
        If there is no budget to start from.
    PolicyFileError
        If what is there makes no policy.
    """
    wanted, dp, task = file.policy, config.dp, config.task.name
    epsilon = dp.target_epsilon if wanted.epsilon is None else wanted.epsilon
    if epsilon is None:
        raise ProvisionError(
            "the run names no dp.target_epsilon that the clients' policies could start from; give "
            "policy.epsilon"
        )
    delta = dp.delta if wanted.delta is None else wanted.delta
    # Without privacy the owners begin with a policy that refuses the run: it is theirs to open.
    mode = dp.mode if dp.is_private else "record/local"
    return new_policy([task], epsilon, delta, task, wanted.min_cohort, [mode])


def _node_file(data_dir: str | None) -> bytes:
    """Return a client's `node.toml` as it begins."""
    named = "" if data_dir is None else tomli_w.dumps({"data-dir": data_dir})
    return (_NODE + named).encode()
