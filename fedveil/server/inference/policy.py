"""What callers may ask, what they are told, and what is written down of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedveil.audit_log.chain import head_path
from fedveil.server.inference.audit_log import AuditEvent, AuditLog
from fedveil.server.inference.outputs import FULL, OutputForm
from fedveil.server.inference.query_budget import QueryBudget
from fedveil.server.inference.rate import Rate

__all__ = ["OPEN", "Policy", "PolicyOptions", "open_policy"]


@dataclass(frozen=True)
class PolicyOptions:
    """A policy as it is asked for; plain values, which go from one process to another.

    Parameters
    ----------
    outputs : OutputForm
        The form of answers.
    rate, rate_rows : float or None
        Requests and rows of a caller a second.
    query_budget : int or None
        Rows of a caller in all.
    budget_file : Path or None
        Where they are counted; needed with `query_budget`.
    audit_log : Path or None
        The audit log.
    audit_heads : Path or None
        The folder of its head; needed with `audit_log`.
    """

    outputs: OutputForm = FULL
    rate: float | None = None
    rate_rows: float | None = None
    query_budget: int | None = None
    budget_file: Path | None = None
    audit_log: Path | None = None
    audit_heads: Path | None = None

    def __str__(self) -> str:
        return (
            f"outputs {self.outputs}, rate {_told(self.rate)}, rows a second "
            f"{_told(self.rate_rows)}, query budget {_told(self.query_budget)}"
        )


@dataclass(frozen=True)
class Policy:
    """A policy that is in force in this process.

    Parameters
    ----------
    outputs : OutputForm
        The form of answers.
    rate : Rate
        How fast callers may ask.
    budget : QueryBudget or None
        How much they may ask.
    audit : AuditLog or None
        Where it is written down.
    """

    outputs: OutputForm
    rate: Rate
    budget: QueryBudget | None
    audit: AuditLog | None


OPEN = PolicyOptions()
"""Whoever may ask at all may ask everything, is told everything, and nothing is written down."""


def open_policy(options: PolicyOptions, run: str, version: str) -> Policy:
    """Put a policy in force.

    Parameters
    ----------
    options : PolicyOptions
        What is asked for.
    run : str
        The run that is served.
    version : str
        The round that answers first.

    Raises
    ------
    ServeError
        If a rate or a budget is out of range, or the file of budgets cannot be used.
    AuditError
        If the audit log cannot be written.
    """
    rate = Rate(options.rate, options.rate_rows)
    budget = None
    if options.query_budget is not None and options.budget_file is not None:
        budget = QueryBudget(options.budget_file, run, options.query_budget)
    audit = None
    if options.audit_log is not None and options.audit_heads is not None:
        path = options.audit_log
        first = AuditEvent("start", version=version, detail=f"run {run}: {options}")
        audit = AuditLog(path, head_path(options.audit_heads, path), first)
    return Policy(options.outputs, rate, budget, audit)


def _told(limit: float | None) -> str:
    return "any" if limit is None else f"{limit:g}"
