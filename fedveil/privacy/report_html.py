"""The privacy report as one self-contained HTML page with plots."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedveil.privacy.report import Report, rounded_up

__all__ = ["plot_svg", "render_html"]

_INK = "#1f3a5f"
_ACCENT = "#b3541e"
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
    plots = {"accuracy": plot_svg(partial(_draw_accuracy, report), 6.4)}
    if report.claims:
        plots["epsilon"] = plot_svg(partial(_draw_epsilon, report), 6.4)
        plots["clients"] = plot_svg(partial(_draw_clients, report), 6.4)
    environment.filters["up"] = rounded_up
    page = environment.get_template("report.html")
    return page.render(report=report, facts=report.facts, m=report.facts.mechanism, plots=plots)


def plot_svg(draw: Callable[[Axes], None], width: float) -> Markup:
    """Return as SVG what is drawn on axes of a width in inches."""
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, 3.0), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    # Drawn here from numbers and fixed labels alone.
    return Markup(text[text.index("<svg") :])  # noqa: S704


def _draw_accuracy(report: Report, axes: Axes) -> None:
    known = [(r.round, r.accuracy) for r in report.rounds if r.accuracy is not None]
    axes.plot([r for r, _ in known], [100 * a for _, a in known], color=_INK, marker=".")
    axes.set(xlabel="round", ylabel="accuracy, %", title="Accuracy by round")


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


def _draw_clients(report: Report, axes: Axes) -> None:
    spent = sorted((c.epsilon or 0.0, c.epsilon_rdp or 0.0) for c in report.clients)
    place = range(1, len(spent) + 1)
    axes.plot(place, [e for e, _ in spent], ".", color=_INK, label="PLD (the claim)")
    axes.plot(place, [r for _, r in spent], "x", color="#888888", ms=4, label="Rényi DP")
    target = report.facts.mechanism.target_epsilon
    if target is not None:
        axes.axhline(target, color=_ACCENT, ls="--", label=f"budget {target:g}")
    axes.legend(loc="lower right")
    axes.set(xlabel="clients, by epsilon", ylabel="epsilon", title="Epsilon by client")
    axes.set_ylim(0, 1.1 * max((max(pair) for pair in spent), default=1.0))
