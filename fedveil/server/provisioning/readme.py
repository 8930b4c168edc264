"""What a kit says to the person who unpacks it."""

from __future__ import annotations

from fedveil.server.provisioning.kit_file import AnyKit, ClientKit, CoordinatorKit, InferenceKit
from fedveil.server.provisioning.layout import CONNECTION

__all__ = ["readme"]

_SAME = """\
# The kit of {name}, {party} of {federation}

It holds private keys: keep it to yourself, hand it on by a way that nobody else can read, and
delete the copies on the way. The folder can be moved; after that say `fedveil kit settle .` once.

    fedveil kit check .        # dates, names, keys, permissions; one line a finding
    export FEDVEIL_HOME=$PWD   # all other commands of Fedveil then use this kit
"""

_COORDINATOR = """
Start the SuperLink on {listen}, port {port}, then a run:

    bin/start
    bin/run

The same by Flower's own commands:

    bin/superlink
    bin/register               # after every start: Flower keeps registrations in memory
    bin/flwr run app {connection} --stream --run-config "run.roster='$PWD/roster.toml'"

Back up `keys/`: without `model.key` no model can be opened, without `signing.key` no run can be
continued. Models are checked with `{signer}`.
Whoever reaches the port can ask Flower's control interface to register a node or to submit a run:
let only the clients' machines through. Secure aggregation with the clients' pinned rosters and
their own policies hold against such a node all the same.
"""

_CLIENT = """
`policy.toml` says what this client allows: read it, edit it, it is yours. `node.toml` says where
the data lies. No later change of the federation touches the two.

    fedveil policy check policy.toml
    bin/start                  # connects to {superlink}

The same by Flower's own command, which runs the code that the server ships:

    bin/supernode

`roster.toml` lists whom your updates may be summed with. A change of the federation comes as a new
`roster.toml`: put it in the place of the old one and say `fedveil kit check .`; it must be signed
by the authority that this kit names.
"""

_INFERENCE = """
Put the run folder at `{run}`, or link it. On the coordinator's machine, let this service's key open
its models, once a run:

    fedveil keys add RUN --to file:keys/{name}.key

Then make a token for each caller, and start:

    fedveil tokens new CALLER --file tokens.json
    bin/start                  # https://{address}
"""


def readme(kit: AnyKit) -> bytes:
    """Return the README of a kit."""
    text = _SAME.format(name=kit.name, party=kit.party, federation=kit.federation)
    if isinstance(kit, CoordinatorKit):
        text += _COORDINATOR.format(
            listen=kit.listen, port=kit.port, connection=CONNECTION, signer=kit.signer
        )
    elif isinstance(kit, ClientKit):
        text += _CLIENT.format(superlink=kit.superlink_address)
    else:
        assert isinstance(kit, InferenceKit)  # noqa: S101  # narrows the type
        text += _INFERENCE.format(run=kit.run, name=kit.name, address=kit.address)
    return text.encode()
