"""`fedveil server KIT`: the SuperLink of a coordinator's kit, its SuperNodes registered."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from fedveil.cli_kits import coordinator_environment, coordinator_kit
from fedveil.logs import LogFormat, log_to

__all__ = ["serve_kit"]

_PRIVATE_UMASK = 0o077


def serve_kit(kit: Path, log_format: LogFormat, metrics_port: int | None) -> None:
    """Start the SuperLink of a kit and stay with it until told to stop.

    Parameters
    ----------
    kit : Path
        A coordinator's kit.
    log_format : LogFormat
        How its log is written.
    metrics_port : int, optional
        Where Prometheus finds its metrics, on this machine alone.

    Raises
    ------
    FedveilError
        If the kit is not fit, the address is taken, or the SuperLink ends by itself.
    """
    from fedveil.audit_log.trail import AuditTrail, trail
    from fedveil.cli_server import check_address, superlink_arguments
    from fedveil.server.provisioning import layout, read_trusted_roster
    from fedveil.server.run_metrics import CoordinatorMetrics, serve_metrics
    from fedveil.server.superlink_service import (
        REGISTERED,
        SuperLinkSettings,
        read_registered,
        serve_superlink,
    )

    log_to(None, log_format)
    folder = kit.resolve()
    found = coordinator_kit(folder)
    check_address(found.listen, found.port)
    os.umask(_PRIVATE_UMASK)
    tls = {
        "--ssl-certfile": folder / layout.SERVER_CERTIFICATE,
        "--ssl-keyfile": folder / layout.SERVER_KEY,
        "--ssl-ca-certfile": folder / layout.CA,
    }
    settings = SuperLinkSettings(
        arguments=tuple(superlink_arguments(found.listen, found.port, tls, True)),
        environment=coordinator_environment(folder),
        host=found.listen,
        port=found.port,
        connection=found.connection,
        keys=folder / layout.SUPERNODES,
        roster=partial(
            read_trusted_roster, folder / layout.ROSTER, found.authority, found.federation
        ),
        registered=folder / REGISTERED,
        trail=AuditTrail(folder),
    )
    with ExitStack() as beside:
        if metrics_port is not None:
            metrics = CoordinatorMetrics(
                folder / "runs",
                trail(folder)[0],
                lambda: len(read_registered(folder)),
                time.time(),
            )
            beside.enter_context(serve_metrics(metrics, metrics_port))
        serve_superlink(settings)
