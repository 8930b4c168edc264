"""Simulations on one machine, beside Flower's Ray simulation and Apple's pfl-research.

First, 100 clients that send back what they get, ten rounds of Flower's own FedAvg: all time is the
engine's overhead. Theirs runs under `flwr.simulation.run_simulation`, ours on the in-process grid;
what is timed is the strategy's run in both, and what it takes to start Ray stands beside it.

Second, MNIST's 539 writers, cohorts of 50, 20 rounds of ten local SGD steps on ten records each,
without privacy and with central DP for clients: updates clipped, Gaussian noise on their sum. Ours
is `simulate` with its defaults, so that each round also checks, accounts, and commits an encrypted
model to disk; without secure aggregation, which pfl does not have. Theirs is written as pfl's
tutorials are, all data in memory as tensors. Both evaluate the model on the 10,000 test images 20
times. Where a writer has fewer than 100 images, pfl takes fewer steps, and ours begins a new
permutation. What is timed are the rounds, from the moment all clients have joined, or `run` is
called; importing and reading files stand beside it as the rest of the process.

Each side is a process of its own with one thread for PyTorch, in turns; times are those of the
wall clock, with CPU times of the pfl comparison beside them; figures are medians, and a ratio is
the median of the ratios of one turn. Flower with Ray and pfl are installed from PyPI, once, in
environments of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import venv
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path

from claims import Claim, finish, parser
from platformdirs import user_cache_path
from rich.console import Console
from rich.table import Table
from simulation_work import Work

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data" / "mnist"
RAY, PFL = "2.55.1", "0.6.0"
LIMIT_SECONDS = 1800
OURS, THEIRS = "ours", "theirs"
TRIVIAL = "100 trivial clients, 10 rounds, Flower's Ray simulation"
CLAIMED = ("cnn", "linear")
NOISE = {"without DP": None, "with central DP": 1.0}


@dataclass(frozen=True)
class Taken:
    """What one process of one side took.

    Parameters
    ----------
    seconds, cpu : float
        Wall time of the rounds, and CPU time of them; 0 where it is not told.
    rest : float
        Wall time of the process besides.
    accuracy : float, optional
        On the test images, at the end.
    """

    seconds: float
    cpu: float
    rest: float
    accuracy: float | None


Turns = dict[str, list[Taken]]


def environment_of(name: str, wanted: Iterable[str]) -> Path:
    """Make an environment with some packages, once; return its interpreter."""
    folder = user_cache_path("fedveil-benchmarks") / name
    python, made = folder / "bin" / "python", folder / "made"
    if not made.exists():
        print(f"making {folder}, once ...", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--quiet", *wanted], check=True
        )
        made.touch()
    return python


def run(python: Path, script: str, argument: str) -> Taken:
    """Run one side once."""
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    began = time.perf_counter()
    done = subprocess.run(
        [str(python), str(HERE / script), argument],
        capture_output=True,
        text=True,
        env=env,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    whole = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{script} failed; its last words:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    seconds = float(found["seconds"])
    return Taken(seconds, float(found.get("cpu", 0.0)), whole - seconds, found.get("accuracy"))


def take_turns(turns: int, sides: dict[str, tuple[Path, str, str]]) -> Turns:
    """Run each side so many times, one after another."""
    found: Turns = defaultdict(list)
    for _ in range(turns):
        for side, command in sides.items():
            found[side].append(run(*command))
    return found


def trivial(turns: int) -> Turns:
    """Measure clients that do nothing."""
    wanted = [f"flwr[simulation]=={version('flwr')}", f"ray=={RAY}"]
    ray = environment_of(f"ray-{RAY}-flwr-{version('flwr')}", wanted)
    script = "simulation_trivial.py"
    return take_turns(
        turns,
        {OURS: (Path(sys.executable), script, "fedveil"), THEIRS: (ray, script, "ray")},
    )


def writers(turns: int, works: dict[str, Work]) -> dict[str, Turns]:
    """Measure MNIST's writers."""
    torch = version("torch").partition("+")[0]
    pfl = environment_of(f"pfl-{PFL}-torch-{torch}", [f"pfl=={PFL}", f"torch=={torch}"])
    return {
        name: take_turns(
            turns,
            {
                OURS: (Path(sys.executable), "simulation_fedveil.py", json.dumps(asdict(work))),
                THEIRS: (pfl, "simulation_pfl.py", json.dumps(asdict(work))),
            },
        )
        for name, work in works.items()
    }


def ratio(found: Turns, of: Callable[[Taken], float] = attrgetter("seconds")) -> float:
    """Return the median of the ratios of one turn, theirs against ours."""
    return statistics.median(
        of(theirs) / of(ours) for theirs, ours in zip(found[THEIRS], found[OURS], strict=True)
    )


def show(results: dict[str, Turns]) -> None:
    """Print all times."""
    table = Table(title="seconds, medians; ratios are theirs to ours")
    for column in (
        "",
        "side",
        "rounds",
        "rounds, CPU",
        "rest of the process",
        "accuracy",
        "ratio",
        "ratio, CPU",
    ):
        table.add_column(column, justify="left" if column in {"", "side"} else "right")
    for name, found in results.items():
        for side, taken in found.items():
            accuracies = [one.accuracy for one in taken if one.accuracy is not None]
            cpu = statistics.median(one.cpu for one in taken)
            table.add_row(
                name if side == OURS else "",
                side,
                f"{statistics.median(one.seconds for one in taken):.2f}",
                f"{cpu:.2f}" if cpu else "",
                f"{statistics.median(one.rest for one in taken):.2f}",
                f"{statistics.median(accuracies):.3f}" if accuracies else "",
                f"{ratio(found):.2f}x" if side == THEIRS else "",
                f"{ratio(found, attrgetter('cpu')):.2f}x" if side == THEIRS and cpu else "",
            )
    Console(width=140).print(table)


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line says."""
    made = parser(__doc__ or "")
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--turns", type=int, default=3, help="runs of each side (default 3)")
    made.add_argument("--rounds", type=int, default=20, help="rounds of MNIST (default 20)")
    made.add_argument("--data-dir", type=Path, default=DATA, help="folder of MNIST's files")
    made.add_argument(
        "--models",
        nargs="+",
        choices=("linear", "mlp", "cnn"),
        default=list(CLAIMED),
        help="models of MNIST (default cnn, which is the scenario's, and linear); mlp is shown "
        "without a claim",
    )
    made.add_argument("--only", choices=("ray", "pfl"), help="one comparison alone")
    found = made.parse_args(arguments)
    for name in ("turns", "rounds"):
        if getattr(found, name) < 1:
            made.error(f"--{name} must be 1 or more, not {getattr(found, name)}")
    if found.only != "ray" and not (found.data_dir / "mnist_writers.npz").exists():
        made.error(
            f"{found.data_dir} holds no mnist_writers.npz; name the folder with --data-dir, or "
            "take --only ray"
        )
    return found


def main() -> None:
    """Measure, print, and exit with 1 when a claim does not hold."""
    chosen = options()
    results, claims = dict[str, Turns](), list[Claim]()
    if chosen.only != "pfl":
        results[TRIVIAL] = trivial(chosen.turns)
        claims.append(
            Claim(f"{TRIVIAL} against ours", ratio(results[TRIVIAL]), "x", 30.0, "at least")
        )
    if chosen.only != "ray":
        works = {
            f"MNIST's writers, {model}, {privacy}, pfl-research": Work(
                str(chosen.data_dir), model, noise, rounds=chosen.rounds
            )
            for model in chosen.models
            for privacy, noise in NOISE.items()
        }
        results |= writers(chosen.turns, works)
        claims += [
            Claim(f"{name} against ours", ratio(results[name]), "x", 1.0, "at least")
            for name, work in works.items()
            if work.model in CLAIMED
        ]
    if not chosen.json:
        show(results)
    finish(claims, as_json=chosen.json)


if __name__ == "__main__":
    main()
