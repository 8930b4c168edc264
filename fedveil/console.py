"""What a run looks like in a terminal: a progress bar, or plain lines where there is none."""

from __future__ import annotations

import gc
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from fedveil.config import Config
from fedveil.privacy.audit.result import ATTACKS, AuditResult
from fedveil.privacy.composition import Composition
from fedveil.privacy.report import Report
from fedveil.privacy.report_words import noise_in_words, rounded_down, rounded_up
from fedveil.server.records import RoundRecord

__all__ = [
    "ProgressObserver",
    "audit_tables",
    "composition_tables",
    "epsilon_text",
    "percent",
    "report_tables",
]


def percent(share: float | None) -> str:
    """Return a share as a percentage, or ``unknown``."""
    return "unknown" if share is None else f"{100.0 * share:.1f} %"


def epsilon_text(epsilon: float | None) -> str:
    """Return an epsilon to three decimals, never less than it is, or ``none``."""
    return "none" if epsilon is None else rounded_up(epsilon)


class ProgressObserver:
    """Shows a run on a console: a bar in a terminal, else a line a round.

    Parameters
    ----------
    console : Console
        Where to; standard error, so that standard output stays for results.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._figures = ""

    def __enter__(self) -> Self:
        """Show nothing yet: a passphrase may have to be asked for."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it is, so that it scrolls away with the rest."""
        if self._bar is not None:
            self._bar.stop()

    def started(self, config: Config, run: str, clients: int, noise: float | None) -> None:
        """Tell what is about to run."""
        # The libraries are imported now, and what they made lives as long as the process: for the
        # collector to look through it again and again would cost a tenth of every round.
        gc.freeze()
        dp = config.dp
        privacy = "no privacy"
        if noise is not None:
            goal = f"epsilon <= {dp.target_epsilon:g}, " if dp.target_epsilon else ""
            privacy = f"{goal}delta = {dp.delta:g}, noise multiplier {noise:g}"
        self._console.print(
            f"{run}: {config.task.name}, {clients} clients, {config.federation.rounds} rounds, "
            f"{privacy}",
            highlight=False,
        )
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("rounds", total=config.federation.rounds, figures="")

    def reply(self, round_: int, replies: int, cohort: int) -> None:
        """Move the bar by a client."""
        if self._bar is not None and self._task is not None:
            share = round_ - 1 + replies / cohort
            self._bar.update(self._task, completed=share, figures=self._figures)

    def round_done(self, record: RoundRecord, rounds: int) -> None:
        """Move the bar by a round, or print its line."""
        self._figures = (
            f"accuracy {percent(record.accuracy)}  epsilon {epsilon_text(record.epsilon)}"
        )
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=record.round, figures=self._figures)
            return
        line = f"round {record.round}/{rounds}  {self._figures}  {record.seconds:.1f} s"
        self._console.print(line, highlight=False)

    def warning(self, text: str) -> None:
        """Print a warning."""
        self._console.print(f"[yellow]warning:[/] {escape(text)}", highlight=False)


def report_tables(report: Report) -> list[Table]:
    """Return a report as tables for a terminal: the claim, then the clients."""
    m = report.facts.mechanism
    claim = Table(title=f"Run {report.facts.run}", show_header=False, title_justify="left")
    met = {None: "", True: ", budget kept", False: ", BUDGET EXCEEDED"}[report.target_met]
    budget = f" of {m.target_epsilon:g}{met}" if m.target_epsilon is not None else ""
    rows = [
        ("task", report.facts.task),
        ("rounds", f"{len(report.rounds)} of {report.facts.rounds_planned}"),
        ("accuracy", percent(report.accuracy)),
        ("epsilon", epsilon_text(report.epsilon) + (budget if report.claims else "")),
        ("delta", f"{m.delta:g}" if report.claims else "none"),
        ("mode", report.mode),
        ("unit of privacy", m.unit),
        ("neighbours", report.neighbouring_relation),
        ("noise added by", noise_in_words(m)),
        *_mode_rows(report),
        ("accountant", report.accountant),
        ("claim", report.statement),
        *(("trust", line) for line in report.trust),
        *(("assumption", line) for line in report.assumptions),
        *(("not covered", line) for line in report.not_covered),
    ]
    if report.audit is not None:
        a = report.audit
        verdict = "the claim stands" if a.holds else "CLAIM REFUTED"
        sure = f"at {100 * a.facts.confidence:g} % confidence"
        rows.append(("audit", f"epsilon >= {rounded_down(a.bound)} {sure}; {verdict}"))
    for name, value in rows:
        claim.add_row(name, value)
    clients = Table(title="Clients", title_justify="left")
    for name in ("client", "rounds", "steps", f"epsilon ({report.method})", "epsilon (RDP)"):
        clients.add_column(name, justify="left" if name == "client" else "right")
    for c in report.clients:
        clients.add_row(
            c.client,
            str(c.rounds),
            str(c.steps),
            epsilon_text(c.epsilon),
            epsilon_text(c.epsilon_rdp),
        )
    return [claim, clients]


def _mode_rows(report: Report) -> list[tuple[str, str]]:
    """Return what only some modes have to tell."""
    m, s = report.facts.mechanism, report.skellam
    rows = []
    if report.epsilon_replace_one is not None:
        rows.append(("epsilon, replace one", epsilon_text(report.epsilon_replace_one)))
    if m.shared is not None:
        rows.append(
            (
                "clients in a sum",
                f"{m.cohort} planned, at least {m.shared.min_survivors}, at most "
                f"{m.shared.colluding} colluding",
            )
        )
    if s is not None:
        rows.append(
            (
                "Skellam noise",
                f"scale {s.scale:.4g}, sensitivity {s.sensitivity.l2:.4g} (L2) and "
                f"{s.sensitivity.l1:.4g} (L1), std {s.noise_std:.4g} in a sum and "
                f"{s.share_std:.4g} a share, in integer units; wraps with probability <= "
                f"{s.wrap_probability:.2g}",
            )
        )
    clips = [r.clip_norm for r in report.rounds if r.clip_norm is not None]
    if clips:
        rows.append(("clip norm", f"{clips[0]:.4g} in the first round, {clips[-1]:.4g} at last"))
    return rows


def audit_tables(result: AuditResult) -> list[Table]:
    """Return an audit as tables for a terminal: the verdict, then the attacks."""
    facts = result.facts
    verdict = Table(
        title=f"Audit of {facts.task}, {facts.clients} clients, {facts.rounds} rounds",
        show_header=False,
        title_justify="left",
    )
    stands = "[green]✓[/] the claim stands" if result.holds else "[bold red]✗ CLAIM REFUTED[/]"
    sure = f"{100 * facts.confidence:g} % confidence"
    for name, value in (
        ("claimed", f"epsilon = {epsilon_text(result.claimed)} at delta = {facts.delta:g}"),
        (
            "at least",
            f"epsilon = {rounded_down(result.bound)}, {sure}, whatever the amount of noise",
        ),
        ("", f"epsilon = {rounded_down(result.bound_any)}, {sure}, whatever the mechanism"),
        ("verdict", stands),
    ):
        verdict.add_row(name, value)
    attacks = Table(title="Attacks", title_justify="left")
    for name in ("attacker", "canaries", "guessed", "right", "epsilon >=", "any mechanism"):
        attacks.add_column(name, justify="left" if name == "attacker" else "right")
    for attack in result.attacks:
        found = attack.found
        attacks.add_row(
            attack.name,
            str(found.canaries),
            str(found.guesses),
            f"{found.correct} ({percent(found.correct / max(found.guesses, 1))})",
            rounded_down(attack.epsilon),
            rounded_down(attack.epsilon_any),
        )
    attacks.caption = "\n".join(f"{a.name}: {ATTACKS[a.name]}" for a in result.attacks)
    attacks.caption_justify = "left"
    return [verdict, attacks]


def composition_tables(found: Composition) -> list[Table]:
    """Return several runs as one: the claim, then the clients."""
    claim = Table(title="Runs together", show_header=False, title_justify="left")
    for name, value in (
        *(("run", run) for run in found.runs),
        ("task", found.task),
        (
            "epsilon",
            f"{epsilon_text(found.epsilon)} (added up: {epsilon_text(found.epsilon_added)})",
        ),
        ("delta", f"{found.delta:g}"),
        ("unit of privacy", found.unit),
        ("neighbours", found.neighbouring_relation),
        ("claim", found.statement),
        *(("note", note) for note in found.notes),
    ):
        claim.add_row(name, value)
    clients = Table(title="Clients", title_justify="left")
    for name in ("client", "runs", f"epsilon ({found.method})", "epsilon (RDP)"):
        clients.add_column(name, justify="left" if name == "client" else "right")
    for c in found.clients:
        clients.add_row(
            c.client, str(len(c.runs)), epsilon_text(c.epsilon), epsilon_text(c.epsilon_rdp)
        )
    return [claim, clients]
