"""The Flower `ServerApp`: the same federation under a SuperLink and in a simulation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context
from flwr.serverapp import ServerApp
from flwr.serverapp.grid import Grid

from fedveil.audit_log.trail import AuditTrail
from fedveil.config import Config, parse_config
from fedveil.flower import show_errors_in_one_line
from fedveil.home import default_runs_dir, home
from fedveil.hygiene import forbid_core_dumps
from fedveil.settings import ConfigError, read_toml, unflatten

if TYPE_CHECKING:
    from fedveil.server.federation import RunOptions, RunSummary
    from fedveil.server.observer import Observer
    from fedveil.server.records import RoundRecord

__all__ = ["RUN_OPTIONS", "LoggingObserver", "app", "make_server_app"]

RUN_OPTIONS = ("out", "kek", "data-dir", "roster", "resume")
"""What a run configuration may say about this machine, under ``run``."""

_log = logging.getLogger("flwr")


class LoggingObserver:
    """Tells what happens through Flower's logger, so that ``flwr run --stream`` shows it."""

    def started(self, config: Config, run: str, clients: int, noise: float | None) -> None:
        """Log the start."""
        privacy = "no privacy" if noise is None else f"noise multiplier {noise:g}"
        _log.info(
            "Fedveil run %s: task %s, %d clients, %s", run, config.task.name, clients, privacy
        )

    def reply(self, round_: int, replies: int, cohort: int) -> None:
        """Log nothing: a line a reply would bury the rest."""

    def round_done(self, record: RoundRecord, rounds: int) -> None:
        """Log the figures of a round."""
        accuracy = "" if record.accuracy is None else f", accuracy {record.accuracy:.4f}"
        epsilon = "" if record.epsilon is None else f", epsilon {record.epsilon:.4f}"
        _log.info("Fedveil round %d/%d%s%s", record.round, rounds, accuracy, epsilon)

    def warning(self, text: str) -> None:
        """Log a warning."""
        _log.warning("%s", text)


def make_server_app(
    observer: Observer,
    should_stop: Callable[[], bool] = lambda: False,
    on_end: Callable[[RunSummary], None] = lambda _: None,
    *,
    is_audited: bool = False,
) -> ServerApp:
    """Return a `ServerApp` that tells `observer` what happens.

    Its run configuration holds the settings of `fedveil.config.Config`, and a section ``run``
    with ``out``, ``kek``, ``data-dir``, ``roster`` and ``resume``, all optional, for this
    machine.

    Where `is_audited`, what becomes of a run is written into the audit log of ``$FEDVEIL_HOME``.
    """
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        from fedveil.server.federation import run_federation
        from fedveil.server.run_trail import RunTrail

        config, options = read_run_config(context.run_config, context.run_id)
        audit = AuditTrail(home()) if is_audited else None
        trail = RunTrail(audit, str(context.run_id), options.out)
        on_end(run_federation(grid, config, options, observer, should_stop, trail))

    return server_app


def read_run_config(flat: Mapping[str, object], run_id: int) -> tuple[Config, RunOptions]:
    """Split a Flower run configuration into settings and this machine's own options.

    Raises
    ------
    FedveilError
        If a setting is wrong.
    """
    from fedveil.server.federation import RunOptions

    tree = unflatten(flat)
    run = tree.pop("run", {})
    if not isinstance(run, Mapping):
        raise ConfigError("run configuration: run is a section")
    unknown = sorted(set(run) - set(RUN_OPTIONS))
    if unknown:
        raise ConfigError(
            f"run configuration: unknown setting run.{unknown[0]}; known here: "
            + ", ".join(sorted(RUN_OPTIONS))
        )
    # Flower's run configuration has no way to leave a key out, so an empty text stands for that.
    paths = {key: Path(str(value)) for key, value in run.items() if value != ""}
    resume = paths.get("resume")
    options = RunOptions(
        out=resume or paths.get("out") or default_runs_dir() / f"run-{run_id}",
        kek=str(run["kek"]) if run.get("kek") else None,
        data_dir=paths.get("data-dir"),
        roster=paths.get("roster"),
        resume=resume is not None,
    )
    if resume is not None:
        tree = read_toml(resume / "config.toml")
    return parse_config(tree, "run configuration"), options


show_errors_in_one_line()
app = make_server_app(LoggingObserver(), is_audited=True)


@app.lifespan()
def _deployed(_: Context) -> Iterator[None]:
    # Of the app that Flower starts a process for; a simulation makes its own.
    forbid_core_dumps()
    yield
