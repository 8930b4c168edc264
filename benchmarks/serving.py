"""The inference service: requests a second and latencies, beside PyTorch alone and MLServer.

A perceptron 784-256-128-10 and a small convolutional network, each in a run folder of MNIST with
an encrypted store, served by ``fedveil serve``; the same modules behind MLServer; and PyTorch alone
on batches of as many rows as there are connections, which no server can beat. Every server has one
processor and PyTorch one thread; the load comes from another processor, the same generator for all.
Everything is measured in turn, several times over; figures are medians, and ratios are medians of
the ratios of one turn.

MLServer 1.7 takes tensors over HTTP as JSON only. Fedveil is shown with JSON, byte for byte the
same, and with raw tensors, which both its protocol and NVIDIA's client use by default; the claim is
about the faster of what each server takes. MLServer is measured with and without its adaptive
batching, and the better figure of each case counts.

Swaps: rounds are committed once a second to the run that is served, by a process that otherwise
sleeps, and the service decrypts, verifies and loads each of them meanwhile.

It takes about seven minutes, two processors, and at its first time the network: MLServer gets an
environment of its own, in the user's cache.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from claims import Claim, finish, parser
from rich.console import Console
from rich.table import Table
from serving_load import Outcome
from serving_sides import Asker, Bodies, Talker, fedveil, mlserver, new_run

from fedveil.tasks.models import small_cnn, tanh_mlp

CONNECTIONS = (1, 16, 64)
CLAIMED = 16
MANY = 128
FLOOR_ROWS = (MANY, 1024)
SECONDS, WARM_UP, SWAP_SECONDS = 1.5, 0.3, 5.0

MODELS = {"mlp": "MLP 784-256-128-10", "cnn": "small CNN"}
FLOOR, JSON, RAW = "PyTorch alone", "Fedveil, JSON", "Fedveil, raw tensors"
PLAIN, BATCHING = "MLServer, JSON", "MLServer, JSON, batching"

Found = dict[tuple[str, ...], list[Outcome]]
"""What was measured, turn by turn: of a model, a side, and what it was asked."""


class Bench:
    """All servers, and the processes that measure them.

    Parameters
    ----------
    folder : Path
        For the runs, and for whatever else is needed.
    stack : ExitStack
        Ends all of them.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2:
            raise SystemExit("error: this takes two processors, and only one may be used")
        serving, loading = allowed[:2]
        os.environ["FEDVEIL_HOME"] = str(folder / "home")
        torch.manual_seed(0)
        modules = {"mlp": tanh_mlp((784, 256, 128, 10)).eval(), "cnn": small_cnn().eval()}
        self._paths = {name: folder / f"{name}.pt" for name in modules}
        for name, module in modules.items():
            torch.save(module, self._paths[name])
        bodies = Bodies(folder / "requests", MANY)
        other = stack.enter_context(mlserver(folder / "mlserver", self._paths, serving))
        self._sides: dict[tuple[str, str], Asker] = {}
        self._writers: dict[str, Talker] = {}
        for name, module in modules.items():
            run = folder / name
            new_run(run, name, module)
            ours = stack.enter_context(fedveil(run, serving))
            for side, port, model in (
                (JSON, ours, "mnist"),
                (RAW, ours, "mnist"),
                (PLAIN, other, name),
                (BATCHING, other, f"{name}-batched"),
            ):
                asker = bodies.asker(port, model, module, is_binary=side == RAW)
                self._sides[name, side] = asker
            self._writers[name] = stack.enter_context(
                Talker("serving_writer.py", loading, str(run))
            )
        self._load = stack.enter_context(Talker("serving_load.py", loading))
        self._floor = stack.enter_context(Talker("serving_floor.py", serving))

    def ask(
        self, model: str, side: str, what: str, connections: int, seconds: float = SECONDS
    ) -> Outcome:
        """Put a load on a server; `what` is "one" row a request, or "many"."""
        asker = self._sides[model, side]
        return self._load.ask(asker.load(what, connections, seconds, WARM_UP))

    def alone(self, model: str, rows: int) -> Outcome:
        """Run PyTorch alone on batches of some rows."""
        return self._floor.ask({"model": str(self._paths[model]), "rows": rows, "seconds": SECONDS})

    @contextmanager
    def swapping(self, model: str) -> Iterator[None]:
        """Commit a round a second to the run that is served."""
        writer, ending = self._writers[model], threading.Event()
        commits = 0

        def commit() -> None:
            nonlocal commits
            began = time.monotonic()
            while not ending.wait(max(0.0, began + commits - time.monotonic())):
                writer.ask_line("commit")
                commits += 1

        thread = threading.Thread(target=commit)
        thread.start()
        try:
            yield
        finally:
            ending.set()
            thread.join()
        if commits < SWAP_SECONDS - 1:
            raise RuntimeError(f"only {commits} rounds were committed in {SWAP_SECONDS:g} s")


def measure(bench: Bench, found: Found) -> None:
    """Measure everything once."""
    for model in MODELS:
        for connections in CONNECTIONS:
            for side in (JSON, RAW, PLAIN, BATCHING):
                outcome = bench.ask(model, side, "one", connections)
                found[model, side, "one", str(connections)].append(outcome)
            found[model, FLOOR, "one", str(connections)].append(bench.alone(model, connections))
        for side in (RAW, PLAIN):
            found[model, side, "many"].append(bench.ask(model, side, "many", CLAIMED))
        for rows in FLOOR_ROWS:
            found[model, FLOOR, "many", str(rows)].append(bench.alone(model, rows))
        still = bench.ask(model, RAW, "one", CLAIMED, SWAP_SECONDS)
        with bench.swapping(model):
            swapped = bench.ask(model, RAW, "one", CLAIMED, SWAP_SECONDS)
        found[model, RAW, "still"].append(still)
        found[model, RAW, "swapped"].append(swapped)


def rate(outcomes: Sequence[Outcome]) -> float:
    """Return the median of requests a second."""
    return statistics.median(outcome.rate for outcome in outcomes)


def better(found: Found, model: str, connections: int) -> list[Outcome]:
    """Return MLServer's turns with or without batching, whichever answers more."""
    sides = [found[model, side, "one", str(connections)] for side in (PLAIN, BATCHING)]
    return max(sides, key=rate)


def floor_rows(found: Found, model: str) -> list[float]:
    """Return rows a second of PyTorch alone, turn by turn, with the faster size of batches."""
    sizes = [
        [outcome.rate * rows for outcome in found[model, FLOOR, "many", str(rows)]]
        for rows in FLOOR_ROWS
    ]
    return max(sizes, key=statistics.median)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios of each turn."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def claims_of(found: Found) -> list[Claim]:
    """Return what is claimed."""
    claims = []
    for model, name in MODELS.items():
        ours = [outcome.rate for outcome in found[model, RAW, "one", str(CLAIMED)]]
        theirs = [outcome.rate for outcome in better(found, model, CLAIMED)]
        many = [outcome.rate * MANY for outcome in found[model, RAW, "many"]]
        still, swapped = ([o.p99 for o in found[model, RAW, what]] for what in ("still", "swapped"))
        claims += [
            Claim(
                f"{name}, one row a request, {CLAIMED} connections: requests a second / MLServer's",
                ratio(ours, theirs),
                "x",
                6,
                "at least",
            ),
            Claim(
                f"{name}, {MANY} rows a request: rows a second / PyTorch alone on batches",
                ratio(many, floor_rows(found, model)),
                "x",
                0.45,
                "at least",
            ),
            Claim(
                f"{name}, {CLAIMED} connections: p99 with a swap a second / without",
                ratio(swapped, still),
                "x",
                1.5,
                "at most",
            ),
        ]
    return claims


def table_of(found: Found) -> Table:
    """Return all figures."""
    table = Table("one row a request: requests a second (p50 / p99 in ms)")
    for connections in CONNECTIONS:
        table.add_column(f"{connections} connection{'s'[: connections - 1]}", justify="right")
    for model, name in MODELS.items():
        for side in (FLOOR, RAW, JSON, PLAIN, BATCHING):
            cells = []
            for connections in CONNECTIONS:
                outcomes = found[model, side, "one", str(connections)]
                rows = connections if side == FLOOR else 1
                p50, p99 = (
                    statistics.median(getattr(outcome, which) for outcome in outcomes)
                    for which in ("p50", "p99")
                )
                cells.append(f"{rate(outcomes) * rows:,.0f} ({p50:.2f} / {p99:.2f})")
            table.add_row(f"{name}: {side}", *cells)
        both = (
            ratio(
                [outcome.rate for outcome in found[model, JSON, "one", str(connections)]],
                [outcome.rate for outcome in better(found, model, connections)],
            )
            for connections in CONNECTIONS
        )
        table.add_row(f"{name}: JSON / MLServer", *(f"{value:.2f}x" for value in both))
    return table


def many_of(found: Found) -> Table:
    """Return the figures of many rows a request, and of swaps."""
    table = Table(f"{MANY} rows a request, {CLAIMED} connections", "rows a second")
    for model, name in MODELS.items():
        table.add_row(f"{name}: {FLOOR}", f"{statistics.median(floor_rows(found, model)):,.0f}")
        for side in (RAW, PLAIN):
            table.add_row(f"{name}: {side}", f"{rate(found[model, side, 'many']) * MANY:,.0f}")
    table.add_section()
    for model, name in MODELS.items():
        still, swapped = (
            statistics.median(outcome.p99 for outcome in found[model, RAW, what])
            for what in ("still", "swapped")
        )
        table.add_row(f"{name}: p99 without and with swaps", f"{still:.2f} ms, {swapped:.2f} ms")
    return table


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--turns", type=int, default=3, help="how often; default 3")
    chosen = options.parse_args()
    progress = Console(stderr=True)
    found: Found = defaultdict(list)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        progress.print("starting the servers ...")
        bench = Bench(Path(name), stack)
        for turn in range(1, chosen.turns + 1):
            progress.print(f"turn {turn} of {chosen.turns} ...")
            measure(bench, found)
    if not chosen.json:
        console = Console(width=140)
        console.print(table_of(found))
        console.print(many_of(found))
    finish(claims_of(found), as_json=chosen.json)


if __name__ == "__main__":
    main()
