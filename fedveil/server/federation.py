"""One run from joining to report, with resume."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp.grid import Grid
from numpy.typing import NDArray

from fedveil import __version__
from fedveil.client.app import partition_spec
from fedveil.client.local_training import make_optimizer, resolve_device
from fedveil.config import Config
from fedveil.home import default_key_file
from fedveil.privacy.accounting import AccountingError
from fedveil.privacy.preflight import check_delta
from fedveil.privacy.report import Report
from fedveil.rosters import read_roster
from fedveil.secagg.errors import BelowThresholdError
from fedveil.server.budget import largest_epsilon, noise_for_the_rest, round_releases
from fedveil.server.evaluation import evaluate_by_clients, evaluate_publicly
from fedveil.server.joining import Roster
from fedveil.server.reporting import write_report
from fedveil.server.run_folder import RoundRecord, RunFolder, RunFolderError, RunInfo, now
from fedveil.strategies.factory import make_strategy, restore_state, strategy_state
from fedveil.strategies.round_loop import RoundError, RoundOutcome, RoundPlan, run_rounds
from fedveil.strategies.secure_rounds import SecureRounds, SecureSettings
from fedveil.tasks.base import Examples, Task
from fedveil.tasks.registry import create_task

__all__ = ["Observer", "RunOptions", "RunSummary", "run_federation"]

_ROOM_FOR_RECORDS = 2
"""A client may hold so many times the records that the task is published with."""


@dataclass(frozen=True)
class RunOptions:
    """Where a run is kept, on this machine alone.

    Parameters
    ----------
    out : Path
        The run folder.
    key_file : Path, optional
        Key file of the model store, made if it is not there; by default the user's own, and for
        a resumed run the one that it was made with.
    data_dir : Path, optional
        Data directory of the task, for the public test set; a resumed run remembers its own.
    roster : Path, optional
        Roster file: only clients in it take part in secure aggregation. The clients check each
        other against rosters of their own in any case.
    resume : bool
        Continue the run in `out`; its own settings hold.
    """

    out: Path
    key_file: Path | None = None
    data_dir: Path | None = None
    roster: Path | None = None
    resume: bool = False


class Observer(Protocol):
    """Whoever watches a run."""

    def started(self, config: Config, run: str, clients: int, noise: float | None) -> None:
        """Hear that everybody has joined; `noise` is the noise multiplier, None without privacy."""

    def reply(self, round_: int, replies: int, cohort: int) -> None:
        """Hear that one more reply of a round has come."""

    def round_done(self, record: RoundRecord, rounds: int) -> None:
        """Hear that a round is committed."""

    def warning(self, text: str) -> None:
        """Hear of something a person should know, in one line."""


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

    Raises
    ------
    fedveil.errors.FedveilError
        With one line; rounds committed until then stand, and the run can be resumed.
    """
    folder = RunFolder.open(options.out, options.key_file) if options.resume else None
    if folder is None:
        RunFolder.check_free(options.out)
    else:
        config = folder.config
    data_dir = options.data_dir or (folder.info.data_dir if folder else None)
    config = _resolve(config, _create_task(config, data_dir))
    task = _create_task(config, data_dir)
    _check_settings(config, task)
    public_test = _public_test(task, data_dir)
    if folder is not None and folder.committed >= config.federation.rounds:
        return RunSummary(folder, write_report(folder), finished=True)

    roster = Roster(
        grid,
        _request(config),
        config.federation.clients,
        config.federation.round_timeout,
        observer.warning,
    )
    journal = folder.journal if folder else None
    committed = folder.committed if folder else 0
    noise = noise_for_the_rest(config, journal, committed)
    joined = roster.wait_for(
        config.federation.clients, config.federation.min_clients, config.federation.join_timeout
    )
    if folder is None:
        folder = RunFolder.create(options.out, config, _info(config, options, public_test))
    folder.store.claim()
    folder.write_metrics()
    observer.started(config, folder.info.run, len(joined), noise)
    try:
        finished = _train(grid, folder, task, public_test, options, roster, observer, should_stop)
    finally:
        # Whatever ended the run, the report tells what was spent until then.
        report = write_report(folder)
        folder.store.close()
    return RunSummary(folder, report, finished)


def _train(
    grid: Grid,
    folder: RunFolder,
    task: Task,
    public_test: Examples | None,
    options: RunOptions,
    roster: Roster,
    observer: Observer,
    should_stop: Callable[[], bool],
) -> bool:
    config = folder.config
    strategy = make_strategy(config.server_optimizer)
    arrays = _initial_arrays(task, config.seed)
    if folder.committed:
        arrays = _like(arrays, folder.store.load(folder.committed).tensors, folder)
        restore_state(strategy, folder.store.load_state(folder.committed).tensors, arrays)
    secure = _secure_rounds(grid, config, folder, options)
    failed, why = 0, ""
    while True:
        # Anew for every attempt: one that failed was charged, and what is left must bear it.
        try:
            noise = noise_for_the_rest(config, folder.journal, folder.committed)
        except AccountingError as error:
            raise RoundError(f"{why}; and no attempt is left: {error}") from None
        request = _request(_with_noise(config, noise))
        plan = RoundPlan(
            request=request,
            releases=round_releases(config, noise),
            fraction=config.federation.fraction,
            min_clients=config.federation.min_clients,
            timeout=config.federation.round_timeout,
            seed=config.seed,
            secure=secure,
        )
        rounds = range(folder.committed + 1, config.federation.rounds + 1)
        try:
            for outcome in run_rounds(
                grid, strategy, arrays, plan, folder.journal, rounds, roster.clients, observer.reply
            ):
                _warn(outcome, config, observer)
                record = _figures(
                    grid, folder, task, public_test, outcome, request, roster, observer, secure
                )
                arrays = outcome.arrays
                tensors = {name: array.numpy() for name, array in arrays.items()}
                folder.commit(record, tensors, strategy_state(strategy))
                observer.round_done(record, config.federation.rounds)
                failed = 0
                if should_stop() and outcome.round < config.federation.rounds:
                    return False
        except BelowThresholdError as error:
            failed += 1
            why = f"round {folder.committed + 1}: {error}"
            if failed > config.secagg.retries:
                raise RoundError(
                    f"{why}; given up after {failed} attempts. Bring the clients back, then "
                    "resume the run"
                ) from None
            observer.warning(f"{why}; trying the round again with fresh keys")
        else:
            return True


def _secure_rounds(
    grid: Grid, config: Config, folder: RunFolder, options: RunOptions
) -> SecureRounds | None:
    if not config.secagg.enabled:
        return None
    s = config.secagg
    exchanges = 2 if config.dp.client_metrics != "off" else 1
    # A sampled cohort is another in each round, so that its keys serve one round.
    rounds = s.setup_rounds if config.federation.fraction == 1.0 else 1
    settings = SecureSettings(
        run=folder.info.run,
        clip_norm=s.clip_norm,
        max_weight=_largest_weight(config),
        ring_bits=s.ring_bits,
        setup_rounds=rounds * exchanges,
        corrupt_share=s.corrupt_share,
        dropped_share=s.dropped_share,
        stage_timeout=s.stage_timeout,
    )
    pinned = read_roster(options.roster) if options.roster else None
    return SecureRounds(grid, settings, pinned)


def _largest_weight(config: Config) -> float:
    """Return a public bound of a client's weight: no client holds more than all records."""
    nominal = config.training.nominal_records
    if config.dp.is_private or nominal is None:
        return 1.0
    return float(_ROOM_FOR_RECORDS * nominal * config.federation.clients)


def _warn(outcome: RoundOutcome, config: Config, observer: Observer) -> None:
    for client, reason in outcome.failures.items():
        observer.warning(f"round {outcome.round}: {client} is left out: {reason}")
    if outcome.clipped:
        observer.warning(
            f"round {outcome.round}: {outcome.clipped} of {len(outcome.clients)} updates were "
            f"scaled down to secagg.clip_norm = {config.secagg.clip_norm:g}; raise it"
        )


def _figures(
    grid: Grid,
    folder: RunFolder,
    task: Task,
    public_test: Examples | None,
    outcome: RoundOutcome,
    request: ConfigRecord,
    roster: Roster,
    observer: Observer,
    secure: SecureRounds | None,
) -> RoundRecord:
    config = folder.config
    test = (
        evaluate_publicly(task, outcome.arrays, public_test, config.training.device)
        if public_test is not None
        else {}
    )
    client_mean: dict[str, float] = {}
    client_weighted: dict[str, float] = {}
    if config.dp.client_metrics != "off":
        nodes = roster.clients()
        # The cohort alone: its releases are the ones that the journal holds.
        asked = [nodes[client] for client in outcome.clients if client in nodes]
        turn = ConfigRecord({**request, "round": outcome.round, "attempt": outcome.attempt})
        try:
            client_mean, client_weighted = evaluate_by_clients(
                grid, outcome.arrays, turn, asked, config.federation.round_timeout, secure
            )
        except BelowThresholdError as error:
            # The model stands; only what the clients would have told of it is missing.
            observer.warning(f"round {outcome.round}: no figures of the clients: {error}")
    return RoundRecord(
        round=outcome.round,
        attempt=outcome.attempt,
        clients=len(outcome.clients),
        failed=len(outcome.failures),
        seconds=round(outcome.seconds, 3),
        epsilon=largest_epsilon(config, folder.journal),
        test=test,
        client_mean=client_mean,
        client_weighted=client_weighted,
        train_loss=outcome.train_loss,
    )


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


def _check_settings(config: Config, task: Task) -> None:
    """Refuse what no client could train with, before anybody is asked."""
    resolve_device(config.training.device)
    with torch.random.fork_rng(devices=[]):
        make_optimizer(task.model(), config.training)
    if config.dp.is_private and config.training.nominal_records is not None:
        check_delta(config.dp.delta, config.training.nominal_records)


def _public_test(task: Task, data_dir: Path | None) -> Examples | None:
    # A coordinator need not hold any data; the run then has no public accuracy.
    if task.data_files and data_dir is None:
        return None
    return task.public_test()


def _info(config: Config, options: RunOptions, public_test: Examples | None) -> RunInfo:
    stamp = now().replace("-", "").replace(":", "")[:15].lower()
    return RunInfo(
        run=f"{config.task.name}-{stamp}-{secrets.token_hex(3)}",
        created=now(),
        fedveil=__version__,
        key_file=(options.key_file or default_key_file()).absolute(),
        data_dir=options.data_dir.absolute() if options.data_dir else None,
        public_test=public_test is not None,
    )


def _request(config: Config) -> ConfigRecord:
    return ConfigRecord({"config": config.model_dump_json()})


def _with_noise(config: Config, noise: float | None) -> Config:
    """Return the configuration as the clients are sent it: with the noise, not the budget."""
    if noise is None:
        return config
    dp = config.dp.model_copy(update={"noise_multiplier": noise, "target_epsilon": None})
    return config.model_copy(update={"dp": dp})


def _initial_arrays(task: Task, seed: int) -> ArrayRecord:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ArrayRecord(task.model().state_dict())


def _like(
    model: ArrayRecord, tensors: Mapping[str, NDArray[np.generic]], folder: RunFolder
) -> ArrayRecord:
    """Return stored tensors in the order of the model's own arrays, or refuse them."""
    stored = {name: (str(t.dtype), tuple(t.shape)) for name, t in tensors.items()}
    expected = {name: (a.dtype, tuple(a.shape)) for name, a in model.items()}
    if stored != expected:
        raise RunFolderError(
            f"{folder.store.path(folder.committed)}: holds other tensors than the model of task "
            f"{folder.config.task.name}; the run was made with another version of the task"
        )
    return ArrayRecord({name: Array(tensors[name]) for name in model})
