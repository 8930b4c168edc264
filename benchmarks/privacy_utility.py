"""Accuracy against epsilon in every privacy mode, beside DP-SGD on all the data in one place.

Each cell is one training run of the real apps (`fedveil simulate`), with noise calibrated to the
epsilon; twenty clients hold digits or MNIST, far from evenly, and four hospitals heart-disease.
The baseline is DP-SGD by the same code (Opacus, Poisson batches, PLD accounting) on the training
records of all clients together, with the sampling rate, steps and learning rate of the mode
record/distributed. Its trusted party is what that mode does without.

Finished cells are kept in a folder, by the hash of their resolved settings: stop it, and it goes on
from there; empty the folder when the code has changed. On MNIST the model is the linear one, and
there are 60 steps, so that the whole takes about an hour on two cores. Digits and heart-disease
have few records, so that chance moves their accuracy by more than a point from seed to seed: there
the two rows that are compared are trained on more seeds than the rest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

# Before torch: a process a cell, and each on one core.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import torch
from claims import Claim, finish, parser
from matplotlib.figure import Figure
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import nn

from fedveil.client.dp_training import train_private
from fedveil.client.evaluation import evaluate
from fedveil.client.local_training import torch_seeded, train_plain
from fedveil.config import Config
from fedveil.privacy.accounting import Release, pld_epsilon
from fedveil.privacy.calibration import calibrate_noise_multiplier
from fedveil.privacy.randomness import SecureGenerator
from fedveil.server.federation import prepare
from fedveil.server.records import RoundRecord
from fedveil.simulations.scenarios import find_scenario
from fedveil.simulations.simulate import simulate
from fedveil.tasks.base import Examples, Task

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
EPSILONS = (1.0, 3.0, 8.0)
POOLED, CLEAR, POOLED_CLEAR = "pooled", "none", "pooled, no privacy"
SHARED = "record/distributed"
MODES = ("record/local", SHARED, "client/distributed", "client/central")
NAMES = {POOLED: "DP-SGD, data in one place", CLEAR: "FedAvg, no privacy"}
CACHE = user_cache_path("fedveil-benchmarks") / "privacy-utility"
POINTS = 1.5
"""What record/distributed may lose against the pooled data, in points of accuracy."""


@dataclass(frozen=True)
class Bench:
    """A task, and the settings of each mode: overrides of the built-in scenario.

    Parameters
    ----------
    about : str
        What it is.
    folder : str
        Of its data, below the data directory; empty where they are bundled.
    every : Mapping of str to object
        In every mode.
    modes : Mapping of str to Mapping
        In one mode.
    compared : int
        Least number of seeds of the two rows of which one may not stay behind the other.
    """

    about: str
    folder: str
    every: Mapping[str, object]
    modes: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    compared: int = 0

    def seeds(self, mode: str, seeds: int) -> int:
        """Return how many seeds a mode is trained on, of `seeds` asked for."""
        return max(seeds, self.compared) if mode in (POOLED, SHARED) else seeds


# Two of the twenty may drop out of a sum; with the six that may collude that leaves twelve shares.
TWENTY = {"federation.clients": 20, "secagg.setup_rounds": 30}
WHOLE = {"dp.min_survivors": 18}
# Few records feel the noise more: here all must stay, and it is the shares of fourteen.
ALL = {"dp.min_survivors": 20}
CLIENTS = {
    "federation.rounds": 5,
    "training.local_steps": 10,
    "dp.clip_norm": 1.0,
}
BENCHES = {
    "digits": Bench(
        "handwritten digits, 20 clients, Dirichlet 0.5, linear model",
        "",
        TWENTY,
        {
            "record/local": {"training.sampling_rate": 0.5},
            "record/distributed": {
                **ALL,
                "federation.rounds": 60,
                "training.sampling_rate": 0.5,
                "training.learning_rate": 1.5,
            },
            "client/distributed": {**CLIENTS, **WHOLE, "training.learning_rate": 0.5},
            "client/central": {**CLIENTS, "training.learning_rate": 0.5},
        },
        compared=30,
    ),
    "heart-disease": Bench(
        "heart disease, four hospitals, logistic regression",
        "heart_disease",
        {},
        {
            "record/distributed": {
                "federation.rounds": 40,
                "training.sampling_rate": 0.25,
                "training.learning_rate": 1.0,
            },
        },
        compared=20,
    ),
    "mnist": Bench(
        "MNIST, 20 clients, Dirichlet 0.5, linear model",
        "mnist",
        {**TWENTY, "task.options.model": "linear"},
        {
            "record/local": {
                "federation.rounds": 6,
                "training.local_steps": 10,
                "training.sampling_rate": 0.01,
                "training.learning_rate": 4.0,
            },
            "record/distributed": {
                **WHOLE,
                "federation.rounds": 60,
                "training.local_steps": 1,
                "training.sampling_rate": 0.01,
                "training.learning_rate": 8.0,
            },
            "client/distributed": {
                **CLIENTS,
                **WHOLE,
                "training.sampling_rate": 0.02,
                "training.learning_rate": 0.5,
            },
            "client/central": {
                **CLIENTS,
                "training.sampling_rate": 0.02,
                "training.learning_rate": 0.5,
            },
        },
    ),
}


@dataclass(frozen=True)
class Cell:
    """One training run: `epsilon` is None without privacy."""

    task: str
    mode: str
    epsilon: float | None
    seed: int

    @cached_property
    def config(self) -> Config:
        """The settings, resolved; of the baseline those of record/distributed."""
        bench = BENCHES[self.task]
        like = {POOLED: SHARED, POOLED_CLEAR: SHARED}
        mode = like.get(self.mode, "record/local" if self.mode == CLEAR else self.mode)
        overrides = {**bench.every, **bench.modes.get(mode, {}), "seed": self.seed}
        if self.epsilon is not None:
            overrides["dp.target_epsilon"] = self.epsilon
        if self.mode == CLEAR:
            # The rounds and rates of record/local, and nothing of privacy.
            overrides["dp.unit"] = "none"
        return find_scenario(self.task).config(overrides.items(), mode if mode != CLEAR else None)

    @property
    def key(self) -> str:
        """What the cell is kept by."""
        told = json.dumps([self.mode, self.config.to_toml(), self.epsilon])
        return hashlib.sha256(told.encode()).hexdigest()


class Silent:
    """Watches a run without a word."""

    def started(self, config: Config, run: str, clients: int, noise: float | None) -> None:
        """Say nothing."""

    def reply(self, round_: int, replies: int, cohort: int) -> None:
        """Say nothing."""

    def round_done(self, record: RoundRecord, rounds: int) -> None:
        """Say nothing."""

    def warning(self, text: str) -> None:
        """Stop where a client is left out: that is another federation."""
        if "is left out" in text:
            raise RuntimeError(text)


Figures = dict[str, float | None]


def measure(cell: Cell, data: Path) -> Figures:
    """Train once, in a folder and with keys that are removed afterwards."""
    torch.set_num_threads(1)
    for name in ("flwr", "fedveil"):
        logging.getLogger(name).setLevel(logging.ERROR)
    folder = BENCHES[cell.task].folder
    own = data / folder if folder else None
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FEDVEIL_HOME"] = str(Path(scratch) / "home")
        if cell.mode in (POOLED, POOLED_CLEAR):
            return _train_pooled(cell, own)
        out = Path(scratch) / "run"
        summary = simulate(cell.config, out, Silent(), data_dir=own)
        _, task = prepare(cell.config, own)
        model = task.model()
        tensors = summary.folder.store.latest().tensors
        model.load_state_dict({name: torch.from_numpy(v) for name, v in tensors.items()})
        return _figures(cell, task, model, summary.report.epsilon)


def _train_pooled(cell: Cell, data: Path | None) -> Figures:
    """Train on the training records of all clients, with the steps of record/distributed."""
    config, task = prepare(cell.config, data)
    clients = config.federation.clients
    parts = [task.load(client, clients)[0] for client in range(clients)]
    pooled = Examples(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]))
    steps, rate, delta = (
        config.federation.rounds,
        config.training.sampling_rate,
        config.dp.delta,
    )
    nominal = (config.training.nominal_records or 1) * clients
    training = config.training.model_copy(update={"local_steps": steps, "nominal_records": nominal})
    torch.manual_seed(cell.seed)
    model = task.model()
    epsilon = None
    generator = SecureGenerator()
    with torch_seeded(generator):
        if cell.epsilon is None:
            train_plain(model, task, pooled, training, generator, 0.0)
        else:
            noise = calibrate_noise_multiplier(cell.epsilon, delta, sampling_rate=rate, count=steps)
            epsilon = pld_epsilon([Release(rate, noise, steps)], delta)
            dp = config.dp.model_copy(update={"noise_multiplier": noise, "target_epsilon": None})
            train_private(model, task, pooled, training, dp, generator)
    return _figures(cell, task, model, epsilon)


def _figures(cell: Cell, task: Task, model: nn.Module, epsilon: float | None) -> Figures:
    test = task.public_test()
    assert test is not None  # noqa: S101  # each of the tasks has one
    found: Figures = {"accuracy": evaluate(model, task, test)["accuracy"], "epsilon": epsilon}
    if cell.task == "heart-disease":
        sites = range(cell.config.federation.clients)
        each = [evaluate(model, task, task.load(site, len(sites))[1])["accuracy"] for site in sites]
        found["mean_of_four"] = statistics.mean(each)
    return found


class Cache:
    """Figures of finished cells, one file each."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def get(self, cell: Cell) -> Figures | None:
        """Return what was measured, if it was."""
        try:
            kept: Figures = json.loads(self._path(cell).read_text())["figures"]
        except (FileNotFoundError, ValueError, KeyError):
            return None
        return kept

    def put(self, cell: Cell, figures: Figures) -> None:
        """Keep what was measured; a crash leaves it whole or not there."""
        path = self._path(cell)
        told = {
            "task": cell.task,
            "mode": cell.mode,
            "target": cell.epsilon,
            "seed": cell.seed,
            "figures": figures,
        }
        half = path.with_suffix(".part")
        half.write_text(json.dumps(told, indent=2) + "\n")
        half.replace(path)

    def _path(self, cell: Cell) -> Path:
        return self._folder / f"{cell.key}.json"


def cells_of(tasks: Sequence[str], seeds: int, epsilons: Sequence[float]) -> list[Cell]:
    """Return every cell, the dearest tasks last."""
    made = []
    for task in tasks:
        kinds: list[tuple[str, float | None]] = [(CLEAR, None), (POOLED_CLEAR, None)]
        kinds += [(mode, epsilon) for epsilon in epsilons for mode in (POOLED, *MODES)]
        made += [
            Cell(task, mode, epsilon, seed)
            for mode, epsilon in kinds
            for seed in range(BENCHES[task].seeds(mode, seeds))
        ]
    return made


def fill(cells: Sequence[Cell], cache: Cache, data: Path, jobs: int, console: Console) -> None:
    """Measure what is not kept yet, some cells at once."""
    left = [cell for cell in cells if cache.get(cell) is None]
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar, ProcessPoolExecutor(jobs) as pool:
        row = bar.add_task("runs", total=len(cells), completed=len(cells) - len(left))
        waiting: dict[Future[Figures], Cell] = {
            pool.submit(measure, cell, data): cell for cell in left
        }
        try:
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    cell = waiting.pop(future)
                    cache.put(cell, future.result())
                    bar.update(row, advance=1, description=f"{cell.task}, {cell.mode}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@dataclass(frozen=True)
class Summary:
    """Accuracies of one kind over the seeds, in percent, and the largest epsilon reached."""

    mean: float
    deviation: float
    epsilon: float | None
    mean_of_four: float | None


def summarise(cache: Cache, task: str, mode: str, epsilon: float | None, seeds: int) -> Summary:
    """Return what the seeds of one kind came to."""
    wanted = range(BENCHES[task].seeds(mode, seeds))
    found = [cache.get(Cell(task, mode, epsilon, seed)) for seed in wanted]
    figures = [one for one in found if one is not None]
    accuracies = [100.0 * (one["accuracy"] or 0.0) for one in figures]
    reached = [e for one in figures if (e := one["epsilon"]) is not None]
    four = [100.0 * f for one in figures if (f := one.get("mean_of_four")) is not None]
    return Summary(
        statistics.mean(accuracies),
        statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        max(reached, default=None),
        statistics.mean(four) if four else None,
    )


def table_of(cache: Cache, task: str, seeds: int, epsilons: Sequence[float]) -> Table:
    """Return a task's accuracies: a row a mode, a column an epsilon."""
    table = Table(
        title=f"{BENCHES[task].about}; accuracy in %, mean and deviation of {seeds} seeds"
    )
    table.add_column("mode")
    for epsilon in epsilons:
        table.add_column(f"epsilon {epsilon:g}", justify="right")

    def shown(mode: str, epsilon: float | None) -> str:
        found = summarise(cache, task, mode, epsilon, seeds)
        four = "" if found.mean_of_four is None else f" ({found.mean_of_four:.1f})"
        return f"{found.mean:.1f} ± {found.deviation:.1f}{four}"

    for mode in (POOLED, *MODES):
        name, trained = NAMES.get(mode, mode), BENCHES[task].seeds(mode, seeds)
        name += f" ({trained} seeds)" if trained != seeds else ""
        table.add_row(name, *(shown(mode, epsilon) for epsilon in epsilons))
    for mode, name in ((POOLED_CLEAR, "data in one place, no privacy"), (CLEAR, NAMES[CLEAR])):
        table.add_row(name, shown(mode, None))
    if task == "heart-disease":
        table.caption = "pooled test; in brackets the mean of the four hospitals' own accuracies"
    return table


def flamby_table(data: Path) -> Table:
    """Return FLamby's published DP figures with the epsilon that their code really has.

    Its noise is calibrated for 15 epochs, and 15 rounds of 100 steps are taken; Poisson sampling
    is assumed for what a shuffled loader draws. The true epsilon, granting it the sampling, is the
    PLD epsilon of 1,500 steps with that noise, by hospital.
    """
    import csv

    from opacus.accountants.utils import get_noise_multiplier

    delta, records = 1e-3, (199, 172, 30, 85)
    path = data / "heart_disease" / "flamby_reference" / "dp_example_results_fed_heart_disease.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    table = Table(title=f"FLamby's FedAvg with DP-SGD, as published, delta = {delta:g}")
    for name in ("epsilon, claimed", "really, by hospital", "mean of four hospitals"):
        table.add_column(name, justify="right")
    for claimed in (1.0, 5.0, 10.0):
        true = []
        for n in records:
            rate = 1.0 / -(-n // 4)
            with warnings.catch_warnings(action="ignore"):
                noise = get_noise_multiplier(
                    target_epsilon=claimed,
                    target_delta=delta,
                    sample_rate=rate,
                    epochs=15,
                    accountant="prv",
                )
            true.append(pld_epsilon([Release(rate, noise, 1500)], delta))
        published = [
            100.0 * float(row["perf"])
            for row in rows
            if row["e"] and float(row["e"]) == claimed and float(row["d"]) == delta
        ]
        table.add_row(
            f"{claimed:g}",
            " / ".join(f"{epsilon:.2f}" for epsilon in true),
            f"{statistics.mean(published):.1f} ± {statistics.stdev(published):.1f}",
        )
    return table


def plot(cache: Cache, tasks: Sequence[str], seeds: int, epsilons: Sequence[float]) -> Figure:
    """Return accuracy against epsilon, a panel a task."""
    figure = Figure(figsize=(4.6 * len(tasks), 3.8), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        for mode in (POOLED, *MODES):
            found = [summarise(cache, task, mode, epsilon, seeds) for epsilon in epsilons]
            axes.errorbar(
                epsilons,
                [one.mean for one in found],
                [one.deviation for one in found],
                marker="o",
                ms=3,
                capsize=2,
                ls="--" if mode == POOLED else "-",
                color="black" if mode == POOLED else None,
                label=NAMES.get(mode, mode),
            )
        clear = summarise(cache, task, CLEAR, None, seeds).mean
        axes.axhline(clear, color="#888888", ls=":", label=NAMES[CLEAR])
        axes.set_xscale("log")
        axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
        axes.minorticks_off()
        axes.set(xlabel="epsilon", ylabel="accuracy, %", title=task)
        axes.grid(alpha=0.25)
    panels[-1].legend(fontsize=7, loc="lower right")
    return figure


def claims_of(
    cache: Cache, tasks: Sequence[str], seeds: int, epsilons: Sequence[float]
) -> Iterator[Claim]:
    """Yield what is claimed: noise in shares costs little, and no epsilon is passed."""
    for task in tasks:
        for epsilon in epsilons:
            pooled = summarise(cache, task, POOLED, epsilon, seeds)
            shared = summarise(cache, task, SHARED, epsilon, seeds)
            room = max(POINTS, pooled.deviation, shared.deviation)
            yield Claim(
                f"{task}, epsilon {epsilon:g}: record/distributed behind DP-SGD on pooled data",
                *(pooled.mean - shared.mean, "points", round(room, 2), "at most"),
            )
        for epsilon in epsilons:
            reached = [
                summarise(cache, task, mode, epsilon, seeds).epsilon or 0.0
                for mode in (POOLED, *MODES)
            ]
            yield Claim(
                f"{task}: epsilon reached in any mode, calibrated to {epsilon:g}",
                *(max(reached), "", epsilon, "at most"),
            )


def main() -> None:
    """Measure what is missing, and print."""
    made = parser(__doc__ or "")
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--cache", type=Path, default=CACHE, help="folder of finished runs")
    made.add_argument("--data-dir", type=Path, default=DATA, help="folder of the data sets")
    made.add_argument(
        "--task", choices=BENCHES, action="append", help="one task; may be repeated; all by default"
    )
    made.add_argument("--seeds", type=int, default=5, help="seeds of each cell, at least 2")
    made.add_argument(
        "--epsilons", type=float, nargs="+", default=list(EPSILONS), help="which epsilons"
    )
    made.add_argument("--jobs", type=int, default=2, help="runs at once, each on one core")
    options = made.parse_args()
    if options.seeds < 2 or options.jobs < 1:
        made.error("--seeds must be at least 2 and --jobs at least 1")
    if any(not 0.0 < epsilon <= 100.0 for epsilon in options.epsilons):
        made.error("--epsilons must lie above 0 and be at most 100")
    tasks, epsilons = options.task or list(BENCHES), sorted(set(options.epsilons))
    for task in tasks:
        folder = options.data_dir / BENCHES[task].folder
        if not folder.is_dir():
            made.error(f"{folder} is not there; name the folder of the data sets with --data-dir")
    console, cache = Console(stderr=True), Cache(options.cache)
    try:
        fill(
            cells_of(tasks, options.seeds, epsilons), cache, options.data_dir, options.jobs, console
        )
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on with what is missing")
        sys.exit(130)
    figure = plot(cache, tasks, options.seeds, epsilons)
    for kind in ("png", "svg"):
        figure.savefig(options.cache / f"privacy_utility.{kind}", dpi=150)
    if not options.json:
        wide = Console(width=120)
        for task in tasks:
            wide.print(table_of(cache, task, options.seeds, epsilons))
        if "heart-disease" in tasks:
            wide.print(flamby_table(options.data_dir))
        wide.print(f"plot: {options.cache / 'privacy_utility.png'} and .svg")
    finish(list(claims_of(cache, tasks, options.seeds, epsilons)), as_json=options.json)


if __name__ == "__main__":
    main()
