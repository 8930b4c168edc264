"""Encryption at rest: what it costs to save, load and exchange keys.

100 MiB in 32 tensors, on one processor and on two, with one thread for each. Every figure is the
median of nine, in turn with all others in one process. Saves go to a new file each, and are
durable: temporary file, fsync, rename, fsync of the folder. safetensors' own save is not; it is
made so here for a fair ratio and shown as it is, too. Loads go into the parameters of a PyTorch
model, and check that they arrive there. Both come for a signed and for an unsigned store: signing
takes a SHA-256 of the whole stream, which costs more than everything else together. So encryption
is compared like with like: an unsigned store with plain files, and a signed store, which is the
default, with plain files that are hashed and signed in the same way. What signing and encryption
cost together, against files that are neither, is shown as well.

safetensors has two loaders. The one for numpy reads the file, as every loader of an encrypted
file must. The one for PyTorch maps it: where the file is still in the memory of the operating
system, loading is no more than one copy. No decryption comes near that, since all of it must be
verified before any of it is copied; that ratio is shown, and nothing is claimed about it. Where the
file has to come from the disk ("cold"), PyTorch's loader is the one to compare with.

Bytes written in an exchange of keys are all that the process hands to the operating system.

It takes about a minute and half a gigabyte of disk, and needs Linux.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from claims import Claim, finish, parser
from rich.console import Console
from rich.table import Table

from fedveil.vault.kek.key_file import KeyFileKek
from fedveil.vault.keyfile import Key
from fedveil.vault.signing import SigningKey
from fedveil.vault.store import ModelStore

MODELS = 100

REACH = {1: (1.25, 1.5), 2: (1.15, 1.1)}
"""What a save and a load may cost at most, by the number of processors."""

Medians = dict[str, float]


def times_on(processors: int) -> Medians:
    """Return the milliseconds of everything that `vault_times.py` measures."""
    allowed = os.sched_getaffinity(0)
    script = str(Path(__file__).with_name("vault_times.py"))
    os.sched_setaffinity(0, sorted(allowed)[:processors])
    try:
        done = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, check=True)
    finally:
        os.sched_setaffinity(0, allowed)
    medians: Medians = json.loads(done.stdout)
    return medians


def claims_of(processors: int, medians: Medians) -> list[Claim]:
    """Return what is claimed about saving and loading."""
    on = "one thread" if processors == 1 else f"{processors} threads"
    save, load = REACH[processors]
    pairs = [
        ("save, unsigned store", "save, safetensors, durable", save),
        ("save, signed store", "save, safetensors, durable, signed", save),
        ("load, unsigned store", "load, safetensors.numpy", load),
        ("load, signed store", "load, safetensors.numpy", load),
        ("load, unsigned store, cold", "load, safetensors.torch, cold", load),
    ]
    return [
        Claim(f"{ours} / {plain}; {on}", medians[ours] / medians[plain], "x", reach, "at most")
        for ours, plain, reach in pairs
    ]


def written() -> int:
    """Return how many bytes this process has given to the operating system to write."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


def rotation() -> list[Claim]:
    """Exchange the keys of a store of many models, and count every byte that is written."""
    old, new = (KeyFileKek(Key(secrets.token_bytes(32))) for _ in range(2))
    weights = {"weight": np.ones((256, 256), np.float32)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        signing_key = SigningKey(secrets.token_bytes(32))
        with ModelStore.create(folder, old, "run", marks=None, signing_key=signing_key) as store:
            for round_ in range(MODELS):
                store.save(round_, weights, {}, None)
            started = written()
            store.rotate_model_key()
            model_key = written() - started
            started = written()
            store.replace_kek(new)
            kek = written() - started
        with ModelStore(folder, new, marks=None, signing_key=signing_key) as store:
            problems = [check.problem for check in store.verify() if check.problem]
    if problems:
        raise RuntimeError(f"the rotation broke the store, so its cost says nothing: {problems[0]}")
    what = f"store of {MODELS} models, bytes written a model"
    return [
        Claim(f"{what}: exchange of the model key", model_key / MODELS, "B", 1024, "at most"),
        Claim(f"{what}: exchange of the key-encryption key", kek / MODELS, "B", 1024, "at most"),
    ]


def table_of(found: dict[int, Medians]) -> Table:
    """Return all times, and their ratios to the plain saves and loads."""
    table = Table("100 MiB in 32 tensors")
    for processors in found:
        table.add_column(f"{processors} thread{'s'[: processors - 1]}", justify="right")
    first = next(iter(found.values()))
    for name in first:
        table.add_row(name, *(f"{medians[name]:.1f} ms" for medians in found.values()))
    signed = ("save, signed store", "save, safetensors, durable, signed")
    for kind in ("unsigned", "signed"):
        for ours, plain in (
            *((signed,) if kind == "signed" else ()),
            (f"save, {kind} store", "save, safetensors, durable"),
            (f"save, {kind} store", "save, safetensors, not durable"),
            (f"load, {kind} store", "load, safetensors.numpy"),
            (f"load, {kind} store", "load, safetensors.torch"),
            (f"load, {kind} store, cold", "load, safetensors.torch, cold"),
        ):
            ratios = (f"{medians[ours] / medians[plain]:.2f}x" for medians in found.values())
            table.add_row(f"{ours} / {plain.split(', ', 1)[1]}", *ratios)
    return table


def main() -> None:
    """Measure and print."""
    options = parser(__doc__).parse_args()
    progress = Console(stderr=True)
    found: dict[int, Medians] = {}
    for processors in REACH:
        if processors <= len(os.sched_getaffinity(0)):
            progress.print(f"saving and loading on {processors} ...")
            found[processors] = times_on(processors)
    progress.print(f"exchanging the keys of {MODELS} models ...")
    claims = [claim for n, medians in found.items() for claim in claims_of(n, medians)]
    claims += rotation()
    if not options.json:
        Console(width=140).print(table_of(found))
    finish(claims, as_json=options.json)


if __name__ == "__main__":
    main()
