"""The command `fedveil client`: a data owner's node, from its kit."""

from __future__ import annotations

import os

from fedveil.cli_kits import KitArgument, LogFormatOption, require_sound
from fedveil.logs import LogFormat, log_to

__all__ = ["client"]


def client(kit: KitArgument, log_format: LogFormatOption = LogFormat.TEXT) -> None:
    """Take part in a federation, from this party's kit, until told to stop (Ctrl-C, SIGTERM).

    Starts Flower's SuperNode, with TLS and the kit's key, and Fedveil's guarded runner beside it.
    The runner answers with the code that is installed here, whatever code the server sends along:
    none of that is unpacked. The process that answers stays warm between messages; when it
    crashes, or takes more than its owner allows, the message is answered with an error and the
    process started anew.

    KIT/policy.toml says what may be asked of the data, KIT/ledger.db keeps what was released, and
    KIT/audit.jsonl who ran what (`fedveil audit-log show KIT`).

    KIT/runner.toml may set `app` (package.module:attribute), `memory_mib` and `seconds` (what one
    message may take; by default the machine's memory and an hour), and `gpu` (an index, several as
    "0,1", or `none`; the clients of one user take turns on them).

    Plain `flower-supernode` takes part with the same kit: see KIT/bin/supernode.
    """
    from fedveil.audit_log.trail import AuditTrail
    from fedveil.client.runner.gpu import gpu_of
    from fedveil.client.runner.runner_file import read_runner_file
    from fedveil.client.runner.service import NodeSettings, serve_node
    from fedveil.client.runner.task_trail import node_told
    from fedveil.server.provisioning import ClientKit, layout, node_config_text, read_kit

    log_to(None, log_format)
    folder = kit.resolve()
    found = read_kit(folder, ClientKit)
    require_sound(folder)
    runner = read_runner_file(folder)
    settings = NodeSettings(
        superlink=found.superlink_address,
        root_certificates=folder / layout.CA,
        key=folder / layout.SUPERNODE_KEY,
        node_config=node_config_text(folder),
        host=found.runtime_host,
        port=found.runtime_port,
        app=runner.app,
        limits=runner.limits(),
        gpu=gpu_of(runner.gpu, os.environ),
        home=folder,
    )
    trusted = {
        "ca": folder / layout.CA,
        "roster": folder / layout.ROSTER,
        "policy": folder / layout.POLICY,
    }
    with node_told(AuditTrail(folder), found.superlink_address, runner.app, trusted):
        serve_node(settings)
