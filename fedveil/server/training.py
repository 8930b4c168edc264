"""The rounds of a run: planned within the budget, measured, committed, and tried again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp.grid import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from fedveil.client.shared_noise import dimension_of, noise_shares
from fedveil.client.vectors import trainable_names
from fedveil.config import Config
from fedveil.privacy.accounting import AccountingError
from fedveil.rosters import read_roster
from fedveil.secagg.errors import BelowThresholdError, ImpossibleSumError
from fedveil.server.budget import largest_epsilon, noise_for_the_rest, round_releases
from fedveil.server.evaluation import ClientFigures, evaluate_by_clients, evaluate_publicly
from fedveil.server.joining import Roster
from fedveil.server.observer import Observer
from fedveil.server.privacy_modes import private_sum
from fedveil.server.records import RoundRecord
from fedveil.server.round_notes import RoundNotes
from fedveil.server.run_folder import RunFolder
from fedveil.server.run_info import RunFolderError
from fedveil.strategies.factory import make_strategy, restore_state, strategy_state
from fedveil.strategies.private_sums import PrivateSum
from fedveil.strategies.round_loop import RoundError, RoundOutcome, RoundPlan, run_rounds
from fedveil.strategies.secure_rounds import SecureRounds, SecureSettings
from fedveil.strategies.stage_clock import Stage, StageClock
from fedveil.tasks.base import Examples, Task

__all__ = ["Training", "request_for", "secure_rounds"]

_ROOM_FOR_RECORDS = 2
"""A client may hold so many times the records that the task is published with."""


@dataclass(frozen=True)
class Training:
    """The rounds that a run has still to do.

    Parameters
    ----------
    grid : Grid
        Where the clients are.
    folder : RunFolder
        Where rounds are committed.
    task : Task
        What is trained.
    public_test : Examples, optional
        What the global model is measured on.
    roster : Roster
        Who can be asked.
    observer : Observer
        Told what happens.
    should_stop : callable
        Asked between rounds.
    notes : RoundNotes
        Keep what is not committed: audit log, times.
    secure : SecureRounds, optional
        Sums updates and figures; without it they come in clear.
    """

    grid: Grid
    folder: RunFolder
    task: Task
    public_test: Examples | None
    roster: Roster
    observer: Observer
    should_stop: Callable[[], bool]
    notes: RoundNotes
    secure: SecureRounds | None

    def run(self, noise: float | None) -> bool:
        """Run the rounds; return whether all are done.

        Parameters
        ----------
        noise : float, optional
            Noise multiplier; None without privacy.

        Raises
        ------
        FedveilError
            With one line; the rounds committed until then stand.
        """
        config = self.folder.config
        strategy = make_strategy(config.server_optimizer)
        failed, failed_round = 0, 0
        while True:
            try:
                return self._run_to_the_end(strategy, noise)
            except BelowThresholdError as error:
                round_ = self.folder.committed + 1
                failed = failed + 1 if round_ == failed_round else 1
                failed_round = round_
                why = f"round {round_}: {error}{self._first_failure()}"
                self.notes.failed(round_, self.folder.journal.attempts(round_), str(error))
            if failed > config.secagg.retries:
                raise RoundError(
                    f"{why}; given up after {failed} attempts. Bring the clients back, then "
                    "resume the run"
                )
            try:
                # The attempt that failed was charged, and what is left must bear the next.
                noise = noise_for_the_rest(
                    config,
                    self.folder.journal,
                    self.folder.committed,
                    dimension_of(_initial_arrays(self.task, config.seed)),
                )
            except AccountingError as error:
                raise RoundError(f"{why}; and no attempt is left: {error}") from None
            self.observer.warning(f"{why}; trying the round again with fresh keys")

    def _first_failure(self) -> str:
        """Return in whose words the last attempt failed, if any client gave them."""
        if self.secure is None or not self.secure.failures:
            return ""
        node, reason = next(iter(self.secure.failures.items()))
        return f"; {self.secure.who(node)}: {reason}"

    def _run_to_the_end(self, strategy: FedAvg, noise: float | None) -> bool:
        config, folder = self.folder.config, self.folder
        arrays = _initial_arrays(self.task, config.seed)
        dimension = dimension_of(arrays)
        summing = self._private_sum(noise, dimension)
        if folder.committed:
            arrays = _like(arrays, folder.store.load(folder.committed).tensors, folder)
            state = folder.store.load_state(folder.committed).tensors
            restore_state(strategy, state, arrays)
            if summing is not None:
                summing.restore(state)
        request = request_for(_with_noise(config, noise))
        plan = RoundPlan(
            request=request,
            releases=round_releases(config, noise, dimension),
            fraction=config.federation.fraction,
            min_clients=config.federation.min_clients,
            timeout=config.federation.round_timeout,
            seed=config.seed,
            secure=self.secure,
            summing=summing,
            clock=self.notes.clock,
        )
        rounds = range(folder.committed + 1, config.federation.rounds + 1)
        for outcome in run_rounds(
            self.grid,
            strategy,
            arrays,
            plan,
            folder.journal,
            rounds,
            self.roster.clients,
            self.observer.reply,
        ):
            self._warn(outcome)
            with self.notes.clock.stage(Stage.EVALUATE):
                record = self._figures(outcome, request)
            tensors = {name: array.numpy() for name, array in outcome.arrays.items()}
            committed = strategy_state(strategy) | ({} if summing is None else summing.state())
            with self.notes.clock.stage(Stage.COMMIT):
                folder.commit(record, tensors, committed)
            self.notes.committed(outcome, record)
            self.observer.round_done(record, config.federation.rounds)
            if self.should_stop() and outcome.round < config.federation.rounds:
                return False
        return True

    def _private_sum(self, noise: float | None, dimension: int) -> PrivateSum | None:
        config = self.folder.config
        if noise is None or config.dp.mode == "record/local":
            return None
        with torch.random.fork_rng(devices=[]):
            names = trainable_names(self.task.model())
        return private_sum(config, noise, dimension, frozenset(names))

    def _warn(self, outcome: RoundOutcome) -> None:
        for client, reason in outcome.failures.items():
            self.observer.warning(f"round {outcome.round}: {client} is left out: {reason}")
        if outcome.clipped:
            self.observer.warning(
                f"round {outcome.round}: {outcome.clipped} of {len(outcome.clients)} updates were "
                f"scaled down to secagg.clip_norm = {self.folder.config.secagg.clip_norm:g}; raise "
                "it"
            )

    def _figures(self, outcome: RoundOutcome, request: ConfigRecord) -> RoundRecord:
        config = self.folder.config
        test = (
            evaluate_publicly(self.task, outcome.arrays, self.public_test, config.training.device)
            if self.public_test is not None
            else {}
        )
        client_mean, client_weighted = self._client_figures(outcome, request)
        return RoundRecord(
            round=outcome.round,
            attempt=outcome.attempt,
            clients=len(outcome.clients),
            failed=len(outcome.failures),
            seconds=round(outcome.seconds, 3),
            epsilon=largest_epsilon(config, self.folder.journal),
            test=test,
            client_mean=client_mean,
            client_weighted=client_weighted,
            train_loss=outcome.train_loss,
            clip_norm=outcome.clip_norm,
        )

    def _client_figures(self, outcome: RoundOutcome, request: ConfigRecord) -> ClientFigures:
        config = self.folder.config
        if config.dp.client_metrics == "off":
            return {}, {}
        nodes = self.roster.connected()
        # The cohort alone: its releases are the ones that the journal holds.
        asked = [nodes[client] for client in outcome.clients if client in nodes]
        turn = ConfigRecord({**request, "round": outcome.round, "attempt": outcome.attempt})
        try:
            return evaluate_by_clients(
                self.grid,
                outcome.arrays,
                turn,
                asked,
                config.federation.round_timeout,
                self.secure,
            )
        except (BelowThresholdError, ImpossibleSumError) as error:
            # The model stands; only what the clients would have told of it is missing.
            self.observer.warning(f"round {outcome.round}: no figures of the clients: {error}")
            return {}, {}


def request_for(config: Config) -> ConfigRecord:
    """Return the settings as the clients are sent them."""
    return ConfigRecord({"config": config.model_dump_json()})


def secure_rounds(
    grid: Grid, config: Config, run: str, roster_file: Path | None, clock: StageClock
) -> SecureRounds | None:
    """Return what sums updates and figures; None where secure aggregation is off.

    Raises
    ------
    RosterError
        If the roster cannot be read.
    """
    if not config.secagg.enabled:
        return None
    s = config.secagg
    shares_noise = config.dp.is_private and config.dp.noise == "distributed"
    sums_a_round = 1 if config.dp.client_metrics == "off" else 2
    # A sampled cohort is another in each round, so that its keys serve one round.
    rounds = s.setup_rounds if config.federation.fraction == 1.0 else 1
    settings = SecureSettings(
        run=run,
        clip_norm=_encoded_norm(config),
        max_weight=_largest_weight(config),
        ring_bits=s.ring_bits,
        setup_rounds=rounds * sums_a_round,
        corrupt_share=s.corrupt_share,
        dropped_share=s.dropped_share,
        stage_timeout=s.stage_timeout,
        # Below it the noise would not be whole.
        min_survivors=noise_shares(config).min_survivors if shares_noise else 0,
    )
    return SecureRounds(grid, settings, read_roster(roster_file) if roster_file else None, clock)


def _encoded_norm(config: Config) -> float:
    """Return the L2 bound that updates are encoded with."""
    is_fixed = config.dp.mode == "client/central" and config.dp.adaptive is None
    return config.dp.clip_norm if is_fixed else config.secagg.clip_norm


def _largest_weight(config: Config) -> float:
    """Return a public bound of a client's weight: no client holds more than all records."""
    nominal = config.training.nominal_records
    if config.dp.is_private or nominal is None:
        return 1.0
    return float(_ROOM_FOR_RECORDS * nominal * config.federation.clients)


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
