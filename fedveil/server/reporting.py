"""The privacy report of a run folder, computed from its journal."""

from __future__ import annotations

import hashlib
import json

from fedveil.client.shared_noise import bit_noise, noise_shares, records_bound
from fedveil.config import Config
from fedveil.privacy.journal import newest_noise
from fedveil.privacy.report import Report, build_report
from fedveil.privacy.report_facts import (
    AdaptiveClip,
    Mechanism,
    ModelFacts,
    RoundFigures,
    RunFacts,
    SharedNoise,
)
from fedveil.server.audits import audit_of
from fedveil.server.run_folder import RunFolder
from fedveil.server.run_info import replace_text
from fedveil.server.signed import signed_text
from fedveil.server.storage import signing_key_of
from fedveil.vault.signing import VerifyKey

__all__ = ["REPORT_LABEL", "REPORT_NAME", "mechanism_of", "report_of", "write_report"]

REPORT_NAME = "report.json"
REPORT_LABEL = b"fedveil/report/1\n"


def mechanism_of(
    config: Config, dimension: int | None = None, noise: float | None = None
) -> Mechanism:
    """Return how a run with these settings makes its noise.

    Parameters
    ----------
    config : Config
        The settings.
    dimension : int, optional
        Of the model.
    noise : float, optional
        Noise multiplier of the newest round; None before the first.
    """
    nominal = config.training.nominal_records
    return Mechanism(
        unit=config.dp.unit,
        noise=config.dp.noise if config.dp.is_private else "none",
        delta=config.dp.delta,
        clip_norm=config.dp.clip_norm,
        sampling_rate=config.training.sampling_rate,
        nominal_records=nominal if nominal is not None else 0,
        steps_per_round=config.training.local_steps,
        cohort=config.federation.cohort,
        target_epsilon=config.dp.target_epsilon if config.dp.is_private else None,
        metrics=config.dp.client_metrics,
        insecure_seed=config.dp.is_private and config.dp.insecure_seed is not None,
        shared=_shared(config, dimension),
        adaptive=_adaptive(config, noise),
    )


def _shared(config: Config, dimension: int | None) -> SharedNoise | None:
    if not config.dp.is_private or config.dp.noise != "distributed":
        return None
    shares = noise_shares(config)
    return SharedNoise(
        colluding=shares.colluding,
        min_survivors=shares.min_survivors,
        ring_bits=config.secagg.ring_bits,
        max_records=records_bound(config),
        dimension=dimension,
    )


def _adaptive(config: Config, noise: float | None) -> AdaptiveClip | None:
    adaptive = config.dp.adaptive
    if adaptive is None or not config.dp.is_private:
        return None
    return AdaptiveClip(
        target_quantile=adaptive.target_quantile,
        learning_rate=adaptive.learning_rate,
        bit_noise=None if noise is None else bit_noise(config, noise),
    )


def report_of(folder: RunFolder) -> Report:
    """Compute a run's report; nothing is taken from an earlier one."""
    config, entries = folder.config, folder.journal.entries
    facts = RunFacts(
        run=folder.info.run,
        task=config.task.name,
        data=_data_of(config),
        settings_sha256=folder.info.config_sha256,
        fedveil=folder.info.fedveil,
        created=folder.info.created,
        rounds_planned=config.federation.rounds,
        clients_planned=config.federation.clients,
        public_test=folder.info.public_test,
        secagg=config.secagg.enabled,
        mechanism=mechanism_of(config, folder.info.dimension, newest_noise(entries)),
    )
    rounds = tuple(
        RoundFigures(
            round=record.round,
            clients=record.clients,
            seconds=record.seconds,
            accuracy=record.accuracy,
            loss=record.loss,
            clip_norm=record.clip_norm,
        )
        for record in folder.records
    )
    sha256 = folder.model_sha256()
    model = ModelFacts(round=folder.committed, sha256=sha256) if sha256 else None
    return build_report(facts, entries, rounds, model, audit_of(folder))


def _data_of(config: Config) -> str:
    parts = (config.task, config.partition)
    told = [*(part.model_dump(mode="json") for part in parts), config.federation.clients]
    text = json.dumps([*told, config.seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_report(folder: RunFolder) -> Report:
    """Write ``report.json``, signed, and ``report.html`` of a run, and return the report.

    Raises
    ------
    StorageError
        If this machine does not hold the run's signing key.
    RunFolderError
        If they cannot be written.
    """
    # Drawing needs matplotlib, whose import takes a second; only whoever writes pays for it.
    from fedveil.privacy.report_html import render_html

    report = report_of(folder)
    key = signing_key_of(VerifyKey.from_text(folder.info.signer))
    text = signed_text(report.model_dump(mode="json"), REPORT_LABEL, key)
    replace_text(folder.path / REPORT_NAME, text)
    replace_text(folder.path / "report.html", render_html(report))
    return report
