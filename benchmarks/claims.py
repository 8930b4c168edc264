"""What every benchmark script shares: claims, their table, their JSON lines, their exit code."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table

__all__ = ["Claim", "finish", "parser"]


@dataclass(frozen=True)
class Claim:
    """One figure against the figure that it must reach.

    Parameters
    ----------
    claim : str
        What is claimed, with the baseline.
    value : float
        What was measured.
    unit : str
        Its unit.
    reach : float
        What it must reach.
    sense : {"at least", "at most"}
        From which side.
    """

    claim: str
    value: float
    unit: str
    reach: float
    sense: Literal["at least", "at most"]

    @property
    def holds(self) -> bool:
        """Whether the figure is reached."""
        return self.value >= self.reach if self.sense == "at least" else self.value <= self.reach


def parser(about: str) -> argparse.ArgumentParser:
    """Return a command-line parser with the options that every script has."""
    made = argparse.ArgumentParser(description=about)
    made.add_argument("--json", action="store_true", help="one JSON object a claim, a line each")
    return made


def finish(claims: list[Claim], *, as_json: bool) -> None:
    """Print the claims and exit, with 1 when one does not hold."""
    if as_json:
        for claim in claims:
            fields = asdict(claim)
            del fields["sense"]
            print(json.dumps({**fields, "holds": claim.holds}))
    else:
        table = Table()
        for name in ("claim", "measured", "reach", "holds"):
            table.add_column(name)
        for c in claims:
            measured = f"{c.value:.4g} {c.unit}".strip()
            table.add_row(c.claim, measured, f"{c.sense} {c.reach:g}", "yes" if c.holds else "NO")
        Console(width=140).print(table)
    sys.exit(0 if all(claim.holds for claim in claims) else 1)
