"""The search for weights finds them in every form in which a deployment could leave them."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from disk_search import (
    files_under,
    holding,
    needles,
    open_files_of_watched,
    opened_for_writing,
    watched_environment,
)
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
)
from flwr.supercore.object_store.object_store_factory import ObjectStoreFactory

from fedveil.flower import set_identity

WEIGHTS = np.random.default_rng(7).standard_normal((64, 10)).astype(np.float32)
SOUGHT = needles({"weights": WEIGHTS, "bias": np.zeros(10, np.float32)})
OTHER = np.random.default_rng(8).standard_normal((64, 10)).astype(np.float32)


@pytest.mark.parametrize("before", [0, 1, 2, 3, 1021])
@pytest.mark.parametrize("encode", [bytes, base64.b64encode], ids=["raw", "base64"])
def test_weights_are_found_at_any_place_in_a_file(
    tmp_path: Path, before: int, encode: type[bytes]
) -> None:
    file = tmp_path / "deep" / "er" / "file"
    file.parent.mkdir(parents=True)
    file.write_bytes(encode(b"x" * before + WEIGHTS.tobytes()) + b"y")
    assert holding(files_under(tmp_path), SOUGHT) == [file]
    file.write_bytes(encode(b"x" * before + OTHER.tobytes() + bytes(4096)))
    assert holding(files_under(tmp_path), SOUGHT) == []


def test_a_part_of_a_tensor_is_found(tmp_path: Path) -> None:
    raw = WEIGHTS.tobytes()
    for index in range(10):
        (tmp_path / str(index)).write_bytes(
            raw[len(raw) * index // 10 : len(raw) * (index + 1) // 10]
        )
    assert len(holding(files_under(tmp_path), SOUGHT)) == 10


def test_weights_are_found_in_flowers_own_database_and_stay_after_it_deletes_them(
    tmp_path: Path,
) -> None:
    """Why `fedveil server` refuses a database on a disk."""
    run = 1
    set_identity(run, 2)
    message = Message(
        RecordDict({"arrays": ArrayRecord([WEIGHTS])}), dst_node_id=3, message_type="train"
    )
    message.metadata.__dict__["_run_id"] = run
    message.metadata.__dict__["_message_id"] = message.object_id
    store = ObjectStoreFactory(str(tmp_path / "state.db")).store()
    store.preregister(run, get_object_tree(message))
    for name, part in get_all_nested_objects(message).items():
        store.put(name, part.deflate())
    found = holding(files_under(tmp_path), SOUGHT)
    assert found
    assert {path.name for path in found} <= {"state.db", "state.db-wal"}
    store.delete_objects_in_run(run)
    assert len(store) == 0
    assert holding(files_under(tmp_path), SOUGHT)


DELETED = "with tempfile.NamedTemporaryFile() as file: file.write(data); file.flush()"
REPLACED = """
pathlib.Path('a').write_bytes(data)
pathlib.Path('b').write_bytes(b'b')
os.replace('b', 'a')
"""
EMPTIED = "pathlib.Path('a').write_bytes(data); pathlib.Path('a').write_bytes(b'')"
IN_A_REMOVED_FOLDER = """
with tempfile.TemporaryDirectory() as folder:
    (pathlib.Path(folder) / 'a').write_bytes(data)
"""


@pytest.mark.parametrize("code", [DELETED, REPLACED, EMPTIED, IN_A_REMOVED_FOLDER])
def test_what_was_on_the_disk_for_a_moment_is_found(tmp_path: Path, code: str) -> None:
    watched = tmp_path / "watched"
    process = start(tmp_path, watched, code)
    process.communicate(WEIGHTS.tobytes(), timeout=60)
    assert process.returncode == 0
    found = holding(files_under(tmp_path), SOUGHT)
    assert found
    assert {path.parent for path in found} == {watched}
    assert any(path.startswith(str(tmp_path)) for path in opened_for_writing(watched))


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a watched process that holds the weights in a file without a name."""
    code = """
file = tempfile.TemporaryFile(dir=folder)
file.write(data)
file.flush()
print('ready', flush=True)
time.sleep(60)
"""
    process = start(tmp_path, tmp_path / "watched", code)
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=10)


def test_a_file_without_a_name_is_found(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.write(WEIGHTS.tobytes())
    holder.stdin.close()
    assert holder.stdout.readline() == b"ready\n"
    watched = tmp_path / "watched"
    assert holding(open_files_of_watched(watched), SOUGHT)
    assert f"?{tmp_path}" in opened_for_writing(watched)


def start(folder: Path, watched: Path, code: str) -> subprocess.Popen[bytes]:
    head = "import os, pathlib, sys, tempfile, time; data = sys.stdin.buffer.read(); "
    return subprocess.Popen(
        [sys.executable, "-c", f"{head}folder = {str(folder)!r}\n{code}"],
        cwd=folder,
        env={**watched_environment(watched), "TMPDIR": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
