"""What the rounds to come may release: their noise, within what is left of the budget."""

from __future__ import annotations

from collections.abc import Sequence

from fedveil.config import Config
from fedveil.privacy.accounting import (
    Release,
    calibrate_noise_multiplier,
    compose,
    pld_epsilon,
)
from fedveil.privacy.journal import Intent, PrivacyJournal

__all__ = ["largest_epsilon", "noise_for_the_rest", "round_releases"]


def round_releases(config: Config, noise: float | None) -> tuple[Release, ...]:
    """Return what one round releases of each client of its cohort; training stands first."""
    if noise is None:
        return ()
    training = Release(config.training.sampling_rate, noise, config.training.local_steps)
    return (training, *_metrics_releases(config, 1))


def _metrics_releases(config: Config, rounds: int) -> tuple[Release, ...]:
    if config.dp.client_metrics != "noisy":
        return ()
    return (Release(1.0, config.dp.metrics_noise_multiplier, rounds),)


def noise_for_the_rest(
    config: Config, journal: PrivacyJournal | None, committed: int
) -> float | None:
    """Return the noise multiplier for the rounds to come; None without privacy.

    A resumed run goes on with the noise that it had, unless an interrupted attempt has cost so
    much that the budget would be passed: then with more noise.

    Raises
    ------
    AccountingError
        If the budget cannot be met.
    """
    if not config.dp.is_private:
        return None
    if config.dp.noise_multiplier is not None:
        return config.dp.noise_multiplier
    target = config.dp.target_epsilon
    assert target is not None  # noqa: S101  # one of the two is set; the type does not say so
    remaining = config.federation.rounds - committed
    steps = remaining * config.training.local_steps
    past = set(journal.releases_by_client().values()) if journal else set()
    last = _last_noise(journal)
    noises = []
    for spent in sorted(past) or [()]:
        beside = [*spent, *_metrics_releases(config, remaining)]
        if last is not None:
            whole = compose([*beside, Release(config.training.sampling_rate, last, steps)])
            if pld_epsilon(whole, config.dp.delta) <= target:
                noises.append(last)
                continue
        noises.append(
            calibrate_noise_multiplier(
                target,
                config.dp.delta,
                sampling_rate=config.training.sampling_rate,
                count=steps,
                beside=beside,
            )
        )
    return max(noises)


def _last_noise(journal: PrivacyJournal | None) -> float | None:
    entries: Sequence[object] = journal.entries if journal else ()
    intents = [e for e in entries if isinstance(e, Intent) and e.releases]
    return intents[-1].releases[0].noise_multiplier if intents else None


def largest_epsilon(config: Config, journal: PrivacyJournal) -> float | None:
    """Return the largest epsilon of any client so far; None where nothing is claimed."""
    if not config.dp.is_private or config.dp.insecure_seed is not None:
        return None
    spent = set(journal.releases_by_client().values())
    return max((pld_epsilon(releases, config.dp.delta) for releases in spent), default=0.0)
