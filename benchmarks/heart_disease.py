"""FedAvg over the four hospitals of Fed-Heart-Disease, beside FLamby's published figures.

FLamby's figures (seeds 42 to 46) are read from its own result files; ours are over the same
number of seeds, on the same splits and features, with the settings of the built-in scenario and
without privacy, as theirs.
"""

from __future__ import annotations

import csv
import statistics
import tempfile
from pathlib import Path

import torch
from claims import Claim, finish, parser
from rich.console import Console
from rich.table import Table

from fedveil.client.evaluation import evaluate
from fedveil.config import Config
from fedveil.server.records import RoundRecord
from fedveil.simulations.scenarios import find_scenario
from fedveil.simulations.simulate import simulate
from fedveil.tasks.partition import PartitionSpec
from fedveil.tasks.registry import create_task

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "heart_disease"
HOSPITALS = ("Cleveland", "Hungarian", "Switzerland", "VA")
SEEDS = (0, 1, 2, 3, 4)
FLAMBY_MEAN_OF_FOUR, FLAMBY_POOLED = 0.685, 0.748


class Silent:
    """Watches a run without a word."""

    def started(self, config: Config, run: str, clients: int, noise: float | None) -> None:
        """Say nothing."""

    def reply(self, round_: int, replies: int, cohort: int) -> None:
        """Say nothing."""

    def round_done(self, record: RoundRecord, rounds: int) -> None:
        """Say nothing."""

    def warning(self, text: str) -> None:
        """Stop: a client left out is another federation."""
        raise RuntimeError(text)


def run(seed: int, data: Path) -> dict[str, dict[str, float]]:
    """Train once; return the metrics at each hospital and on the pooled test."""
    config = find_scenario("heart-disease").config([("dp.unit", "none"), ("seed", seed)])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        summary = simulate(config, out / "run", Silent(), data_dir=data, kek=f"file:{out / 'key'}")
        task = create_task(
            "heart-disease",
            seed=seed,
            partition=PartitionSpec("natural"),
            data_dir=data,
            options=summary.folder.config.task.options,
        )
        model = task.model()
        tensors = summary.folder.store.latest().tensors
        model.load_state_dict({name: torch.from_numpy(v) for name, v in tensors.items()})
        figures = {
            name: evaluate(model, task, task.load(index, len(HOSPITALS))[1])
            for index, name in enumerate(HOSPITALS)
        }
        pooled = task.public_test()
        assert pooled is not None  # noqa: S101  # the task has one
        return {**figures, "pooled": evaluate(model, task, pooled)}


def flamby(data: Path, method: str = "FedAvg") -> dict[str, float]:
    """Return FLamby's mean accuracy by hospital and pooled, from its result files."""
    rows: list[dict[str, str]] = []
    for path in sorted((data / "flamby_reference").glob("heart_seed*.csv")):
        with path.open(newline="") as file:
            rows += [r for r in csv.DictReader(file) if r["Method"].startswith(method)]
    sites = {name: f"client_test_{index}" for index, name in enumerate(HOSPITALS)}
    sites["pooled"] = "Pooled Test"
    return {
        name: statistics.mean(float(r["Metric"]) for r in rows if r["Test"].lower() == site.lower())
        for name, site in sites.items()
    }


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__)
    arguments.add_argument("--data-dir", type=Path, default=DATA)
    options = arguments.parse_args()
    runs = [run(seed, options.data_dir) for seed in SEEDS]
    theirs = flamby(options.data_dir)
    table = Table(title="Fed-Heart-Disease, FedAvg without privacy, means over five seeds")
    for name in ("test set", "FLamby accuracy", "accuracy", "balanced accuracy", "AUC"):
        table.add_column(name)
    means = {}
    for site in (*HOSPITALS, "pooled"):
        found = [r[site] for r in runs]
        means[site] = statistics.mean(f["accuracy"] for f in found)
        balanced = statistics.mean(f["balanced_accuracy"] for f in found)
        auc = [f["auc"] for f in found if "auc" in f]
        table.add_row(
            site,
            f"{theirs[site]:.3f}",
            f"{means[site]:.3f}",
            f"{balanced:.3f}",
            f"{statistics.mean(auc):.3f}" if auc else "one class",
        )
    four = statistics.mean(means[name] for name in HOSPITALS)
    if not options.json:
        Console(width=120).print(table)
    finish(
        [
            Claim(
                "heart-disease: mean accuracy of the four hospitals, against FLamby's FedAvg",
                *(four, "", FLAMBY_MEAN_OF_FOUR, "at least"),
            ),
            Claim(
                "heart-disease: accuracy on the pooled test, against FLamby's FedAvg",
                *(means["pooled"], "", FLAMBY_POOLED, "at least"),
            ),
        ],
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
