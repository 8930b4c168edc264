"""The privacy report as one self-contained HTML page with plots."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedveil.privacy.audit.result import ATTACKS, AuditResult
from fedveil.privacy.report import Report
from fedveil.privacy.report_words import noise_in_words, rounded_down, rounded_up

__all__ = ["plot_svg", "render_html"]

_INK = "#1f3a5f"
_ACCENT = "#b3541e"
_SUSPICIONS = (0.01, 0.1, 0.5)
_SEEN = {
    "local": "everything that was sent",
    "distributed": "every sum that was opened, and every model",
    "central": "every model",
    "none": "everything that was sent",
}
_SETTINGS: dict[Any, object] = {
    # Letters as outlines: the page needs no font and no network.
    "svg.fonttype": "path",
    # Same report, same bytes.
    "svg.hashsalt": "fedveil",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
}


def render_html(report: Report) -> str:
    """Return the page; it refers to nothing outside itself."""
    environment = Environment(
        loader=PackageLoader("fedveil.privacy"), autoescape=True, undefined=StrictUndefined
    )
    plots = {}
    if report.claims:
        plots["epsilon"] = plot_svg(partial(_draw_epsilon, report))
        plots["clients"] = plot_svg(partial(_draw_clients, report))
    if report.claims and report.accuracy is not None:
        plots["price"] = plot_svg(partial(_draw_price, report))
    plots["accuracy"] = plot_svg(partial(_draw_accuracy, report))
    if report.facts.mechanism.adaptive is not None:
        plots["clip"] = plot_svg(partial(_draw_clip, report))
    if report.audit is not None:
        plots["audit"] = plot_svg(partial(_draw_audit, report.audit), height=1.9)
    environment.filters["up"] = rounded_up
    environment.filters["down"] = rounded_down
    environment.filters["percent"] = _percent
    page = environment.get_template("report.html")
    return page.render(
        report=report,
        facts=report.facts,
        m=report.facts.mechanism,
        plots=plots,
        suspicions=[(p, _surest(p, report.epsilon or 0.0)) for p in _SUSPICIONS],
        attacks=ATTACKS,
        noise=noise_in_words(report.facts.mechanism),
        seen=_SEEN[report.facts.mechanism.noise],
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _surest(suspicion: float, epsilon: float) -> float:
    """Return how sure an observer can become of a record, rounded up, but for delta.

    By Bayes' rule, a likelihood ratio of at most e^epsilon.
    """
    odds = math.exp(epsilon) * suspicion / (1.0 - suspicion)
    return math.ceil(1e3 * odds / (1.0 + odds)) / 1e3


def _largest_by_round(report: Report) -> dict[int, float]:
    """Return the largest epsilon of any client after each round."""
    largest: dict[int, float] = {}
    rounds = sorted({r for c in report.clients for r in c.epsilon_by_round})
    for number in rounds:
        so_far = [
            max(e for r, e in c.epsilon_by_round.items() if r <= number)
            for c in report.clients
            if any(r <= number for r in c.epsilon_by_round)
        ]
        largest[number] = max(so_far)
    return largest


def plot_svg(draw: Callable[[Axes], None], width: float = 4.8, height: float = 3.0) -> Markup:
    """Return as SVG what is drawn on axes of a width and a height in inches."""
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    # Drawn here from numbers and fixed labels alone.
    return Markup(text[text.index("<svg") :])  # noqa: S704


def _draw_accuracy(report: Report, axes: Axes) -> None:
    known = [(r.round, r.accuracy) for r in report.rounds if r.accuracy is not None]
    axes.plot([r for r, _ in known], [100 * a for _, a in known], color=_INK, marker=".")
    axes.set(xlabel="round", ylabel="accuracy, %", title="Accuracy by round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_clip(report: Report, axes: Axes) -> None:
    known = [(r.round, r.clip_norm) for r in report.rounds if r.clip_norm is not None]
    axes.plot([r for r, _ in known], [c for _, c in known], color=_INK, marker=".")
    axes.set(xlabel="round", ylabel="clip norm", title="Clip norm by round, as it adapted")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_price(report: Report, axes: Axes) -> None:
    largest = _largest_by_round(report)
    known = [
        (largest[r.round], 100 * r.accuracy)
        for r in report.rounds
        if r.accuracy is not None and r.round in largest
    ]
    axes.plot([e for e, _ in known], [a for _, a in known], color=_INK, marker=".")
    target = report.facts.mechanism.target_epsilon
    if target is not None:
        axes.axvline(target, color=_ACCENT, ls="--", label=f"budget {target:g}")
        axes.legend(loc="lower right")
    axes.set(xlabel="epsilon so far", ylabel="accuracy, %", title="Accuracy against epsilon")
    axes.set_xlim(left=0)


def _draw_audit(audit: AuditResult, axes: Axes) -> None:
    bars = [
        ("claimed", audit.claimed, _INK),
        ("shown, any noise", audit.bound, _ACCENT),
        ("shown, any mechanism", audit.bound_any, _ACCENT),
    ]
    axes.barh([b[0] for b in bars], [b[1] for b in bars], color=[b[2] for b in bars], height=0.55)
    for place, (_, value, _) in enumerate(bars):
        axes.text(value, place, f" {value:.2f}", va="center")
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.2 * max(b[1] for b in bars))
    axes.set(xlabel="epsilon", title="What the attack showed, beside the claim")


def _draw_epsilon(report: Report, axes: Axes) -> None:
    """One line a client; lines that coincide are drawn as one."""
    curves = {tuple(sorted(c.epsilon_by_round.items())) for c in report.clients}
    for curve in sorted(curves):
        axes.plot([r for r, _ in curve], [e for _, e in curve], color=_INK, marker=".", lw=1)
    target = report.facts.mechanism.target_epsilon
    if target is not None:
        axes.axhline(target, color=_ACCENT, ls="--", label=f"budget {target:g}")
        axes.legend(loc="lower right")
    axes.set(xlabel="round", ylabel="epsilon so far", title="Epsilon by round, one line a client")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_clients(report: Report, axes: Axes) -> None:
    spent = sorted((c.epsilon or 0.0, c.epsilon_rdp or 0.0) for c in report.clients)
    place = range(1, len(spent) + 1)
    axes.plot(place, [e for e, _ in spent], ".", color=_INK, label=f"{report.method} (the claim)")
    if report.method == "PLD":
        axes.plot(place, [r for _, r in spent], "x", color="#888888", ms=4, label="Rényi DP")
    target = report.facts.mechanism.target_epsilon
    if target is not None:
        axes.axhline(target, color=_ACCENT, ls="--", label=f"budget {target:g}")
    axes.legend(loc="lower right")
    axes.set(
        xlabel="clients, by epsilon", ylabel="epsilon", title="Epsilon by client, and accountant"
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 1.1 * max((max(pair) for pair in spent), default=1.0))
