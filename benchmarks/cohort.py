"""The clients of a round trained in one call, beside one after another.

Three rounds of DP-SGD, noise and all:

- 256 clients share the breast tumours that come with scikit-learn, a logistic regression of 31
  parameters, four steps each;
- 256 clients share the handwritten digits that come with it, an MLP 64-32-10, four steps each;
- 32 clients with 320 records each of what has the shape of MNIST, the MLP 784-256-128-10, four
  steps of 32 records expected.

Each is trained by the cohort engine's trainer, one after another with ``training.engine =
"opacus"``, and one after another with ``training.engine = "fast"``, in turns on jobs that differ by
nothing but their fresh generators. What is measured is the training call: models, records and
settings in, trained weights out. For the tabular clients a second measure holds all that a client
does about a message besides: settings parsed, weights loaded, checks, records found, and weights
packed up again; no secure aggregation.

Times are CPU times of the whole process on one thread, which other work on the machine disturbs
least; figures are medians, and a ratio is the median of the ratios of one turn.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from claims import Claim, finish, parser
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedveil.client.app import make_client_app
from fedveil.client.credentials import credentials_of_node
from fedveil.client.trainer import Alone, TrainingJob
from fedveil.config import Config, DpConfig, TrainingConfig, parse_config
from fedveil.flower import set_identity, set_message_id
from fedveil.privacy.randomness import SecureGenerator
from fedveil.simulations.cohort.memory import Room
from fedveil.simulations.cohort.training import train_together
from fedveil.simulations.engines.answering import answer
from fedveil.simulations.engines.cohort import CohortEngine
from fedveil.tasks.base import Examples, Task
from fedveil.tasks.models import tanh_mlp
from fedveil.tasks.partition import PartitionSpec
from fedveil.tasks.registry import create_task

TURNS = 5
COHORT, OPACUS, FAST = "one cohort", "one after another, Opacus", "one after another, fast engine"
ENGINES = {COHORT: "auto", OPACUS: "opacus", FAST: "fast"}
MLP = "MLP 784-256-128-10"
TABULAR = {"breast-cancer": "logistic regression", "digits": "MLP 64-32-10"}
DP = DpConfig(noise_multiplier=1.0, clip_norm=1.0)

Times = dict[str, list[float]]


class Images(Task):
    """Records of MNIST's shape with no data behind them."""

    name = "images"
    nominal_records = 32 * 320

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._x = torch.rand(320, 1, 28, 28, generator=generator)
        self._y = torch.randint(0, 10, (320,), generator=generator)

    def model(self) -> nn.Module:
        """Return the perceptron."""
        return tanh_mlp((784, 256, 128, 10))

    def load(self, partition: int, num_partitions: int) -> tuple[Examples, Examples]:  # noqa: ARG002  # all hold the same
        """Return the same records for every client."""
        examples = Examples(self._x, self._y)
        return examples, examples

    def public_test(self) -> None:
        """Return nothing."""

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The mean cross entropy."""
        return cross_entropy

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the loss."""
        return {"loss": float(self.loss(outputs, targets))}


@dataclass(frozen=True)
class Round:
    """Clients that train at once.

    Parameters
    ----------
    task : Task
        What they train.
    clients : int
        How many there are.
    sampling_rate : float
        Expected share of a client's records in a batch.
    """

    task: Task
    clients: int
    sampling_rate: float

    def jobs(self, engine: str) -> list[TrainingJob]:
        """Return the clients' jobs, with fresh generators."""
        training = TrainingConfig.model_validate(
            {
                "sampling_rate": self.sampling_rate,
                "local_steps": 4,
                "learning_rate": 0.5,
                "nominal_records": round(self.task.nominal_records / self.clients),
                "engine": engine,
            }
        )
        model = self.task.model()
        return [
            TrainingJob(
                copy.deepcopy(model),
                self.task,
                self.task.load(client, self.clients)[0],
                training,
                DP,
                SecureGenerator(),
            )
            for client in range(self.clients)
        ]


def rounds() -> dict[str, Round]:
    """Return what is measured."""
    partition = PartitionSpec(scheme="iid")
    tabular = {
        f"{name}, {model}": Round(create_task(name, seed=0, partition=partition), 256, 0.5)
        for name, model in TABULAR.items()
    }
    return {**tabular, MLP: Round(Images(), 32, 0.1)}


def trained(side: str, jobs: list[TrainingJob]) -> None:
    """Train jobs, together in as many at once as the engine takes, or one after another."""
    if side != COHORT:
        for job in jobs:
            Alone().train(job)
        return
    waiting, room = list[TrainingJob](), Room()
    for job in jobs:
        waiting.append(job)
        room.take(job)
        if room.is_full:
            check(train_together(waiting))
            waiting, room = [], Room()
    if waiting:
        check(train_together(waiting))


def check(outcomes: list[object]) -> None:
    """Raise what a job came to grief with."""
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


def measure(one: Round) -> Times:
    """Return CPU milliseconds of the training call, of every side in every turn."""
    found: Times = defaultdict(list)
    for turn in range(TURNS + 1):
        for side, engine in ENGINES.items():
            jobs = one.jobs(engine)
            began = time.process_time()
            trained(side, jobs)
            if turn:
                found[side].append(1e3 * (time.process_time() - began))
    return found


def measure_with_handlers(name: str, one: Round) -> Times:
    """Return CPU milliseconds of whole messages to train, of every side in every turn."""
    app = make_client_app(credentials_of_node, lambda _: False, lambda _: None)
    found: Times = defaultdict(list)
    set_identity(1, 1)
    for turn in range(TURNS + 1):
        for side, engine in ENGINES.items():
            config = settings(name, one, engine)
            work = list(messages(config, one, turn))
            began = time.process_time()
            if side == COHORT:
                replies = list(CohortEngine(app).run(work))
            else:
                replies = [answer(app, *each) for each in work]
            spent = time.process_time() - began
            for reply in replies:
                if reply.has_error():
                    raise RuntimeError(reply.error.reason)
            if turn:
                found[side].append(1e3 * spent)
    return found


def settings(name: str, one: Round, engine: str) -> Config:
    """Return a run's settings, as a server sends them."""
    return parse_config(
        {
            "task": {"name": name},
            "seed": 0,
            "partition": {"scheme": "iid"},
            "federation": {"clients": one.clients},
            "training": one.jobs(engine)[0].training.model_dump(exclude_none=True),
            "dp": {"noise_multiplier": 1.0, "clip_norm": 1.0, "delta": 1e-5},
            "secagg": {"enabled": False},
        },
        "benchmark",
    )


def messages(config: Config, one: Round, turn: int) -> Iterator[tuple[Message, Context]]:
    """Yield a round's messages to train, with the nodes' contexts."""
    arrays = ArrayRecord(one.task.model().state_dict())
    request = ConfigRecord({"config": config.model_dump_json(), "round": turn + 1, "attempt": 1})
    for client in range(one.clients):
        node = 2 + client
        message = Message(RecordDict({"arrays": arrays, "config": request}), node, "train")
        set_message_id(message, f"{turn:08x}{node:08x}")
        place = {"partition-id": client, "num-partitions": one.clients}
        yield message, Context(1, node, dict(place), RecordDict(), {})


def ratio(found: Times, above: str) -> float:
    """Return the median of the ratios of one turn, a side against the cohort."""
    return statistics.median(a / b for a, b in zip(found[above], found[COHORT], strict=True))


def show(title: str, results: dict[str, Times]) -> None:
    """Print all times."""
    table = Table(title=title)
    for name in ("", *results):
        table.add_column(name, justify="right" if name else "left")
    for side in ENGINES:
        cells = [
            f"{statistics.median(f[side]):,.0f} ({ratio(f, side):.1f}x)" for f in results.values()
        ]
        table.add_row(side, *cells)
    Console(width=140).print(table)


def main() -> None:
    """Measure, print, and exit with 1 when a claim does not hold."""
    arguments = parser(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    made = rounds()
    calls = {name: measure(one) for name, one in made.items()}
    whole = {
        name: measure_with_handlers(name.split(",")[0], one)
        for name, one in made.items()
        if name != MLP
    }
    tabular = next(iter(made))
    claims = [
        Claim(
            f"256 clients in one cohort against one after another with Opacus, {tabular}",
            ratio(calls[tabular], OPACUS),
            "x",
            20.0,
            "at least",
        ),
        Claim(
            f"32 clients at B=32 in cohorts against one after another with Opacus, {MLP}",
            ratio(calls[MLP], OPACUS),
            "x",
            3.0,
            "at least",
        ),
    ]
    if not arguments.json:
        show("CPU milliseconds of a round's training calls, one thread", calls)
        show("CPU milliseconds of a round's messages, handlers and all", whole)
    finish(claims, as_json=arguments.json)


if __name__ == "__main__":
    main()
