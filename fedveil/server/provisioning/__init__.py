"""`fedveil provision`: the kits that the parties of a federation start from.

A kit is a folder that holds all that one party needs, and that its party alone may read. The
authority that signs certificates and rosters stays apart from them.

Modules
-------
kits, outcome
    Makes the kits of a federation, and changes them when it changes.
federation_file, addresses
    Who takes part, where the coordinator is, and what is run.
plan
    Who takes part from now on: the file against what was provisioned before.
parties
    What the authority remembers of each party.
authority
    What signs certificates and rosters.
making
    New kits: private keys, drawn into a folder aside.
contents
    What a kit holds that can be made anew.
certificates, supernode_keys, signed_roster
    What is signed, and with what.
scripts, services, readme
    How a kit is started: by hand, under systemd, compose and Kubernetes.
kit_file, layout
    What a kit says, and where its files lie.
settle
    What a kit says of the machine that it lies on.
check, findings
    What is wrong with a kit.
writing
    How kits are written: aside first, then renamed.
"""

from __future__ import annotations

from fedveil.server.provisioning.check import check_kit
from fedveil.server.provisioning.errors import KitError, ProvisionError
from fedveil.server.provisioning.federation_file import FederationFile, read_federation
from fedveil.server.provisioning.findings import Finding
from fedveil.server.provisioning.kit_file import (
    AnyKit,
    ClientKit,
    CoordinatorKit,
    InferenceKit,
    read_any_kit,
    read_kit,
)
from fedveil.server.provisioning.kits import provision
from fedveil.server.provisioning.outcome import Change, Outcome
from fedveil.server.provisioning.settle import node_config, node_config_text, settle
from fedveil.server.provisioning.signed_roster import SignedRoster, read_trusted_roster

__all__ = [
    "AnyKit",
    "Change",
    "ClientKit",
    "CoordinatorKit",
    "FederationFile",
    "Finding",
    "InferenceKit",
    "KitError",
    "Outcome",
    "ProvisionError",
    "SignedRoster",
    "check_kit",
    "node_config",
    "node_config_text",
    "provision",
    "read_any_kit",
    "read_federation",
    "read_kit",
    "read_trusted_roster",
    "settle",
]
