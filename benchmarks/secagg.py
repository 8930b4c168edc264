"""Secure aggregation: CPU time against Flower's SecAgg+, and what masking costs beside AES.

A session is the textbook protocol, set-up included, with every client everybody's neighbour, the
same threshold, inputs and drops on both sides. Ours is measured in both forms: with a set-up for
one round (textbook), and as it runs by default, where a set-up serves ten rounds and a round bears
a tenth of it. Flower sets up for every round and knows no other form.

CPU time is `time.process_time`, threads included. "client" is the mean over the clients that stay
to the end, each as if in a process of its own; "server" is all of the server's work. Ratios come
from medians of three sessions on either side, interleaved. The small steady round is the median of
nine, the session of 1000 clients runs once; both are simulations, in which a signature that one
client has verified is not verified again. The rounds of `digits` are those of `fedveil simulate`,
with and without secure aggregation, medians of five, interleaved. All of it takes about ten minutes
on two cores.
"""

from __future__ import annotations

import json
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from claims import Claim, finish, parser
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from ledger import Ledger
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from secagg_fedveil import Parties, mean_of
from secagg_flower import CLIPPING_RANGE, QUANTIZATION_RANGE, flower_session

from fedveil.secagg.encoding import TAIL_WORDS
from fedveil.secagg.masking import Mask, apply_masks
from fedveil.secagg.parameters import plan_for

REPEATS = 3


SET_UP_ROUNDS = 10
"""Rounds of a set-up by default; see `fedveil.config.SecAggConfig`."""


@dataclass(frozen=True)
class Case:
    """A size, and by how much it is claimed that Flower's CPU time is undercut.

    `textbook_reach` is for the client of a session with a set-up of its own; None claims nothing.
    """

    clients: int
    dimension: int
    dropped: int
    client_reach: float
    textbook_reach: float | None
    server_reach: float | None

    def __str__(self) -> str:
        return f"n={self.clients}, d={self.dimension:.0e}, {self.dropped} dropped"


# The fewer the clients, the less Flower's slow secret sharing weighs, and the more does masking.
CASES = (
    Case(10, 1_000_000, 2, 8.0, None, None),
    Case(30, 100_000, 3, 10.0, 10.0, None),
    Case(50, 100_000, 5, 10.0, 10.0, 50.0),
    Case(50, 1_000_000, 5, 10.0, 10.0, 50.0),
)

Rows = list[tuple[str, str]]


def updates_of(clients: int, dimension: int) -> list[NDArray[np.float32]]:
    """Return one update a client."""
    generator = np.random.default_rng(0)
    return [
        generator.standard_normal(dimension, dtype=np.float32) * np.float32(0.1)
        for _ in range(clients)
    ]


def median(measure: Callable[[], float], repeats: int = REPEATS) -> float:
    """Return the median of some measurements."""
    return statistics.median(measure() for _ in range(repeats))


def against_flower(case: Case, rows: Rows) -> list[Claim]:
    """Run the same sessions with Fedveil and with Flower."""
    updates = updates_of(case.clients, case.dimension)
    plan = plan_for(case.clients)
    stayed = case.clients - case.dropped
    plain = mean_of(updates[case.dropped :])
    step = 2 * CLIPPING_RANGE / QUANTIZATION_RANGE
    spent: dict[str, list[float]] = {}
    excesses, tails = [], []
    for _ in range(REPEATS):
        for form, slots in (("default", SET_UP_ROUNDS), ("textbook", 1)):
            parties = Parties(updates, case.dropped, slots=slots, is_simulation=False)
            parties.set_up()
            excesses.append(parties.excess(parties.sum_up()))
            tails.append(parties.tail_bytes)
            once = dict(parties.ledger.spent)
            if slots > 1:
                # The first round opens the shares of all, so that a later one is the steady one.
                parties.sum_up(2)
            for who, share in (("client", stayed), ("server", 1)):
                steady = parties.ledger.spent[who] - once[who]
                whole = steady + (once[who] - steady) / slots
                spent.setdefault(f"{form} {who}", []).append(whole / share)
        ledger = Ledger()
        threshold = plan.threshold / plan.neighbours
        mean = flower_session(updates, case.dropped, threshold, ledger)
        if np.abs(mean - plain).max() > step:
            raise RuntimeError("Flower's mean is wrong, so its time says nothing")
        spent.setdefault("Flower's client", []).append(ledger.spent["client"] / stayed)
        spent.setdefault("Flower's server", []).append(ledger.spent["server"])
    claims = []
    for form, who, reach in (
        ("default", "client", case.client_reach),
        ("textbook", "client", case.textbook_reach),
        ("default", "server", case.server_reach),
        ("textbook", "server", case.server_reach),
    ):
        ours, theirs = (statistics.median(spent[f"{w} {who}"]) for w in (form, "Flower's"))
        ratio = theirs / ours
        figures = f"{1e3 * ours:.1f} ms, Flower's {1e3 * theirs:.1f} ms: {ratio:.1f}x"
        rows.append((f"{case}: {who}, {form}", figures))
        if reach is not None:
            what = f"{case}: CPU of {who} of Flower 1.41's SecAgg+ / of ours, {form}"
            claims.append(Claim(what, ratio, "x", reach, "at least"))
    return [
        *claims,
        Claim(f"{case}: error of the mean / bound", max(excesses), "", 1, "at most"),
        Claim(f"{case}: upload beyond 4 bytes a parameter", max(tails), "B", 1024, "at most"),
    ]


def cpu(run: Callable[[], object]) -> float:
    """Return the CPU seconds that something takes."""
    started = time.process_time()
    run()
    return time.process_time() - started


def masking(rows: Rows, dimension: int = 1_000_000) -> list[Claim]:
    """Add one mask, and encrypt as many bytes."""
    vector, tail = np.zeros(dimension, "<u4"), np.zeros(TAIL_WORDS, "<u8")
    size = vector.nbytes + tail.nbytes
    plain, sealed = bytes(size), bytearray(size + 16)

    def mask() -> None:
        apply_masks([Mask(secrets.token_bytes(32), 1)], vector, tail)

    def encrypt() -> None:
        cipher = Cipher(algorithms.AES(secrets.token_bytes(32)), modes.CTR(bytes(16)))
        cipher.encryptor().update_into(plain, sealed)

    pairs = [(cpu(mask), cpu(encrypt)) for _ in range(101)]
    ours, raw = (statistics.median(column) for column in zip(*pairs, strict=True))
    rows.append((f"one mask, d={dimension:.0e}", f"{1e3 * ours:.2f} ms, AES {1e3 * raw:.2f} ms"))
    what = f"one mask, d={dimension:.0e}: CPU / of AES-256-CTR of the same bytes in one call"
    return [Claim(what, ours / raw, "x", 2, "at most")]


def memory(dimension: int = 4_000_000) -> list[Claim]:
    """Mask one client's update, and watch the memory that it takes."""
    parties = Parties(updates_of(3, dimension))
    parties.set_up()
    opened = parties.server.open_round(1, 1, parties.server.ready, bytes(32))
    name, request = next(iter(opened.requests().items()))
    round_ = parties.begin(name, request)
    tracemalloc.start()
    result = parties.mask(name, round_)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    if len(result[1]) < 4 * dimension:
        raise RuntimeError("the masked vector is too short")
    what = f"d={dimension:.0e}: extra memory of a client's masking, its result included"
    return [Claim(what, peak / dimension, "B a parameter", 12, "at most")]


def steady(rows: Rows, clients: int = 10, dimension: int = 650, slots: int = 10) -> None:
    """Run small rounds of one set-up, as simulations do."""
    parties = Parties(updates_of(clients, dimension), slots=slots)
    parties.set_up()
    parties.sum_up(1)
    whole = median(lambda: cpu(lambda: parties.sum_up(2)), slots - 1)
    rows.append((f"steady round, n={clients}, d={dimension}, all parties", f"{1e3 * whole:.1f} ms"))


def digits(rows: Rows) -> list[Claim]:
    """Run `fedveil simulate` with and without secure aggregation.

    A round is what a user waits for: from one committed model to the next. The figure of a run is
    the median of its rounds, and a tenth of what a round takes longer in which keys are exchanged.
    The part of it in which clients train and are summed is shown beside it.
    """
    whole: dict[bool, list[float]] = {True: [], False: []}
    exchange: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(2 * REPEATS - 1):
        for enabled in whole:
            run = rounds_of_digits(enabled)
            whole[enabled].append(usual([seconds for seconds, _ in run]))
            exchange[enabled].append(usual([seconds for _, seconds in run]))
    ratios = []
    for what, found in (
        ("a round of digits, ten clients, from commit to commit", whole),
        ("of it training and summing alone", exchange),
    ):
        ours, plain = (statistics.median(found[enabled]) for enabled in (True, False))
        ratios.append(ours / plain)
        shown = f"{1e3 * ours:.0f} ms, in clear {1e3 * plain:.0f} ms: {ours / plain:.2f}x"
        rows.append((what, shown))
    what = "digits, ten clients: a round under secure aggregation / in clear"
    return [Claim(what, ratios[0], "x", 1.3, "at most")]


def usual(seconds: Sequence[float]) -> float:
    """Return what a round takes in the middle, with its share of the exchange of keys."""
    with_keys = [s for i, s in enumerate(seconds, start=2) if i % SET_UP_ROUNDS == 1]
    middle = statistics.median(s for i, s in enumerate(seconds, start=2) if i % SET_UP_ROUNDS != 1)
    return middle + (statistics.median(with_keys) - middle) / SET_UP_ROUNDS


def rounds_of_digits(enabled: bool) -> list[tuple[float, float]]:
    """Return what rounds 2 to 31 of `fedveil simulate` took: whole, and their exchange alone.

    The first round also imports PyTorch.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--rounds", "31", "--out", f"{folder}/run", "--kek", f"file:{folder}/key"]
        arguments += ["--set", f"secagg.enabled={str(enabled).lower()}"]
        fedveil = str(Path(sys.executable).parent / "fedveil")
        subprocess.run([fedveil, "simulate", *arguments], capture_output=True, check=True)
        run = Path(folder) / "run"
        lines = (run / "metrics.jsonl").read_text().splitlines()
        committed = [file.stat().st_mtime_ns for file in sorted(run.glob("model/round-*.fvlt"))]
    whole = [(after - before) / 1e9 for before, after in pairwise(committed)]
    return list(zip(whole, [json.loads(line)["seconds"] for line in lines[1:]], strict=True))


def large(rows: Rows, clients: int = 1000, dimension: int = 100_000) -> list[Claim]:
    """Run one session of many clients, of whom 5 % drop out."""
    started = time.monotonic()
    parties = Parties(updates_of(clients, dimension), clients // 20)
    parties.set_up()
    excess = parties.excess(parties.sum_up())
    plan = parties.server.plan
    what = f"n={clients}, d={dimension:.0e}, {clients // 20} dropped, ring of {plan.neighbours}"
    spent = parties.ledger.spent
    rows += [
        (f"{what}: wall time", f"{time.monotonic() - started:.1f} s"),
        (f"{what}: a client", f"{1e3 * spent['client'] / (clients - clients // 20):.1f} ms"),
        (f"{what}: server", f"{1e3 * spent['server']:.1f} ms"),
    ]
    return [Claim(f"{what}: error of the mean / bound", excess, "", 1, "at most")]


def main() -> None:
    """Measure and print."""
    options = parser(__doc__).parse_args()
    progress = Console(stderr=True)
    rows: Rows = []
    claims: list[Claim] = []
    # Unmeasured: a process that has just begun pays the system for its first memory.
    against_flower(CASES[0], [])
    for case in CASES:
        progress.print(f"{case}: {REPEATS} sessions of ours and of Flower's ...")
        claims += against_flower(case, rows)
    progress.print("masking, memory, small rounds ...")
    claims += masking(rows)
    claims += memory()
    steady(rows)
    progress.print("digits ...")
    claims += digits(rows)
    progress.print("a session of 1000 clients ...")
    claims += large(rows)
    if not options.json:
        table = Table("CPU time and bytes", "measured")
        for row in rows:
            table.add_row(*row)
        Console(width=140).print(table)
    finish(claims, as_json=options.json)


if __name__ == "__main__":
    main()
