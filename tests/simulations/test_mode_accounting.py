"""In each mode the logged events cost what an implementation of nothing of ours makes of them."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from pathlib import Path

import mpmath
import pytest
from dp_accounting.pld import privacy_loss_distribution
from mode_runs import MODES, NOISE, ROUNDS, Listener, run_in, settings_of

from fedveil.privacy.renyi import INTEGER_ORDERS
from fedveil.privacy.report import Report
from fedveil.server.reporting import write_report
from fedveil.server.run_folder import RunFolder
from fedveil.server.verifying import ReportError, verify_report

DELTA = 1e-5
Logged = tuple[float, float, float | None, float | None]
"""Sampling rate, noise multiplier, and l1 and l2 of integers."""


def logged(run: Path) -> dict[str, Counter[Logged]]:
    """Read what each client released from the journal's lines, as plain JSON."""
    released: dict[str, Counter[Logged]] = defaultdict(Counter)
    for line in (run / "privacy.jsonl").read_text().splitlines():
        entry = json.loads(line)
        for release in entry["releases"] if entry["event"] == "intent" else []:
            integers = release["integers"] or {"l1": None, "l2": None}
            key = (
                release["sampling_rate"],
                release["noise_multiplier"],
                integers["l1"],
                integers["l2"],
            )
            for client in entry["clients"]:
                released[client][key] += release["count"]
    return released


def by_loss_distributions(releases: Counter[Logged]) -> float:
    """Compose Gaussian releases by dp-accounting's distributions, without its accountants."""
    whole = privacy_loss_distribution.identity(value_discretization_interval=1e-3)
    for (rate, noise, l1, _), count in releases.items():
        assert l1 is None
        # Without sampling n releases are one with noise less by sqrt(n), and finer on the grid.
        noise, times = (noise / math.sqrt(count), 1) if rate == 1.0 else (noise, count)
        one = privacy_loss_distribution.from_gaussian_mechanism(
            noise, sampling_prob=rate, value_discretization_interval=1e-3
        )
        whole = whole.compose(one.self_compose(times))
    return float(whole.get_epsilon_for_delta(DELTA))


def by_moments(releases: Counter[Logged]) -> float:
    """Compose Skellam releases by their moments, with fifty digits and no logarithms in between.

    Agarwal, Kairouz & Liu 2021, theorem 3.5, at each integer order; of a sampled one the moment of
    the mixture, term by term; to (epsilon, delta) by Canonne, Kamath & Steinke 2020, prop. 12.
    """
    with mpmath.workdps(50):
        best = mpmath.inf
        for order in INTEGER_ORDERS:
            total = mpmath.mpf(0)
            for (rate, noise, l1, l2), count in releases.items():
                total += count * _divergence(order, rate, noise, l1, l2)
            best = min(
                best,
                total
                + mpmath.log(1 - mpmath.mpf(1) / order)
                - mpmath.log(mpmath.mpf(DELTA) * order) / (order - 1),
            )
        return float(best)


def _divergence(
    order: int, rate: float, noise: float, l1: float | None, l2: float | None
) -> mpmath.mpf:
    def single(a: int) -> mpmath.mpf:
        assert l1 is not None
        assert l2 is not None
        variance = (mpmath.mpf(noise) * l2) ** 2
        first = a * mpmath.mpf(l2) ** 2 / (2 * variance)
        second = ((2 * a - 1) * mpmath.mpf(l2) ** 2 + 6 * mpmath.mpf(l1)) / (4 * variance**2)
        return first + min(second, 3 * mpmath.mpf(l1) / (2 * variance))

    if rate == 1.0:
        return single(order)
    q = mpmath.mpf(rate)
    moment = (1 - q) ** order + order * (1 - q) ** (order - 1) * q
    for k in range(2, order + 1):
        weight = mpmath.binomial(order, k) * (1 - q) ** (order - k) * q**k
        moment += weight * mpmath.exp((k - 1) * single(k))
    return mpmath.log(moment) / (order - 1)


def report_in(run: Path) -> Report:
    return Report.model_validate(
        {
            key: value
            for key, value in json.loads((run / "report.json").read_text()).items()
            if key not in ("signer", "signature")
        }
    )


@pytest.mark.parametrize(
    ("mode", "changes"),
    [
        *((mode, {}) for mode in MODES),
        ("client/distributed", {"dp__adaptive": {}}),
        ("client/central", {"dp__adaptive": {}}),
    ],
)
def test_the_logged_events_compose_to_the_reported_epsilon(
    tmp_path: Path, mode: str, changes: dict[str, object]
) -> None:
    config = settings_of(mode, **changes)
    summary = run_in(config, tmp_path / "run", Listener())
    assert summary.finished
    found = report_in(tmp_path / "run")
    compose = by_moments if mode.endswith("/distributed") else by_loss_distributions
    costs = {client: compose(releases) for client, releases in logged(tmp_path / "run").items()}
    assert len(costs) == 5
    for client in found.clients:
        assert client.epsilon == pytest.approx(costs[client.client], abs=1e-6)
    assert found.epsilon == pytest.approx(max(costs.values()), abs=1e-6)
    assert (found.mode, len(found.rounds)) == (mode, ROUNDS)
    # What is shown while it runs is the same.
    assert summary.folder.records[-1].epsilon == found.epsilon
    rates = {release[0] for releases in logged(tmp_path / "run").values() for release in releases}
    assert rates == {0.25 if mode.startswith("record/") else 1.0}
    assert verify_report(tmp_path / "run") == found
    clips = [r.clip_norm for r in found.rounds]
    if changes:
        assert clips[0] == config.dp.clip_norm
        assert None not in clips
        assert len(set(clips)) == ROUNDS
    else:
        assert clips == [None] * ROUNDS


def test_noisy_metrics_beside_shared_noise_are_accounted_with_it(tmp_path: Path) -> None:
    config = settings_of("record/distributed", dp__metrics="noisy")
    run_in(config, tmp_path / "run", Listener())
    (releases,) = {
        tuple(sorted(found.items(), key=repr)) for found in logged(tmp_path / "run").values()
    }
    assert sorted((key[:2], count) for key, count in releases) == [
        ((0.25, NOISE), ROUNDS),
        ((1.0, 20.0), ROUNDS),
    ]
    with mpmath.workdps(30):
        costs = []
        for order in INTEGER_ORDERS:
            total = mpmath.mpf(0)
            for (rate, noise, l1, l2), count in releases:
                one = (
                    order / (2 * mpmath.mpf(noise) ** 2)
                    if l1 is None
                    else _divergence(order, rate, noise, l1, l2)
                )
                total += count * one
            costs.append(
                total
                + mpmath.log(1 - mpmath.mpf(1) / order)
                - mpmath.log(mpmath.mpf(DELTA) * order) / (order - 1)
            )
        assert report_in(tmp_path / "run").epsilon == pytest.approx(float(min(costs)), abs=1e-6)


@pytest.mark.parametrize(
    ("mode", "change", "says"),
    [
        ("record/distributed", {"integers": {"l1": 1.0, "l2": 1.0}}, "another sensitivity"),
        ("client/distributed", {"integers": None}, "another sensitivity"),
        ("client/central", {"sampling_rate": 0.1}, "sampling rate 1 of mode client/central"),
        ("record/distributed", {"count": 0}, "1 of training"),
    ],
)
def test_a_journal_that_accounts_for_another_mechanism_is_found_out(
    tmp_path: Path, mode: str, change: dict[str, object], says: str
) -> None:
    """A coordinator who signs its own false report is caught by what it says of the mode."""
    run_in(settings_of(mode), tmp_path / "run", Listener())
    journal = tmp_path / "run" / "privacy.jsonl"
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    for entry in entries:
        for release in entry.get("releases", []):
            release.update(change)
    journal.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    write_report(RunFolder.open(tmp_path / "run"))
    with pytest.raises(ReportError, match=says):
        verify_report(tmp_path / "run")
