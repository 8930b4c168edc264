"""A simulation under secure aggregation: the default, the same model, and clients that die."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_taps import Answer, tap
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from secure_grid import stage_of
from tiny_task import TinyTask

from fedveil.client import dp_training
from fedveil.client.evaluation import correct_answers
from fedveil.config import Config
from fedveil.errors import FedveilError
from fedveil.privacy.accounting import pld_epsilon
from fedveil.privacy.journal import PrivacyJournal
from fedveil.secagg.encoding import Encoding
from fedveil.server.federation import RunSummary
from fedveil.simulations.scenarios import find_scenario
from fedveil.tasks.base import Examples
from fedveil.tasks.objectives import MultiClassTask

Run = Callable[..., tuple[RunSummary, object]]
PLAIN = ("secagg.enabled", False)


def weights(summary: RunSummary) -> dict[str, np.ndarray]:
    tensors = summary.folder.store.load(summary.folder.committed).tensors
    return {name: np.array(tensor) for name, tensor in tensors.items()}


def largest_difference(one: RunSummary, other: RunSummary) -> float:
    mine, theirs = weights(one), weights(other)
    return max(float(np.abs(mine[name] - theirs[name]).max()) for name in mine)


def test_it_is_the_default_everywhere(run: Run) -> None:
    assert Config.model_validate(
        {"task": {"name": "digits"}, "dp": {"unit": "none"}}
    ).secagg.enabled
    summary, _ = run(("federation.rounds", 1))
    assert summary.report.facts.secagg
    assert any("sums over clients" in line for line in summary.report.trust)
    assert not any("not in use" in line for line in summary.report.not_covered)


@pytest.mark.parametrize("weighted", [True, False])
def test_the_model_is_the_same_up_to_the_rounding_of_the_encoding(run: Run, weighted: bool) -> None:
    """Without privacy clients weigh their records; with it, all 1 and the noise is repeated."""
    settings = [("federation.rounds", 1)]
    settings += [("dp.unit", "none")] if weighted else [("dp.insecure_seed", 7)]
    secure, _ = run(*settings, out="secure")
    plain, _ = run(*settings, PLAIN, out="plain")
    clients = 10
    # All of digits' 1437 training records; room for twice the published share of each client.
    nominal = secure.folder.config.training.nominal_records or 0
    max_weight, total = (2.0 * nominal * clients, 1437.0) if weighted else (1.0, 10.0)
    bound = Encoding(650, 100.0, max_weight, clients).error_bound(clients, total)
    assert bound < 1e-4
    assert 0 < largest_difference(secure, plain) < bound + 1e-6


def test_every_figure_is_the_same_as_in_clear(run: Run) -> None:
    settings = [("federation.rounds", 1), ("dp.unit", "none")]
    (secure, _), (plain, _) = run(*settings, out="secure"), run(*settings, PLAIN, out="plain")
    ours, theirs = secure.folder.records[0], plain.folder.records[0]
    assert set(ours.client_mean) == set(theirs.client_mean) != set()
    for name in ours.client_mean:
        assert ours.client_mean[name] == pytest.approx(theirs.client_mean[name], abs=2e-2)
        assert ours.client_weighted[name] == pytest.approx(theirs.client_weighted[name], abs=2e-2)
    assert ours.train_loss == pytest.approx(theirs.train_loss, abs=1e-4)


def test_noisy_metrics_travel_masked(run: Run) -> None:
    # The clients test some 140 records together. With the noise of the default, 89 on that count,
    # one round in twenty would have nothing to divide by.
    noise = ("dp.metrics_noise_multiplier", 2.0)
    summary, _ = run(("federation.rounds", 2), ("dp.metrics", "noisy"), noise)
    assert 0.0 <= summary.folder.records[-1].client_weighted["accuracy"] <= 1.0


def test_nothing_of_one_client_reaches_the_server(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies: list[Message] = []

    def listen(answer: Answer, app: ClientApp, message: Message, context: Context) -> Message:
        reply = answer(app, message, context)
        replies.append(reply)
        return reply

    tap(monkeypatch, listen)
    run(("federation.rounds", 2), ("dp.unit", "none"))
    told = [dict(record) for reply in replies for record in reply.content.metric_records.values()]
    assert told == [{"partition": p} for p in range(10)]
    arrays = {name for reply in replies for name in reply.content.array_records}
    assert arrays == {"fedveil.secagg.vector"}


@pytest.fixture
def lose(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, set[int], set[int]], None]:
    """Return a function that lets clients die when they are asked for a stage."""

    def arrange(stage: str, clients: set[int], times: set[int]) -> None:
        asked = dict.fromkeys(range(100), 0)

        def execute(answer: Answer, app: ClientApp, message: Message, context: Context) -> Message:
            client = message.metadata.dst_node_id - 2
            if stage_of(message) == stage:
                asked[client] += 1
                if client in clients and asked[client] in times:
                    return Message(Error(code=5, reason="killed"), reply_to=message)
            return answer(app, message, context)

        tap(monkeypatch, execute)

    return arrange


@pytest.mark.parametrize("stage", ["input", "confirm", "unmask"])
def test_one_client_killed_in_the_middle_of_a_round(
    run: Run, lose: Callable[[str, set[int], set[int]], None], stage: str
) -> None:
    lose(stage, {3}, {2})
    summary, watcher = run(("federation.rounds", 3))
    counted = [record.clients for record in summary.folder.records]
    assert counted == ([10, 9, 10] if stage == "input" else [10, 10, 10])
    assert summary.finished
    warned = [text for text in watcher.warnings if "client-3" in text]  # type: ignore[attr-defined]
    assert bool(warned) == (stage == "input")


def test_a_round_with_too_few_is_tried_again_and_charged(
    run: Run, lose: Callable[[str, set[int], set[int]], None]
) -> None:
    lose("confirm", {0, 1, 2, 3, 4}, {2})
    summary, watcher = run(("federation.rounds", 3))
    assert [record.attempt for record in summary.folder.records] == [1, 2, 1]
    assert any("trying the round again" in text for text in watcher.warnings)  # type: ignore[attr-defined]
    client = summary.report.clients[0]
    assert client.steps == 4 * 4
    assert len({release.noise_multiplier for release in client.releases}) == 2
    assert summary.report.target_met
    assert client.epsilon == pytest.approx(pld_epsilon(client.releases, 1e-5), abs=1e-9)


def test_too_few_for_good_stop_the_run_which_can_be_resumed(
    run: Run, lose: Callable[[str, set[int], set[int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context():
        lose("input", set(range(5)), {2, 3, 4})
        with pytest.raises(FedveilError, match=r"round 2: .* given up after 3 attempts"):
            run(("federation.rounds", 2), ("dp.noise_multiplier", 3.0))
    home = os.environ["FEDVEIL_HOME"]
    monkeypatch.undo()
    monkeypatch.setenv("FEDVEIL_HOME", home)
    summary, _ = run(resume=True)
    assert summary.finished
    assert summary.folder.records[-1].attempt == 4


def test_a_budget_that_bears_no_further_attempt_ends_the_run(
    run: Run, lose: Callable[[str, set[int], set[int]], None]
) -> None:
    lose("input", set(range(5)), {2, 3, 4})
    with pytest.raises(FedveilError, match=r"round 2: .* no attempt is left: epsilon = 8 at"):
        run(("federation.rounds", 2))


def test_sampled_cohorts_exchange_keys_anew(run: Run) -> None:
    summary, _ = run(("federation.rounds", 3), ("federation.fraction", 0.4))
    assert [record.clients for record in summary.folder.records] == [4, 4, 4]


def test_two_clients_are_the_least(run: Run) -> None:
    summary, _ = run(("federation.rounds", 1), ("federation.clients", 2))
    assert summary.folder.records[0].clients == 2
    with pytest.raises(FedveilError, match="nobody to hide among"):
        find_scenario("digits").config([("federation.min_clients", 1)])


def test_updates_beyond_the_clip_norm_are_told(run: Run) -> None:
    _, watcher = run(("federation.rounds", 1), ("secagg.clip_norm", 0.01))
    assert any("10 of 10 updates were scaled down" in text for text in watcher.warnings)  # type: ignore[attr-defined]


def test_a_client_that_takes_other_steps_than_asked_spoils_the_round_and_nobodys_budget(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original, calls = dp_training.train_private, iter(range(1000))

    def train(*arguments: object) -> int:
        steps = original(*arguments)  # type: ignore[arg-type]
        return steps + 100_000 if next(calls) == 3 else steps

    monkeypatch.setattr(dp_training, "train_private", train)
    with pytest.raises(FedveilError, match=r"round 1: .* 4 were asked for: some client runs"):
        # Opacus' own functions train one client after another.
        run(("federation.rounds", 2), ("training.engine", "opacus"))
    spent = PrivacyJournal(tmp_path / "run" / "privacy.jsonl").steps_by_client()
    assert set(spent.values()) == {4}


def test_a_client_without_some_metric_is_in_the_others_all_the_same(run: Run) -> None:
    """On ten clients with shards by label some have one class only, and so no ROC curve."""
    summary, watcher = run(
        ("federation.rounds", 1),
        ("dp.unit", "none"),
        ("partition.scheme", "shards"),
        ("partition.shards_per_client", 1),
        scenario="breast-cancer",
    )
    assert not any("left out" in text for text in watcher.warnings)  # type: ignore[attr-defined]
    assert "accuracy" in summary.folder.records[0].client_mean


def test_noisy_counts_come_from_a_model_that_has_diverged_too() -> None:
    """Were it an error, it would tell without noise that some record's output overflows."""
    task = TinyTask()
    model = torch.nn.Linear(5, 3)
    torch.nn.init.constant_(model.weight, float("inf"))
    assert correct_answers(model, _Checked(task), task.examples) == 0.0


class _Checked(MultiClassTask):
    """A built-in kind of task over tiny data."""

    name = "checked"
    nominal_records = 60

    def __init__(self, task: TinyTask) -> None:
        self._task = task

    def model(self) -> torch.nn.Module:
        return self._task.model()

    def load(self, partition: int, num_partitions: int) -> tuple[Examples, Examples]:
        return self._task.load(partition, num_partitions)

    def public_test(self) -> Examples | None:
        return None
