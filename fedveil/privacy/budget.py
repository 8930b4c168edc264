"""What a ledger comes to: by data set and by run, against the owner's budgets, and as a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from pydantic import BaseModel, ConfigDict

from fedveil.privacy.accounting import Accountant, Release, accountant_of
from fedveil.privacy.ledger import Snapshot
from fedveil.privacy.ledger_entries import Entry, spend
from fedveil.privacy.policy import Policy
from fedveil.privacy.report_html import plot_svg

__all__ = ["DataSetSpend", "LedgerView", "RunSpend", "spend_plot", "view_of"]

_MOST_POINTS = 40


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunSpend(_Value):
    """What one run released of a data set, and what that alone comes to."""

    run: str
    task: str
    first: str
    last: str
    charges: int
    epsilon: float | None


class DataSetSpend(_Value):
    """What was released of a data set over all runs.

    Parameters
    ----------
    dataset : str
        Its name.
    budget, budget_per_run : float, optional
        Epsilon that the policy allows; None without one.
    delta : float, optional
        What epsilon is computed at; None where neither the policy nor the user names one.
    units : tuple of str
        Whom what was released protects: ``record``, ``client``, or both, so that no epsilon holds.
    exact : bool
        Whether something was released without noise, so that no epsilon holds.
    accountant : {"PLD", "RDP"}, optional
        What `epsilon` is computed by; None where there is none.
    epsilon, epsilon_rdp : float, optional
        Over all runs, and the same by Rényi differential privacy; None where there is no delta or
        no epsilon holds.
    charges : int
        Number of entries.
    releases : tuple of Release
        All of them, equal ones grouped.
    runs : tuple of RunSpend
        In the order of their first charge.
    """

    dataset: str
    budget: float | None
    budget_per_run: float | None
    delta: float | None
    units: tuple[str, ...]
    exact: bool
    accountant: Accountant | None
    epsilon: float | None
    epsilon_rdp: float | None
    charges: int
    releases: tuple[Release, ...]
    runs: tuple[RunSpend, ...]


class LedgerView(_Value):
    """A whole ledger; `head` is the number and the hash of its newest entry, to note elsewhere."""

    ledger: str
    head: str
    datasets: tuple[DataSetSpend, ...]


def view_of(snapshot: Snapshot, policy: Policy | None, delta: float | None) -> LedgerView:
    """Compute every figure from the entries.

    Parameters
    ----------
    snapshot : Snapshot
        The ledger.
    policy : Policy, optional
        Gives budgets and deltas, and data sets of which nothing was released yet.
    delta : float, optional
        For data sets that have none in the policy.
    """
    names = {**dict.fromkeys(policy.datasets if policy else ())}
    names |= dict.fromkeys(entry.dataset for entry in snapshot.entries)
    return LedgerView(
        ledger=snapshot.name,
        head=f"{snapshot.head.number}:{snapshot.head.hash.hex()}",
        datasets=tuple(_data_set(snapshot.entries, name, policy, delta) for name in names),
    )


def _data_set(
    entries: Sequence[Entry], name: str, policy: Policy | None, delta: float | None
) -> DataSetSpend:
    rules = policy.datasets.get(name) if policy else None
    budget = rules.budget if rules else None
    used = budget.delta if budget else delta
    of_it = [entry for entry in entries if entry.dataset == name]
    all_of_it = spend(of_it, name)
    known = used is not None and all_of_it.accountable
    return DataSetSpend(
        dataset=name,
        budget=budget.epsilon if budget else None,
        budget_per_run=budget.epsilon_per_run if budget else None,
        delta=used,
        units=all_of_it.units,
        exact=all_of_it.exact,
        accountant=accountant_of(all_of_it.releases, used) if used is not None and known else None,
        epsilon=all_of_it.epsilon(used) if used is not None and known else None,
        epsilon_rdp=all_of_it.epsilon_rdp(used) if used is not None and known else None,
        charges=len(of_it),
        releases=all_of_it.releases,
        runs=tuple(_run(of_it, run, used) for run in dict.fromkeys(e.run for e in of_it)),
    )


def _run(entries: Sequence[Entry], run: str, delta: float | None) -> RunSpend:
    of_it = [entry for entry in entries if entry.run == run]
    epsilon = spend(of_it, of_it[0].dataset).epsilon(delta) if delta is not None else math.inf
    return RunSpend(
        run=run,
        task=", ".join(dict.fromkeys(entry.task for entry in of_it)),
        first=of_it[0].time.isoformat(),
        last=of_it[-1].time.isoformat(),
        charges=len(of_it),
        epsilon=epsilon if math.isfinite(epsilon) else None,
    )


def spend_plot(snapshot: Snapshot, view: LedgerView) -> str:
    """Return an SVG of what was spent of each budget, entry by entry."""

    def draw(axes: Axes) -> None:
        for data in view.datasets:
            numbers = [e.number for e in snapshot.entries if e.dataset == data.dataset]
            if data.delta is None or data.exact or len(data.units) > 1 or not numbers:
                continue
            shown = numbers[:: math.ceil(len(numbers) / _MOST_POINTS)]
            shown = [*shown, *numbers[-1:]] if shown[-1] != numbers[-1] else shown
            delta = data.delta
            spent = [
                spend(snapshot.entries[:number], data.dataset).epsilon(delta) for number in shown
            ]
            (line,) = axes.plot(shown, spent, marker=".", label=data.dataset)
            if data.budget is not None:
                axes.axhline(data.budget, color=line.get_color(), ls="--", lw=1)
        if axes.lines:
            axes.legend(loc="upper left")
        axes.set(
            xlabel="entry of the ledger",
            ylabel="epsilon so far",
            title="Spent by data set; dashed: its budget",
        )
        axes.set_ylim(bottom=0)

    return plot_svg(draw, 6.4)
