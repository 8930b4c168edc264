"""What the rounds to come may release: their noise, within what is left of the budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from fedveil.client.shared_noise import training_release
from fedveil.config import Config
from fedveil.privacy.accounting import (
    Release,
    epsilon,
)
from fedveil.privacy.calibration import calibrate_noise_multiplier
from fedveil.privacy.journal import Intent, PrivacyJournal

__all__ = ["largest_epsilon", "noise_for_the_rest", "round_releases"]

_SOME_NOISE = 0.1


def round_releases(config: Config, noise: float | None, dimension: int) -> tuple[Release, ...]:
    """Return what one round releases of each client of its cohort; training stands first.

    Parameters
    ----------
    config : Config
        The settings.
    noise : float, optional
        Noise multiplier; None without privacy.
    dimension : int
        Floating-point numbers of the model; they matter with distributed noise.
    """
    if noise is None:
        return ()
    return (training_release(config, noise, dimension), *_metrics_releases(config, 1))


def _metrics_releases(config: Config, rounds: int) -> tuple[Release, ...]:
    if config.dp.client_metrics != "noisy":
        return ()
    return (Release(1.0, config.dp.metrics_noise_multiplier, rounds),)


def noise_for_the_rest(
    config: Config, journal: PrivacyJournal | None, committed: int, dimension: int
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
    past = set(journal.releases_by_client().values()) if journal else set()
    last = _last_noise(journal)
    noises = []
    for spent in sorted(past, key=repr) or [()]:
        beside = [*spent, *_metrics_releases(config, remaining)]
        if last is not None:
            whole = [*beside, _rest(config, last, dimension, remaining)]
            if epsilon(whole, config.dp.delta) <= target:
                noises.append(last)
                continue
        noises.append(_calibrated(config, target, dimension, remaining, beside))
    return max(noises)


def _rest(config: Config, noise: float, dimension: int, rounds: int) -> Release:
    """Return what the training of all rounds to come releases."""
    one = training_release(config, noise, dimension)
    return replace(one, count=one.count * rounds)


def _calibrated(
    config: Config, target: float, dimension: int, rounds: int, beside: Iterable[Release]
) -> float:
    # The sensitivity does not depend on the noise.
    like = _rest(config, _SOME_NOISE, dimension, rounds)
    return calibrate_noise_multiplier(
        target,
        config.dp.delta,
        sampling_rate=like.sampling_rate,
        count=like.count,
        beside=beside,
        integers=like.integers,
    )


def _last_noise(journal: PrivacyJournal | None) -> float | None:
    entries: Sequence[object] = journal.entries if journal else ()
    intents = [e for e in entries if isinstance(e, Intent) and e.releases]
    return intents[-1].releases[0].noise_multiplier if intents else None


def largest_epsilon(config: Config, journal: PrivacyJournal) -> float | None:
    """Return the largest epsilon of any client so far; None where nothing is claimed."""
    if not config.dp.is_private or config.dp.insecure_seed is not None:
        return None
    spent = set(journal.releases_by_client().values())
    return max((epsilon(releases, config.dp.delta) for releases in spent), default=0.0)
