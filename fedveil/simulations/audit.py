"""One audit: a whole simulated run with canaries in every client, and what an attacker sees."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fedveil import __version__
from fedveil.client.app import partition_spec
from fedveil.client.probing import probing
from fedveil.config import Config
from fedveil.privacy.accounting import Release, pld_epsilon
from fedveil.privacy.audit.guesses import AuditError, guess_extremes
from fedveil.privacy.audit.planning import plan_guesses
from fedveil.privacy.audit.result import AuditFacts, AuditResult, build_audit
from fedveil.server.observer import Observer
from fedveil.server.run_folder import RunFolder, now
from fedveil.simulations.canaries import Canaries
from fedveil.simulations.defects import Defect
from fedveil.simulations.simulate import simulate
from fedveil.tasks.registry import create_task

__all__ = ["CANARIES", "CONFIDENCE", "audit", "settings_sha256"]

CANARIES = 2000
"""Canaries a client, unless the model has fewer parameters."""
CONFIDENCE = 0.95


def audit(
    config: Config,
    observer: Observer,
    *,
    canaries: int = CANARIES,
    data_dir: Path | None = None,
    seed: int | None = None,
    defect: Defect | None = None,
) -> AuditResult:
    """Run a federation with canaries in it, and bound its epsilon from below.

    The run is thrown away: its model was trained on canaries.

    Parameters
    ----------
    config : Config
        The settings to audit.
    observer : Observer
        Told of the run.
    canaries : int
        Canaries a client, >= 1.
    data_dir : Path, optional
        Data directory of the task.
    seed : int, optional
        Makes the audit repeatable: coins, batches and noise.
    defect : str, optional
        A defect to build in, which the audit should find.

    Raises
    ------
    AuditError
        If the settings claim nothing that could be audited.
    fedveil.errors.FedveilError
        If the run fails.
    """
    if config.dp.mode not in ("record/local", "none"):
        raise AuditError(
            f"the settings have mode {config.dp.mode}, and the audit's canaries are made for "
            'record/local; set dp.noise = "local" and dp.unit = "record"'
        )
    if not config.dp.is_private or config.dp.insecure_seed is not None:
        raise AuditError(
            "the settings claim no privacy, so that there is nothing to audit: set "
            'dp.unit = "record" and leave dp.insecure_seed out'
        )
    began = now()
    probe = Canaries(
        _count_parameters(config, data_dir),
        canaries,
        config.dp.clip_norm,
        secrets.token_bytes(32) if seed is None else f"seed {seed}".encode(),
        defect,
    )
    with _scratch() as scratch, probing(probe):
        summary = simulate(_seeded(config, seed), scratch / "run", observer, data_dir=data_dir)
        folder = summary.folder
        releases = _dearest(folder, config.dp.delta)
    if not probe.clients:
        raise AuditError("no client has trained, so that there is nothing to audit")
    coins = probe.coins()
    facts = AuditFacts(
        task=config.task.name,
        fedveil=__version__,
        created=began,
        settings_sha256=settings_sha256(folder.config),
        clients=probe.clients,
        rounds=len(folder.records),
        control=defect or "",
        confidence=CONFIDENCE,
        delta=config.dp.delta,
        releases=releases,
    )
    guesses = plan_guesses(len(coins), releases, config.dp.delta, CONFIDENCE)
    return build_audit(
        facts,
        {name: guess_extremes(scores, coins, guesses) for name, scores in probe.scores().items()},
    )


def settings_sha256(config: Config) -> str:
    """Return the hash of resolved settings, as a run names those that it was begun with.

    A seed of the noise is left out: an audit may be repeatable, what it audits is not.
    """
    dp = config.dp.model_copy(update={"insecure_seed": None})
    text = config.model_copy(update={"dp": dp}).to_toml()
    return hashlib.sha256(text.encode()).hexdigest()


def _seeded(config: Config, seed: int | None) -> Config:
    dp = config.dp.model_copy(update={"insecure_seed": seed})
    return config.model_copy(update={"dp": dp})


def _count_parameters(config: Config, data_dir: Path | None) -> int:
    task = create_task(
        config.task.name,
        seed=config.seed,
        partition=partition_spec(config.partition),
        data_dir=data_dir,
        options=config.task.options,
    )
    return sum(p.numel() for p in task.model().parameters() if p.requires_grad)


def _dearest(folder: RunFolder, delta: float) -> tuple[Release, ...]:
    """Return what the journal charges the client with that it charges most."""
    released = folder.journal.releases_by_client().values()
    return max(released, key=lambda releases: pld_epsilon(releases, delta), default=())


@contextmanager
def _scratch() -> Iterator[Path]:
    """Give a folder for a run that leaves nothing behind, not even a key or a mark."""
    before = os.environ.get("FEDVEIL_HOME")
    with TemporaryDirectory(prefix="fedveil-audit-") as folder:
        os.environ["FEDVEIL_HOME"] = str(Path(folder) / "home")
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ["FEDVEIL_HOME"]
            else:
                os.environ["FEDVEIL_HOME"] = before
