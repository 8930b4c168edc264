"""Time and memory of a simulation against the number of clients, of parameters, and the cohort.

Each point is `simulate()` as `fedveil simulate` runs it, in a process of its own: MNIST, divided
evenly, one step of DP-SGD a client and round under secure aggregation, with policy-free ledgers,
checkpoints and report. Memory is the largest resident set of that process; Python with PyTorch,
Flower and the data in it takes the first line's. Where the clients grow, the cohort does not.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# Before torch, in this process and in those of the points.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

from claims import Claim, finish, parser
from matplotlib.figure import Figure
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fedveil.config import Config
from fedveil.server.federation import prepare
from fedveil.simulations.scenarios import find_scenario
from fedveil.simulations.simulate import simulate

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"
PICTURES = user_cache_path("fedveil-benchmarks") / "scaling"
LARGEST_GIB = 4.0
GROWTH = 1.5
"""What ten times the clients may take of memory, the cohort being the same."""


@dataclass(frozen=True)
class Point:
    """One simulation."""

    clients: int
    cohort: int
    model: str
    rounds: int = 10

    @property
    def config(self) -> Config:
        """Its settings."""
        overrides: dict[str, object] = {
            "federation.clients": self.clients,
            "federation.fraction": self.cohort / self.clients,
            "federation.rounds": self.rounds,
            "partition.scheme": "iid",
            "task.options.model": self.model,
            "training.local_steps": 1,
            "dp.noise_multiplier": 1.0,
        }
        return find_scenario("mnist").config(overrides.items())


@dataclass(frozen=True)
class Cost:
    """What a point took: seconds until the first round and a round, and the peak in MiB."""

    parameters: int
    start: float
    round: float
    peak: float


SMALL = "linear"
MANY_CLIENTS = [Point(clients, 100, SMALL) for clients in (100, 1000, 10_000)]
COHORTS = [Point(1000, cohort, SMALL) for cohort in (10, 30)]
MODELS = [Point(1000, 30, model) for model in ("cnn", "mlp")]


class Watch:
    """Notes when rounds end."""

    def __init__(self) -> None:
        self.began = 0.0
        self.ended: list[float] = []

    def started(self, *_: object) -> None:
        """Note that the clients have joined."""
        self.began = time.monotonic()

    def reply(self, round_: int, replies: int, cohort: int) -> None:
        """Say nothing."""

    def round_done(self, *_: object) -> None:
        """Note the time."""
        self.ended.append(time.monotonic())

    def warning(self, text: str) -> None:
        """Stop where a client is left out: that is another federation."""
        if "is left out" in text:
            raise RuntimeError(text)


def measure(point: Point) -> Cost:
    """Run a point in this process."""
    for name in ("flwr", "fedveil"):
        logging.getLogger(name).setLevel(logging.ERROR)
    _, task = prepare(point.config, DATA)
    parameters = sum(p.numel() for p in task.model().parameters())
    watch, before = Watch(), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FEDVEIL_HOME"] = str(Path(scratch) / "home")
        simulate(point.config, Path(scratch) / "run", watch, data_dir=DATA)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
    each = (watch.ended[-1] - watch.began) / len(watch.ended)
    return Cost(parameters, watch.began - before, each, peak)


def measure_apart(points: Sequence[Point], console: Console) -> Iterator[tuple[Point, Cost]]:
    """Run each point in a process of its own."""
    for point in track(points, "points", console=console):
        done = subprocess.run(
            [sys.executable, __file__, "--point", json.dumps(asdict(point))],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        yield point, Cost(**json.loads(done.stdout.splitlines()[-1]))


def table_of(costs: dict[Point, Cost]) -> Table:
    """Return what every point took."""
    table = Table(title="a simulation of MNIST with DP-SGD and secure aggregation, ten rounds")
    for name in ("clients", "cohort", "parameters", "start, s", "a round, s", "peak, MiB"):
        table.add_column(name, justify="right")
    for point, cost in costs.items():
        table.add_row(
            f"{point.clients:,}",
            f"{point.cohort:,}",
            f"{cost.parameters:,}",
            f"{cost.start:.1f}",
            f"{cost.round:.2f}",
            f"{cost.peak:,.0f}",
        )
    return table


def plot(costs: dict[Point, Cost]) -> Figure:
    """Return memory and time against the number of clients, the cohort being the same."""
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    memory, seconds = figure.subplots(1, 2)
    clients = [point.clients for point in MANY_CLIENTS]
    memory.plot(clients, [costs[point].peak for point in MANY_CLIENTS], "o-")
    memory.axhline(LARGEST_GIB * 1024.0, color="#888888", ls=":", label=f"{LARGEST_GIB:g} GiB")
    memory.set(xscale="log", xlabel="clients", ylabel="peak memory, MiB", ylim=(0, None))
    seconds.plot(clients, [costs[point].start for point in MANY_CLIENTS], "o-", label="start")
    seconds.plot(clients, [costs[point].round for point in MANY_CLIENTS], "s-", label="a round")
    seconds.set(xscale="log", yscale="log", xlabel="clients", ylabel="seconds")
    for axes in (memory, seconds):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return figure


def main() -> None:
    """Measure every point, and print."""
    made = parser(__doc__ or "")
    made.add_argument("--point", help="run one point in this process: JSON of its fields")
    options = made.parse_args()
    if not DATA.is_dir():
        made.error(f"{DATA} is not there")
    if options.point is not None:
        print(json.dumps(asdict(measure(Point(**json.loads(options.point))))))
        return
    costs = dict(measure_apart([*MANY_CLIENTS, *COHORTS, *MODELS], Console(stderr=True)))
    PICTURES.mkdir(parents=True, exist_ok=True)
    plot(costs).savefig(PICTURES / "scaling.svg")
    if not options.json:
        Console(width=120).print(table_of(costs))
        print(f"plot: {PICTURES / 'scaling.svg'}")
    few, many = costs[MANY_CLIENTS[1]], costs[MANY_CLIENTS[2]]
    claims = [
        Claim(
            "peak memory: 10,000 clients, cohort 100, 10 rounds",
            *(many.peak / 1024.0, "GiB", LARGEST_GIB, "at most"),
        ),
        Claim(
            "peak memory: 10,000 clients against 1,000, cohort 100",
            *(many.peak / few.peak, "x", GROWTH, "at most"),
        ),
    ]
    finish(claims, as_json=options.json)


if __name__ == "__main__":
    main()
