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
Logged = tuple[float, float, float | None, float | None, int | None]
"""Sampling rate, noise multiplier, and l1, l2 and coordinates of integers."""


def logged(run: Path) -> dict[str, Counter[Logged]]:
    """Read what each client released from the journal's lines, as plain JSON."""
    released: dict[str, Counter[Logged]] = defaultdict(Counter)
    for line in (run / "privacy.jsonl").read_text().splitlines():
        entry = json.loads(line)
        for release in entry["releases"] if entry["event"] == "intent" else []:
            integers = release["integers"] or dict.fromkeys(("l1", "l2", "coordinates"))
            key = (
                release["sampling_rate"],
                release["noise_multiplier"],
                integers["l1"],
                integers["l2"],
                integers["coordinates"],
            )
            for client in entry["clients"]:
                released[client][key] += release["count"]
    return released


def by_loss_distributions(releases: Counter[Logged], delta: float = DELTA) -> float:
    """Compose releases as Gaussian ones by dp-accounting's distributions, not its accountants."""
    whole = privacy_loss_distribution.identity(value_discretization_interval=1e-3)
    alike: Counter[tuple[float, float]] = Counter()
    for (rate, noise, *_), count in releases.items():
        alike[rate, noise] += count
    for (rate, noise), count in alike.items():
        # Without sampling n releases are one with noise less by sqrt(n), and finer on the grid.
        noise, times = (noise / math.sqrt(count), 1) if rate == 1.0 else (noise, count)
        one = privacy_loss_distribution.from_gaussian_mechanism(
            noise, sampling_prob=rate, value_discretization_interval=1e-3
        )
        whole = whole.compose(one.self_compose(times))
    return float(whole.get_epsilon_for_delta(delta))


def by_nearness(releases: Counter[Logged]) -> float:
    """Compose Skellam releases as Gaussian ones, and add what both laws differ by.

    docs/decisions/0010-skellam-as-gaussian.md, with fifty digits and a search of its own for the
    magnitude that is not passed.
    """
    with mpmath.workdps(50):
        odds = mpmath.mpf(DELTA) / 10_000 * mpmath.exp(-by_moments(releases) - 1)
        shared = {r: n * r[4] for r, n in releases.items() if r[4] is not None}
        bits = int(mpmath.ceil(mpmath.log(2 * sum(shared.values()) / odds, 2)))
        nats, missed = mpmath.log(2 / odds), mpmath.mpf(2) ** -bits
        mean = variance = widest = mpmath.mpf(0)
        for (_, noise, _, l2, _), n in shared.items():
            assert l2 is not None
            v = (mpmath.mpf(noise) * l2) ** 2
            m = _not_passed(v, bits)
            width = m**4 / (24 * v**3) + (m * (m + 1) / 2 + m * m / 8) / v**2
            eighth = (mpmath.root(105, 8) * mpmath.sqrt(v) + 0.5) ** 8
            fourth = (mpmath.root(3, 4) * mpmath.sqrt(v) + 0.5) ** 4
            square = eighth / (576 * v**6) + 81 * fourth / (64 * v**4)
            mean += n * (width**2 / 8 + 2 * missed)
            variance += n * square / (1 - missed)
            widest = max(widest, width)
        step = widest * nats / 3
        bound = mean + step + mpmath.sqrt(step**2 + 2 * nats * variance)
        left = float(mpmath.mpf(DELTA) * (1 - mpmath.mpf(2) / 10_000) * mpmath.exp(-bound))
        return by_loss_distributions(releases, left) + 2 * float(bound)


def _not_passed(variance: mpmath.mpf, bits: int) -> mpmath.mpf:
    """Return the least integer that Skellam noise reaches with odds below 2^-bits, by Chernoff.

    Or, where that is larger, what rounded Gaussian noise does.
    """

    def log_odds(m: int) -> mpmath.mpf:
        h = mpmath.asinh(m / variance)
        return mpmath.log(2) + variance * (mpmath.cosh(h) - 1) - h * m

    low, high = 0, 2 * int(mpmath.sqrt(2 * variance * bits)) + bits
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if log_odds(middle) <= -bits * mpmath.log(2) else (middle, high)
    return max(mpmath.mpf(high), 0.5 + mpmath.sqrt(2 * variance * (bits + 1) * mpmath.log(2)))


def by_moments(releases: Counter[Logged]) -> float:
    """Compose Skellam releases by their moments, with fifty digits and no logarithms in between.

    Agarwal, Kairouz & Liu 2021, theorem 3.5, at each integer order; of a sampled one the moment of
    the mixture, term by term; to (epsilon, delta) by Canonne, Kamath & Steinke 2020, prop. 12.
    """
    with mpmath.workdps(50):
        best = mpmath.inf
        for order in INTEGER_ORDERS:
            total = mpmath.mpf(0)
            for (rate, noise, l1, l2, _), count in releases.items():
                total += count * _divergence(order, rate, noise, l1, l2)
            best = min(
                best,
                total
                + mpmath.log(1 - mpmath.mpf(1) / order)
                - mpmath.log(mpmath.mpf(DELTA) * order) / (order - 1),
            )
        return float(best)


def cheapest(releases: Counter[Logged]) -> float:
    """Return the smaller of both bounds of releases with some Skellam noise."""
    return min(by_moments(releases), by_nearness(releases))


def _divergence(
    order: int, rate: float, noise: float, l1: float | None, l2: float | None
) -> mpmath.mpf:
    def single(a: int) -> mpmath.mpf:
        if l1 is None or l2 is None:
            return a / (2 * mpmath.mpf(noise) ** 2)
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


FORGED = {"l1": 1.0, "l2": 1.0, "coordinates": 650}


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
    compose = cheapest if mode.endswith("/distributed") else by_loss_distributions
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
    (cost,) = {cheapest(found) for found in logged(tmp_path / "run").values()}
    assert report_in(tmp_path / "run").epsilon == pytest.approx(cost, abs=1e-6)


@pytest.mark.parametrize(
    ("mode", "change", "says"),
    [
        (
            "record/distributed",
            {"integers": {"l1": 1.0, "l2": 1.0, "coordinates": 650}},
            "another sensitivity",
        ),
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
    for release in (one for entry in entries for one in entry.get("releases", [])):
        release.update(change)
    _tell(entries, tmp_path / "run", says)


def test_a_journal_with_fewer_coordinates_is_found_out(tmp_path: Path) -> None:
    """Fewer would bring Skellam noise nearer to Gaussian noise than it is."""
    run_in(settings_of("record/distributed"), tmp_path / "run", Listener())
    journal = tmp_path / "run" / "privacy.jsonl"
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    for release in (one for entry in entries for one in entry.get("releases", [])):
        release["integers"]["coordinates"] = 1
    _tell(entries, tmp_path / "run", "another sensitivity")


def _tell(entries: list[dict[str, object]], run: Path, says: str) -> None:
    (run / "privacy.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    write_report(RunFolder.open(run))
    with pytest.raises(ReportError, match=says):
        verify_report(run)
