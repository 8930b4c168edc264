"""The main flow, whole: what it reaches, what it leaves, what it claims."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting import dp_event, pld

from fedveil.errors import FedveilError
from fedveil.server.reporting import report_of
from fedveil.server.run_folder import RunFolder

Run = Callable[..., Any]


def independent_epsilon(report: dict[str, Any], delta: float) -> float:
    """Compose the logged (q, sigma, steps) with dp-accounting, one step at a time."""
    accountant = pld.PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3
    )
    for release in report["clients"][0]["releases"]:
        event: dp_event.DpEvent = dp_event.GaussianDpEvent(release["noise_multiplier"])
        if release["sampling_rate"] < 1.0:
            event = dp_event.PoissonSampledDpEvent(release["sampling_rate"], event)
        for _ in range(release["count"]):
            accountant.compose(event)
    return float(accountant.get_epsilon(delta))


def test_the_main_job_learns_within_its_budget(run: Run) -> None:
    summary, watcher = run()
    report = json.loads((summary.folder.path / "report.json").read_text())
    assert summary.finished
    assert watcher.warnings == []
    assert summary.report.accuracy >= 0.85  # one seed, fresh noise; means are in benchmarks/
    assert report["epsilon"] <= 8.0
    assert report["target_met"] is True
    assert len(report["clients"]) == 10
    assert {c["epsilon"] for c in report["clients"]} == {report["epsilon"]}
    assert {c["steps"] for c in report["clients"]} == {80}
    assert report["epsilon"] == pytest.approx(independent_epsilon(report, 1e-5), abs=1e-6)


def test_every_file_of_a_run_folder_is_there_and_private(run: Run) -> None:
    summary, _ = run(("federation.rounds", 2))
    names = {p.name for p in summary.folder.path.iterdir()}
    assert names == {
        *("config.toml", "run.json", "metrics.jsonl", "privacy.jsonl", "stages.jsonl"),
        *("report.json", "report.html", "model"),
    }
    for path in summary.folder.path.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    key_file = Path(summary.folder.info.kek.removeprefix("file:"))
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert summary.folder.path not in key_file.parents


def test_no_file_holds_a_tensor_in_the_clear(run: Run) -> None:
    summary, _ = run(
        ("federation.rounds", 3), ("server_optimizer.name", "fedadam"), ("dp.unit", "none")
    )
    store = summary.folder.store
    needles = []
    for number in store.rounds():
        for values in store.load(number).tensors.values():
            needles.append(values.astype("<f4").tobytes()[:32])
            needles.append(str(float(values.flat[0])).encode())
    needles += [v.tobytes()[:32] for v in store.load_state(3).tensors.values()]
    assert len(needles) > 10
    files = [p for p in summary.folder.path.rglob("*") if p.is_file()]
    for path in files:
        content = path.read_bytes()
        for needle in needles:
            if len(needle) >= 8:
                assert needle not in content, path


def test_two_halves_cost_what_one_whole_costs(run: Run) -> None:
    settings = [("federation.rounds", 6)]
    whole, _ = run(*settings, out="whole")
    first, _ = run(*settings, out="halves", stop_after=3)
    assert not first.finished
    assert first.folder.committed == 3
    assert first.report.epsilon < whole.report.epsilon
    second, watcher = run(out="halves", resume=True)
    assert second.finished
    assert [r.round for r in watcher.rounds] == [4, 5, 6]
    assert second.report.epsilon == whole.report.epsilon
    assert second.folder.records == RunFolder.open(second.folder.path).records


@pytest.mark.parametrize("optimizer", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_a_resumed_run_is_bit_identical_where_no_noise_is_drawn(run: Run, optimizer: str) -> None:
    settings = [
        ("federation.rounds", 4),
        ("dp.unit", "none"),
        ("server_optimizer.name", optimizer),
        ("server_optimizer.learning_rate", 0.1),
        ("federation.fraction", 0.5),
    ]
    whole, _ = run(*settings, out="whole")
    run(*settings, out="halves", stop_after=2)
    halves, _ = run(out="halves", resume=True)
    a, b = (s.folder.store.load(4).tensors for s in (whole, halves))
    assert a.keys() == b.keys()
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)


def test_noise_is_fresh_in_every_run_and_repeats_only_on_an_explicit_wish(run: Run) -> None:
    def weights(out: str, *settings: tuple[str, object]) -> np.ndarray[Any, Any]:
        summary, _ = run(("federation.rounds", 1), *settings, out=out)
        return next(iter(summary.folder.store.load(1).tensors.values()))

    assert not np.array_equal(weights("a"), weights("b"))
    insecure = ("dp.insecure_seed", 7)
    assert np.array_equal(weights("c", insecure), weights("d", insecure))


def test_an_insecure_seed_takes_every_claim_away(run: Run) -> None:
    summary, watcher = run(("federation.rounds", 1), ("dp.insecure_seed", 7))
    assert summary.report.claims is False
    assert summary.report.epsilon is None
    assert watcher.rounds[0].epsilon is None
    assert "No privacy is claimed" in summary.report.statement
    html = (summary.folder.path / "report.html").read_text()
    assert 'class="claim none"' in html


def test_without_privacy_nothing_is_claimed(run: Run) -> None:
    summary, _ = run(("federation.rounds", 2), ("dp.unit", "none"))
    assert summary.report.epsilon is None
    assert summary.report.claims is False
    assert summary.folder.records[-1].client_weighted["accuracy"] > 0.5


def test_client_metrics_are_off_under_privacy(run: Run) -> None:
    summary, _ = run(("federation.rounds", 1))
    record = summary.folder.records[-1]
    assert record.client_mean == record.client_weighted == {}
    assert record.train_loss is None


def test_noisy_client_metrics_are_paid_for(run: Run) -> None:
    # Little enough noise that the noisy total of 144 test records stays far from zero.
    noise = ("dp.metrics_noise_multiplier", 5.0)
    summary, _ = run(("federation.rounds", 3), ("dp.metrics", "noisy"), noise)
    report = json.loads(summary.report.model_dump_json())
    counts = {(r["sampling_rate"], r["count"]) for r in report["clients"][0]["releases"]}
    assert counts == {(summary.folder.config.training.sampling_rate, 12), (1.0, 3)}
    assert report["epsilon"] == pytest.approx(independent_epsilon(report, 1e-5), abs=1e-6)
    assert report["target_met"] is True
    assert 0.0 <= summary.folder.records[-1].client_weighted["accuracy"] <= 1.0


def test_clear_client_metrics_are_named_in_the_report(run: Run) -> None:
    summary, _ = run(("federation.rounds", 1), ("dp.metrics", "clear"))
    assert any("released exactly" in line for line in summary.report.not_covered)
    assert summary.folder.records[-1].client_mean["accuracy"] >= 0.0


def test_a_lost_attempt_is_counted_and_the_budget_still_kept(run: Run) -> None:
    first, _ = run(("federation.rounds", 4), stop_after=2)
    folder = first.folder
    # As after kill -9 during round 3: the intent is there, the round is not.
    before = folder.journal.entries[0]
    folder.journal.intend(3, before.clients, before.releases)  # type: ignore[union-attr]
    summary, watcher = run(resume=True)
    (old, new) = sorted({r.noise_multiplier for c in summary.report.clients for r in c.releases})
    assert new > old, "the rest of the rounds must pay for the lost attempt"
    assert watcher.noise == new
    assert summary.report.clients[0].steps == 5 * 4
    assert summary.report.target_met is True
    assert summary.folder.records[2].attempt == 2


def test_a_round_committed_but_not_yet_in_the_metrics_is_found_again(run: Run) -> None:
    first, _ = run(("federation.rounds", 3), stop_after=2)
    metrics = first.folder.path / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole.splitlines(keepends=True)[0])
    assert RunFolder.open(first.folder.path).records == first.folder.records
    run(resume=True)
    assert metrics.read_text().startswith(whole)


def test_resuming_a_finished_run_changes_nothing(run: Run) -> None:
    summary, _ = run(("federation.rounds", 1))
    before = {p: p.read_bytes() for p in summary.folder.path.rglob("*.fvlt")}
    again, watcher = run(resume=True)
    assert again.finished
    assert watcher.rounds == []
    assert again.report == summary.report
    assert {p: p.read_bytes() for p in summary.folder.path.rglob("*.fvlt")} == before


def test_partial_participation_charges_only_whom_it_asked(run: Run) -> None:
    summary, watcher = run(("federation.rounds", 4), ("federation.fraction", 0.3))
    assert [r.clients for r in watcher.rounds] == [3] * 4
    spent = {c.client: c.steps for c in summary.report.clients}
    assert sum(spent.values()) == 4 * 3 * 4
    dearest = max(summary.report.clients, key=lambda c: c.steps)
    assert summary.report.epsilon == dearest.epsilon


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ([("federation.clients", 5000)], "5000"),
        ([("task.name", "nope")], "no task 'nope'"),
        ([("dp.target_epsilon", 1e-4)], "not reachable"),
        ([("dp.delta", 0.5)], "below 1/"),
        ([("training.optimizer", "magic")], 'optimizer = "magic" is unknown; known: '),
        ([("training.optimizer_options", {"momentun": 1})], "momentun"),
        ([("training.device", "cuda:99")], "cuda:99"),
        ([("task.options", {"nope": 1})], "nope"),
        ([("partition.scheme", "natural")], "natural"),
    ],
)
def test_bad_settings_leave_no_run_folder(
    run: Run, tmp_path: Path, settings: list[tuple[str, object]], says: str
) -> None:
    with pytest.raises(FedveilError) as caught:
        run(*settings)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_folder_is_never_overwritten(run: Run) -> None:
    summary, _ = run(("federation.rounds", 1))
    before = {p: p.read_bytes() for p in summary.folder.path.rglob("*") if p.is_file()}
    with pytest.raises(FedveilError, match="holds a run already"):
        run(("federation.rounds", 1))
    assert {p: p.read_bytes() for p in summary.folder.path.rglob("*") if p.is_file()} == before


def test_the_report_is_computed_from_the_journal_alone(run: Run) -> None:
    summary, _ = run(("federation.rounds", 2))
    path = summary.folder.path / "report.json"
    path.write_text(path.read_text().replace('"epsilon":', '"epsilon_was":'))
    assert report_of(RunFolder.open(summary.folder.path)) == summary.report
