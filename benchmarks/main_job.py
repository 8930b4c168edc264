"""The main job's accuracy, epsilon and time: `digits`, ten clients, Dirichlet(0.5)."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from claims import Claim, finish, parser

SEEDS = (0, 1, 2)


def simulate(*arguments: str) -> dict[str, float]:
    """Run `fedveil simulate` as a user would and return its JSON object."""
    command = [str(Path(sys.executable).parent / "fedveil"), "simulate", "--json", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        done = subprocess.run(
            [*command, "--out", f"{folder}/run", "--kek", f"file:{folder}/key"],
            capture_output=True,
            text=True,
            check=True,
        )
        result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return {**result, "wall": time.monotonic() - started}


def main() -> None:
    """Measure and print."""
    options = parser(__doc__).parse_args()
    claims = []
    for target, floor in ((8, 0.87), (3, 0.83)):
        runs = [
            simulate("--seed", str(seed), "--set", f"dp.target_epsilon={target}") for seed in SEEDS
        ]
        mean = statistics.mean(run["accuracy"] for run in runs)
        what = f"digits, epsilon <= {target}, delta = 1e-5, mean of seeds {SEEDS}"
        claims += [
            Claim(f"{what}: accuracy", mean, "", floor, "at least"),
            Claim(f"{what}: epsilon", max(r["epsilon"] for r in runs), "", target, "at most"),
            Claim(f"{what}: wall time", max(r["wall"] for r in runs), "s", 300, "at most"),
        ]
    finish(claims, as_json=options.json)


if __name__ == "__main__":
    main()
