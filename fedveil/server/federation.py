"""One run from joining to report, with resume."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flwr.serverapp.grid import Grid

from fedveil.client.app import partition_spec
from fedveil.config import Config
from fedveil.errors import FedveilError
from fedveil.privacy.report import Report
from fedveil.server.budget import noise_for_the_rest
from fedveil.server.joining import Roster
from fedveil.server.observer import Observer
from fedveil.server.preflight import model_dimension, settings_checks
from fedveil.server.reporting import write_report
from fedveil.server.round_notes import RoundNotes
from fedveil.server.run_folder import NewRun, RunFolder, now
from fedveil.server.run_trail import RunTrail
from fedveil.server.storage import absolute_spec, default_spec
from fedveil.server.training import Training, request_for, secure_rounds
from fedveil.strategies.stage_clock import StageClock
from fedveil.tasks.base import Examples, Task
from fedveil.tasks.registry import create_task

__all__ = ["RunOptions", "RunSummary", "prepare", "run_federation"]


@dataclass(frozen=True)
class RunOptions:
    """Where a run is kept, on this machine alone.

    Parameters
    ----------
    out : Path
        The run folder.
    kek : str, optional
        The KEK of the model store, as `fedveil.vault.kek.registry.open_kek` takes it; a key file
        is made if it is not there. By default the user's own key file, and for a resumed run what
        it was made with.
    data_dir : Path, optional
        Data directory of the task, for the public test set; a resumed run remembers its own.
    roster : Path, optional
        Roster file: only clients in it take part in secure aggregation. The clients check each
        other against rosters of their own in any case.
    resume : bool
        Continue the run in `out`; its own settings hold.
    """

    out: Path
    kek: str | None = None
    data_dir: Path | None = None
    roster: Path | None = None
    resume: bool = False


@dataclass(frozen=True)
class RunSummary:
    """How a run ended: `finished` is False when it was stopped between two rounds."""

    folder: RunFolder
    report: Report
    finished: bool


def run_federation(
    grid: Grid,
    config: Config,
    options: RunOptions,
    observer: Observer,
    should_stop: Callable[[], bool] = lambda: False,
    trail: RunTrail | None = None,
) -> RunSummary:
    """Run a federation, or the rest of one, and write its report.

    Parameters
    ----------
    grid : Grid
        Where the clients are: in this process, or behind a SuperLink.
    config : Config
        The settings; a resumed run takes its own.
    options : RunOptions
        Where the run is kept.
    observer : Observer
        Told what happens.
    should_stop : callable
        Asked between rounds.
    trail : RunTrail, optional
        Where it is written down who takes part, and how it ends.

    Raises
    ------
    fedveil.errors.FedveilError
        With one line; rounds committed until then stand, and the run can be resumed.
    """
    trail = trail or RunTrail(None, "", options.out)
    with trail.told():
        summary = _run(grid, config, options, observer, should_stop, trail)
        trail.ended("finished" if summary.finished else "stopped")
    return summary


def _run(
    grid: Grid,
    config: Config,
    options: RunOptions,
    observer: Observer,
    should_stop: Callable[[], bool],
    trail: RunTrail,
) -> RunSummary:
    folder = RunFolder.open(options.out, options.kek, writing=True) if options.resume else None
    if folder is None:
        RunFolder.check_free(options.out)
    else:
        config = folder.config
    data_dir = options.data_dir or (folder.info.data_dir if folder else None)
    config, task = prepare(config, data_dir)
    settings_sha256 = hashlib.sha256(config.to_toml().encode()).hexdigest()
    trail.began(settings_sha256, options.roster, is_resumed=options.resume)
    public_test = _public_test(task, data_dir)
    if folder is not None and folder.committed >= config.federation.rounds:
        report = write_report(folder)
        folder.store.close()
        return RunSummary(folder, report, finished=True)

    roster = Roster(
        grid,
        request_for(config),
        config.federation.clients,
        config.federation.join_timeout,
        observer.warning,
        trail,
    )
    journal = folder.journal if folder else None
    committed = folder.committed if folder else 0
    dimension = model_dimension(task)
    noise = noise_for_the_rest(config, journal, committed, dimension)
    spent = set(journal.releases_by_client().values()) if journal else ()
    rest = config.federation.rounds - committed
    for check in settings_checks(config, task, noise, rounds=rest, spent=spent):
        check.run()
    if config.dp.is_private and config.dp.insecure_seed is not None:
        observer.warning("dp.insecure_seed makes the noise repeatable: the run claims nothing")
    joined = roster.wait_for(
        config.federation.clients, config.federation.min_clients, config.federation.join_timeout
    )
    if folder is None:
        folder = RunFolder.create(
            options.out, config, _new_run(config, options, public_test, dimension)
        )
    folder.store.claim()
    folder.write_metrics()
    observer.started(config, folder.info.run, len(joined), noise)
    clock = StageClock()
    try:
        secure = secure_rounds(grid, config, folder.info.run, options.roster, clock)
        training = Training(
            grid=grid,
            folder=folder,
            task=task,
            public_test=public_test,
            roster=roster,
            observer=observer,
            should_stop=should_stop,
            notes=RoundNotes(trail, folder.path, roster, secure, clock),
            secure=secure,
        )
        finished = training.run(noise)
        report = write_report(folder)
    except BaseException:
        # Whatever ended the run, the report tells what was spent until then.
        _try_to_report(folder, observer)
        raise
    finally:
        folder.store.close()
    return RunSummary(folder, report, finished)


def _try_to_report(folder: RunFolder, observer: Observer) -> None:
    """Write the report of a run that failed; what made it fail is told, also if this fails."""
    try:
        write_report(folder)
    except FedveilError as error:
        observer.warning(f"the report is not that of the last round: {error}")


def prepare(config: Config, data_dir: Path | None) -> tuple[Config, Task]:
    """Return the settings with what the task knows filled in, and the task.

    Raises
    ------
    FedveilError
        If there is no such task, or it does not take its options.
    """
    config = _resolve(config, _create_task(config, data_dir))
    return config, _create_task(config, data_dir)


def _create_task(config: Config, data_dir: Path | None) -> Task:
    return create_task(
        config.task.name,
        seed=config.seed,
        partition=partition_spec(config.partition),
        data_dir=data_dir,
        options=config.task.options,
    )


def _resolve(config: Config, task: Task) -> Config:
    """Fill in what the user left open and the task knows, all of it public."""
    nominal = config.training.nominal_records
    if nominal is None:
        nominal = max(1, task.nominal_records // config.federation.clients)
    defaults = {} if config.dp.is_private else task.options_without_privacy
    return config.model_copy(
        update={
            "training": config.training.model_copy(update={"nominal_records": nominal}),
            "task": config.task.model_copy(update={"options": {**defaults, **config.task.options}}),
        }
    )


def _public_test(task: Task, data_dir: Path | None) -> Examples | None:
    # A coordinator need not hold any data; the run then has no public accuracy.
    if task.data_files and data_dir is None:
        return None
    return task.public_test()


def _new_run(
    config: Config, options: RunOptions, public_test: Examples | None, dimension: int
) -> NewRun:
    stamp = now().replace("-", "").replace(":", "")[:15].lower()
    return NewRun(
        run=f"{config.task.name}-{stamp}-{secrets.token_hex(3)}",
        kek=absolute_spec(options.kek or default_spec()),
        data_dir=options.data_dir.absolute() if options.data_dir else None,
        public_test=public_test is not None,
        dimension=dimension,
    )
