"""Times of saving and loading 100 MiB, for `vault.py`: one JSON object on standard output.

It uses as many threads as it may use processors, as the vault and PyTorch do by themselves.
"""

from __future__ import annotations

import json
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from fedveil.vault.buffers import SEGMENT_BYTES, Shadow, buffer_reader
from fedveil.vault.files import file_reader, sync_folder
from fedveil.vault.hashlist import stream_digest
from fedveil.vault.kek.key_file import KeyFileKek
from fedveil.vault.keyfile import Key
from fedveil.vault.parallel import usable_threads
from fedveil.vault.signing import SigningKey
from fedveil.vault.store import ModelStore

REPEATS = 9

Times = dict[str, list[float]]


@contextmanager
def timed(times: Times, name: str) -> Iterator[None]:
    """Put down how many milliseconds something takes."""
    started = time.perf_counter()
    yield
    times.setdefault(name, []).append(1e3 * (time.perf_counter() - started))


class Model:
    """The tensors to save, and the parameters to load into."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.saved = {
            f"layer{i}.weight": torch.randn(800, 1024, generator=generator) for i in range(32)
        }
        self.live = {
            name: torch.nn.Parameter(torch.zeros_like(tensor))
            for name, tensor in self.saved.items()
        }

    def saved_arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return views of what is saved."""
        return {name: tensor.numpy() for name, tensor in self.saved.items()}

    def live_arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return views of the parameters."""
        return {name: parameter.detach().numpy() for name, parameter in self.live.items()}

    def put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy tensors into the parameters."""
        with torch.no_grad():
            for name, tensor in tensors.items():
                self.live[name].copy_(tensor)

    def check(self) -> None:
        """Make sure that the parameters are what was saved; then spoil them."""
        with torch.no_grad():
            for name, tensor in self.saved.items():
                if not torch.equal(self.live[name], tensor):
                    raise RuntimeError(f"{name} was not loaded, so the time says nothing")
                self.live[name].zero_()


def save_durably(model: Model, path: Path, signing_key: SigningKey | None = None) -> None:
    """Save with safetensors in the way that the store saves: so that a crash cannot undo it.

    With a key, the file is signed as the store signs: over the same hash list, on as many threads.
    """
    temporary = path.with_suffix(".tmp")
    safetensors.torch.save_file(model.saved, temporary)
    descriptor = os.open(temporary, os.O_RDONLY)
    if signing_key is not None:
        read, size = file_reader(descriptor), os.fstat(descriptor).st_size
        digest = stream_digest(read, 0, size, threads=usable_threads())
        path.with_suffix(".sig").write_bytes(signing_key.sign(b"", digest))
    os.fsync(descriptor)
    os.close(descriptor)
    temporary.rename(path)
    sync_folder(path.parent)


def forget(path: Path) -> None:
    """Take a file that is on the disk out of the memory of the operating system."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def saves(
    times: Times,
    model: Model,
    folder: Path,
    stores: Mapping[str, ModelStore],
    signing_key: SigningKey,
    n: int,
) -> None:
    """Save once in every way, each time under a name that is free."""
    plain = folder / "plain.safetensors"
    plain.unlink(missing_ok=True)
    with timed(times, "save, safetensors, not durable"):
        safetensors.torch.save_file(model.saved, plain)
    plain.unlink()
    with timed(times, "save, safetensors, durable"):
        save_durably(model, plain)
    with timed(times, "save, safetensors, durable, signed"):
        save_durably(model, plain, signing_key)
    for name, store in stores.items():
        with timed(times, f"save, {name} store"):
            store.save(n, model.saved_arrays(), {}, None)
        store.gc(keep_last=1)


def loads(
    times: Times,
    model: Model,
    folder: Path,
    stores: Mapping[str, ModelStore],
    shadow: Shadow,
    n: int,
) -> None:
    """Load once in every way."""
    plain = folder / "plain.safetensors"

    def torch_loader() -> None:
        model.put(safetensors.torch.load_file(plain))

    def numpy_loader() -> None:
        found = safetensors.numpy.load_file(plain)
        model.put({name: torch.from_numpy(array) for name, array in found.items()})

    ways: list[tuple[str, Path, Callable[[], object]]] = [
        ("safetensors.torch", plain, torch_loader),
        ("safetensors.numpy", plain, numpy_loader),
    ]
    for name, store in stores.items():
        # Bound here, so that every way has its own.
        def load_into(store: ModelStore = store) -> None:
            store.load_into(n, model.live_arrays(), shadow)

        ways.append((f"{name} store", store.path(n), load_into))
    for name, path, load in ways:
        load()
        model.check()
        with timed(times, f"load, {name}"):
            load()
        model.check()
        forget(path)
        with timed(times, f"load, {name}, cold"):
            load()
        model.check()
    for name, store in stores.items():
        with timed(times, f"load into new arrays, {name} store"):
            store.load(n)
        with timed(times, f"load one tensor of 32, {name} store"):
            store.load_tensors(n, ["layer17.weight"])


def raw(times: Times) -> None:
    """Do with 100 MiB of memory what a save or load cannot avoid, on one thread."""
    plain = np.random.default_rng(0).integers(0, 256, 100 * SEGMENT_BYTES, np.uint8)
    copy, out = np.zeros_like(plain), memoryview(bytearray(SEGMENT_BYTES + 16))
    cipher = AESGCM(bytes(32))
    with timed(times, "raw, AES-256-GCM, one thread"):
        for index in range(100):
            part = plain[index * SEGMENT_BYTES : (index + 1) * SEGMENT_BYTES]
            cipher.encrypt_into(index.to_bytes(12, "big"), part.data, None, out)
    with timed(times, "raw, copy, one thread"):
        np.copyto(copy, plain)
    with timed(times, "raw, digest of the stream (SHA-256)"):
        stream_digest(buffer_reader(plain.data), 0, plain.nbytes, threads=usable_threads())


def main() -> None:
    """Measure everything in turn, several times."""
    times: Times = {}
    kek = KeyFileKek(Key(secrets.token_bytes(32)))
    model, shadow = Model(), Shadow()
    signing_key = SigningKey.generate()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = {
            kind: ModelStore.create(
                folder / kind, kek, "run", marks=folder / "marks", signing_key=key
            )
            for kind, key in (
                ("unsigned", None),
                ("signed", signing_key),
            )
        }
        for round_ in range(REPEATS + 1):
            # The first is not measured: a process that has just begun pays for its first memory.
            into = times if round_ else {}
            saves(into, model, folder, stores, signing_key, round_)
            loads(into, model, folder, stores, shadow, round_)
            raw(into)
        for store in stores.values():
            store.close()
    print(json.dumps({name: statistics.median(column) for name, column in times.items()}))


if __name__ == "__main__":
    main()
