"""Every check that precedes a run, on settings and on every simulated client, without a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fedveil.client.preflight import Check, client_checks
from fedveil.config import Config
from fedveil.errors import FedveilError
from fedveil.privacy.preflight import check_seed
from fedveil.privacy.report_words import assumptions_of, not_covered_by
from fedveil.server.budget import noise_for_the_rest
from fedveil.server.federation import prepare
from fedveil.server.preflight import model_dimension, settings_checks
from fedveil.server.reporting import mechanism_of

__all__ = ["WATCHED", "Finding", "Preflight", "preflight"]

WATCHED = (
    "every client's weight is 1, whatever its number of records: another reply is refused",
    "updates and aggregates with NaN or infinity are refused",
    "a record whose gradient is not finite counts as zero",
    "a buffer of the model that training changed never leaves a client",
    "every attempt is in the journal before a client is asked, and counts in full",
)
"""What no look beforehand can tell; it is checked in every round."""


@dataclass(frozen=True)
class Finding:
    """One check and how it went: `refusal` is None where it passed."""

    title: str
    refusal: str | None


@dataclass(frozen=True)
class Preflight:
    """All findings, and what the claim says beside them.

    Parameters
    ----------
    findings : sequence of Finding
        In the order checked; after a refusal the checks that build on it are left out.
    noise : float, optional
        Noise multiplier that the run would have.
    warnings : sequence of str
        What is allowed and releases something without a guarantee.
    assumptions, not_covered : sequence of str
        As the run's report would say.
    """

    findings: Sequence[Finding]
    noise: float | None
    warnings: Sequence[str]
    assumptions: Sequence[str]
    not_covered: Sequence[str]

    @property
    def passed(self) -> bool:
        """Whether nothing was refused."""
        return all(finding.refusal is None for finding in self.findings)


def preflight(config: Config, data_dir: Path | None = None) -> Preflight:
    """Check the settings, then every client; nothing is trained and nothing is written.

    Parameters
    ----------
    config : Config
        The settings.
    data_dir : Path, optional
        Data directory of the task, the same for every client.

    Raises
    ------
    FedveilError
        If task or data cannot be loaded.
    """
    config, task = prepare(config, data_dir)
    dimension = model_dimension(task)
    dp, clients = config.dp, config.federation.clients
    findings: list[Finding] = []
    noise: float | None = None

    def calibrate() -> None:
        nonlocal noise
        noise = noise_for_the_rest(config, None, 0, dimension)

    if dp.is_private:
        findings.append(
            _try(Check("the noise is not repeatable", lambda: check_seed(dp.insecure_seed)))
        )
        findings.append(_try(Check("the budget can be met", calibrate)))
    if noise is not None or not dp.is_private:
        checks = settings_checks(config, task, noise, rounds=config.federation.rounds)
        findings += [_try(check) for check in checks]
    if noise is not None:
        noisy = dp.model_copy(update={"noise_multiplier": noise, "target_epsilon": None})
        config = config.model_copy(update={"dp": noisy})
    with torch.random.fork_rng(devices=[]):
        model = task.model()
    by_client = [
        client_checks(config, task, task.load(client, clients)[0], model)
        for client in range(clients)
    ]
    findings += _all_clients(by_client)
    mechanism = mechanism_of(config, dimension, noise)
    return Preflight(
        findings,
        noise,
        tuple(_warnings(config)),
        assumptions_of(mechanism),
        not_covered_by(
            mechanism, public_test=task.public_test() is not None, secagg=config.secagg.enabled
        ),
    )


def _warnings(config: Config) -> Iterator[str]:
    if not config.dp.is_private:
        yield 'dp.unit = "none": no privacy is claimed'
    elif config.dp.noise == "central":
        yield (
            'dp.noise = "central": the server is trusted to add the noise, and nothing is claimed '
            "against it"
        )
    elif config.dp.client_metrics == "clear":
        yield (
            'dp.metrics = "clear" releases exact metrics on private test records, which have no '
            'guarantee then; "noisy" accounts for them'
        )


def _all_clients(by_client: Sequence[Sequence[Check]]) -> Iterator[Finding]:
    """Yield one finding a check; the first client that refuses speaks for all."""
    for same in zip(*by_client, strict=True):
        tried = [_try(check) for check in same]
        refused = [
            Finding(f.title, f"client-{client}: {f.refusal}")
            for client, f in enumerate(tried)
            if f.refusal is not None
        ]
        yield refused[0] if refused else Finding(f"{same[0].title} ({len(same)} clients)", None)
        if refused:
            return


def _try(check: Check) -> Finding:
    try:
        check.run()
    except FedveilError as error:
        return Finding(check.title, str(error))
    return Finding(check.title, None)
