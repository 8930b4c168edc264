"""The clients of a simulation, as any process can make them."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.clientapp import ClientApp

from fedveil.client.app import make_client_app
from fedveil.client.credentials import Credentials
from fedveil.config import Config
from fedveil.privacy.randomness import SecureGenerator
from fedveil.secagg.identity import Identity, Roster
from fedveil.simulations.guards import Guards

__all__ = ["FIRST_NODE", "SimulatedClients"]

FIRST_NODE = 2
"""The node of the first client; the server's is 1."""


@dataclass(frozen=True)
class SimulatedClients:
    """What all clients have in common. It can be sent to a process, which an app cannot.

    Parameters
    ----------
    config : Config
        The settings of the run.
    guards : Guards
        What the clients allow.
    """

    config: Config
    guards: Guards

    def app(self) -> ClientApp:
        """Return the deployed app, with an identity and a guard for each node."""
        credentials = self._made_up_credentials()
        return make_client_app(
            lambda node: credentials[node.node_id],
            lambda node: node.node_id in credentials,
            lambda node: self.guards.guard(f"client-{node.node_id - FIRST_NODE}"),
        )

    def _made_up_credentials(self) -> dict[int, Credentials]:
        """Return identities by node, and a roster of them; none without secure aggregation.

        They follow from the seed, so that a run which is repeated or resumed rounds alike, and
        that every process of a run has the same. There is nobody to hide from on one machine.
        """
        config = self.config
        if not config.secagg.enabled:
            return {}
        identities = {
            node: Identity(
                f"client-{node - FIRST_NODE}",
                SecureGenerator.from_seed("identity", config.seed, node).words(4).tobytes(),
            )
            for node in range(FIRST_NODE, FIRST_NODE + config.federation.clients)
        }
        roster = Roster({one.name: one.public_key for one in identities.values()})
        return {node: Credentials(one, roster) for node, one in identities.items()}
