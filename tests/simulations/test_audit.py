"""An audit leaves sound training its claim, and takes it from every defect built in."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_task import TinyTask
from torch import nn

from fedveil.client.dp_training import train_private
from fedveil.client.probing import current_probe, probing
from fedveil.config import Config, DpConfig, TrainingConfig
from fedveil.privacy.audit.guesses import AuditError
from fedveil.privacy.randomness import SecureGenerator
from fedveil.server.app import LoggingObserver
from fedveil.simulations.audit import audit, settings_sha256
from fedveil.simulations.canaries import Canaries
from fedveil.simulations.defects import DEFECTS, Defect
from fedveil.simulations.scenarios import find_scenario

SMALL: tuple[tuple[str, object], ...] = (
    ("dp.target_epsilon", 4.0),
    ("federation.clients", 3),
    ("task.options.model", "mlp"),
    ("federation.rounds", 2),
    ("partition.scheme", "iid"),
    # With all records in every step a few steps show as much as many do otherwise.
    ("training.sampling_rate", 1.0),
    ("secagg.enabled", False),
)


def settings(*overrides: tuple[str, object]) -> Config:
    return find_scenario("digits").config([*SMALL, *overrides])


def test_sound_training_keeps_its_claim() -> None:
    result = audit(settings(), LoggingObserver(), seed=1)
    assert result.holds
    assert 0.5 < result.bound < result.claimed <= 4.0
    assert result.facts.clients == 3
    assert {a.found.canaries for a in result.attacks} == {3 * 2000}
    assert result.facts.rounds == 2


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_is_found(defect: Defect) -> None:
    result = audit(settings(), LoggingObserver(), seed=1, defect=defect)
    assert not result.holds
    assert result.bound > result.claimed
    assert result.facts.control == defect


@pytest.mark.slow
def test_the_whole_scenario_is_bounded_and_every_defect_found() -> None:
    config = find_scenario("digits").config([("dp.target_epsilon", 4.0)])
    result = audit(config, LoggingObserver())
    assert 0.5 < result.bound < 4.0
    assert result.holds
    for defect in DEFECTS:
        assert not audit(config, LoggingObserver(), defect=defect).holds, defect


def test_a_seeded_audit_repeats_itself() -> None:
    config = settings(("federation.rounds", 1), ("federation.clients", 2))
    first, second = (audit(config, LoggingObserver(), seed=5, canaries=50) for _ in range(2))
    assert first.attacks == second.attacks
    assert first.facts.settings_sha256 == second.facts.settings_sha256


def test_an_audit_leaves_nothing_behind() -> None:
    home = Path(os.environ["FEDVEIL_HOME"])
    config = settings(("federation.rounds", 1), ("federation.clients", 2))
    audit(config, LoggingObserver(), canaries=10)
    assert Path(os.environ["FEDVEIL_HOME"]) == home
    assert not list(home.rglob("*"))
    assert current_probe() is None


@pytest.mark.parametrize("change", [("dp.unit", "none"), ("dp.insecure_seed", 1)])
def test_what_claims_nothing_is_not_audited(change: tuple[str, object]) -> None:
    with pytest.raises(AuditError, match="claim no privacy"):
        audit(settings(change), LoggingObserver())


def test_other_settings_have_another_hash_and_the_noise_seed_does_not_matter() -> None:
    assert settings_sha256(settings()) == settings_sha256(settings(("dp.insecure_seed", 3)))
    assert settings_sha256(settings()) != settings_sha256(settings(("seed", 3)))


def test_a_canary_goes_through_the_clipping_and_the_sampling_of_any_record() -> None:
    task = TinyTask()
    training = TrainingConfig(sampling_rate=1.0, local_steps=1, nominal_records=60)
    quiet = DpConfig(noise_multiplier=1.0, clip_norm=0.5).model_copy(
        update={"noise_multiplier": 1e-9}
    )
    probe = Canaries(18, 18, 0.5, b"coins")
    model = nn.Linear(5, 3)
    plain = nn.Linear(5, 3)
    plain.load_state_dict(model.state_dict())
    train_private(plain, task, task.examples, training, quiet, SecureGenerator())
    with probing(probe):
        train_private(model, task, task.examples, training, quiet, SecureGenerator())
    moved = [
        (a - b).detach().flatten()
        for a, b in zip(plain.parameters(), model.parameters(), strict=True)
    ]
    # What the canaries added: the clip norm where the coin put one in, nothing elsewhere.
    sizes = torch.cat(moved).abs().numpy() * 60
    assert np.allclose(sizes, np.where(probe.coins(), 0.5, 0.0), atol=1e-4)


def test_more_canaries_than_parameters_are_not_needed_and_none_are_too_few() -> None:
    assert Canaries(10, 2000, 1.0, bytes(32)).clients == 0
    with pytest.raises(AuditError, match="needs canaries, not 0"):
        Canaries(10, 0, 1.0, bytes(32))
    with pytest.raises(AuditError, match="beginning"):
        Canaries(10, 5, 1.0, bytes(32)).after_noise([])
