from __future__ import annotations

import contextlib
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.tasks.errors import TaskError
from fedveil.tasks.files import DataFiles, arrays_sha256

CONTENT = b"1,2,3\n"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
ARRAYS: dict[str, np.ndarray] = {
    "x": np.arange(12, dtype=np.uint8).reshape(3, 4),
    "y": np.array([1, 2, 3], np.int16),
}


def files(directory: Path | None) -> DataFiles:
    pins = {"a.csv": DIGEST, "a.npz": arrays_sha256(ARRAYS)}
    return DataFiles("flowers", directory, pins, "the Flower Archive, data set 7")


def test_the_published_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(CONTENT)
    assert files(tmp_path).read("a.csv") == CONTENT


def test_a_changed_byte_is_refused(tmp_path: Path) -> None:
    changed = b"1,2,4\n"
    (tmp_path / "a.csv").write_bytes(changed)
    found = hashlib.sha256(changed).hexdigest()
    with pytest.raises(TaskError) as error:
        files(tmp_path).read("a.csv")
    message = str(error.value)
    assert "\n" not in message
    for part in (str(tmp_path / "a.csv"), found, f"expected {DIGEST}"):
        assert part in message


@pytest.mark.parametrize("name", ["a.csv", "a.npz"])
def test_a_missing_file_says_what_to_fetch_and_where_to_put_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(TaskError) as error:
        (files(tmp_path).read if name == "a.csv" else files(tmp_path).read_arrays)(name)
    for part in (
        "task flowers",
        str(tmp_path / name),
        files(None).sha256[name],
        "the Flower Archive, data set 7",
        "put it",
    ):
        assert part in str(error.value)


def test_no_directory_says_what_to_fetch() -> None:
    with pytest.raises(TaskError) as error:
        files(None).read("a.csv")
    for part in ("a.csv", DIGEST, "the Flower Archive, data set 7", "data_dir"):
        assert part in str(error.value)


def test_a_directory_in_place_of_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(TaskError, match="cannot be read: Is a directory"):
        files(tmp_path).read("a.csv")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_checked_whatever_their_container(tmp_path: Path, save: object) -> None:
    assert callable(save)
    save(tmp_path / "a.npz", **dict(reversed(ARRAYS.items())))
    read = files(tmp_path).read_arrays("a.npz")
    assert read.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read[name], array, strict=True)


@pytest.mark.parametrize(
    "changed",
    [
        ARRAYS | {"y": np.array([1, 2, 4], np.int16)},
        ARRAYS | {"y": np.array([1, 2, 3], np.int32)},
        ARRAYS | {"x": ARRAYS["x"].reshape(4, 3)},
        ARRAYS | {"z": np.array([1])},
        {"x": ARRAYS["x"]},
        {"x": ARRAYS["y"], "y": ARRAYS["x"]},
    ],
)
def test_changed_arrays_are_refused(tmp_path: Path, changed: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "a.npz", **changed)  # type: ignore[arg-type]  # numpy: keywords
    with pytest.raises(
        TaskError, match=f"not the published file: .* expected {arrays_sha256(ARRAYS)}"
    ):
        files(tmp_path).read_arrays("a.npz")


def test_the_digest_of_arrays_is_the_documented_one() -> None:
    documented = b"x |u1 (3, 4)\n" + bytes(range(12)) + b"y <i2 (3,)\n" + b"\1\0\2\0\3\0"
    assert arrays_sha256(ARRAYS) == hashlib.sha256(documented).hexdigest()
    foreign = ARRAYS | {"x": np.asfortranarray(ARRAYS["x"]), "y": ARRAYS["y"].astype(">i2")}
    assert arrays_sha256(foreign) == arrays_sha256(ARRAYS)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(TaskError, match=r"cannot be read as \.npz: Object arrays"):
        files(tmp_path).read_arrays("a.npz")


@given(st.data())
def test_damage_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **ARRAYS)  # type: ignore[arg-type]  # numpy: keywords
    damaged = bytearray(buffer.getvalue())
    for at in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=3)):
        damaged[at] ^= data.draw(st.integers(1, 255))
    end = data.draw(st.sampled_from([len(damaged), len(damaged) // 2, 0]))
    directory = tmp_path_factory.mktemp("damaged")
    (directory / "a.npz").write_bytes(damaged[:end])
    # Damage to a time stamp, say, leaves the arrays what they are.
    with contextlib.suppress(TaskError):
        read = files(directory).read_arrays("a.npz")
        assert arrays_sha256(read) == arrays_sha256(ARRAYS)
