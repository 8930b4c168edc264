"""The report in a real browser: everything is drawn, and the console stays silent."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fedveil.privacy.accounting import Release
from fedveil.privacy.audit.guesses import Guesses
from fedveil.privacy.audit.result import AuditFacts, build_audit
from fedveil.privacy.journal import Intent
from fedveil.privacy.report import Report, build_report
from fedveil.privacy.report_facts import Mechanism, RoundFigures, RunFacts
from fedveil.privacy.report_html import render_html

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to open it in")

STEP = Release(0.25, 3.3, 4)


def open_in_browser(page: Path, profile: Path) -> tuple[str, list[str]]:
    """Return the document as the browser has it, and what it wrote to the console."""
    done = subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--enable-logging=stderr", f"--user-data-dir={profile}", "--dump-dom"),
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def report(*, claims: bool) -> Report:
    mechanism = Mechanism(
        unit="record" if claims else "none",
        noise="local" if claims else "none",
        delta=1e-5,
        clip_norm=1.0,
        sampling_rate=0.25,
        nominal_records=143,
        steps_per_round=4,
        cohort=10,
        target_epsilon=3.0 if claims else None,
        metrics="off" if claims else "clear",
        insecure_seed=False,
    )
    facts = RunFacts(
        run="r",
        task="digits",
        data="d",
        settings_sha256="s",
        fedveil="0",
        created="now",
        rounds_planned=2,
        clients_planned=2,
        public_test=True,
        secagg=True,
        mechanism=mechanism,
    )
    releases = (STEP,) if claims else ()
    events = [
        Intent(round=n, attempt=1, clients=("client-0", "client-1"), releases=releases)
        for n in (1, 2)
    ]
    rounds = tuple(
        RoundFigures(round=n, clients=2, seconds=0.1, accuracy=0.4 * n, loss=1.0) for n in (1, 2)
    )
    audited = AuditFacts(
        task="digits",
        fedveil="0",
        created="now",
        settings_sha256="s",
        clients=2,
        rounds=2,
        control="",
        confidence=0.95,
        delta=1e-5,
        releases=(Release(0.25, 3.3, 8),),
    )
    audit = build_audit(audited, {"own": Guesses(1000, 50, 40)}) if claims else None
    return build_report(facts, events, rounds, None, audit)


@pytest.mark.parametrize("claims", [True, False])
def test_the_page_is_whole_and_the_console_silent(tmp_path: Path, *, claims: bool) -> None:
    page = tmp_path / "report.html"
    page.write_text(render_html(report(claims=claims)))
    document, console = open_in_browser(page, tmp_path / "profile")
    assert console == []
    assert document.count("<svg") == (5 if claims else 1)
    assert "In plain words, for a privacy officer" in document
    assert ("Was it tried?" in document) is claims
    assert document.rstrip().endswith("</html>")


def test_a_complaint_of_the_browser_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<script>console.error('seen')</script>")
    _, console = open_in_browser(page, tmp_path / "profile")
    assert len(console) == 1
