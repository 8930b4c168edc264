from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split

from fedveil.tasks.errors import TaskError
from fedveil.tasks.heart_disease import HOSPITALS, HeartDisease
from fedveil.tasks.partition import PartitionSpec

DataDir = Callable[[str], Path]
NATURAL = PartitionSpec("natural")


@pytest.fixture
def directory(data_dir: DataDir) -> Path:
    return data_dir("heart_disease")


def build(directory: Path | None, standardise: str = "public", seed: int = 0) -> HeartDisease:
    options = {"standardise": standardise}
    return HeartDisease(seed=seed, partition=NATURAL, data_dir=directory, options=options)


def raw(directory: Path, hospital: int) -> tuple[np.ndarray, np.ndarray]:
    """Complete rows with the 13 features, read in another way than the task does."""
    path = directory / f"processed.{HOSPITALS[hospital]}.data"
    table = np.genfromtxt(path, delimiter=",", missing_values="?", filling_values=np.nan)
    table = np.delete(table, [10, 11, 12], axis=1)
    table = table[~np.isnan(table).any(axis=1)]
    columns = [table[:, c] for c in (0, 1, 3, 4, 5, 7, 8, 9)]
    columns += [(table[:, 2] == level).astype(float) for level in (2, 3, 4)]
    columns += [(table[:, 6] == level).astype(float) for level in (1, 2)]
    return np.stack(columns, axis=1), (table[:, -1] != 0).astype(int)


def split(directory: Path, hospital: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of FLamby's training and test split."""
    _, y = raw(directory, hospital)
    stratify = None if min((y == 0).sum(), (y == 1).sum()) <= 2 else y
    train, test = train_test_split(
        np.arange(len(y)),
        test_size=1.0 - 0.66,
        train_size=0.66,
        random_state=43,
        shuffle=True,
        stratify=stratify,
    )
    return np.sort(train), np.sort(test)


def test_sizes_and_positives_are_flambys(directory: Path) -> None:
    task = build(directory)
    parts = [task.load(hospital, 4) for hospital in range(4)]
    found = [(len(a), int(a.y.sum()), len(b), int(b.y.sum())) for a, b in parts]
    assert found == [(199, 91, 104, 48), (172, 65, 89, 33), (30, 30, 16, 15), (85, 66, 45, 35)]
    assert sum(size for size, *_ in found) == HeartDisease.nominal_records
    assert all(a.x.shape[1] == 13 and a.x.dtype == a.y.dtype == torch.float32 for a, _ in parts)


@pytest.mark.parametrize("hospital", range(4))
def test_local_features_are_standardised_by_the_hospitals_training_rows(
    directory: Path, hospital: int
) -> None:
    train, test = build(directory, "local").load(hospital, 4)
    x, y = raw(directory, hospital)
    train_rows, test_rows = split(directory, hospital)
    mean, deviation = x[train_rows].mean(axis=0), x[train_rows].std(axis=0, ddof=1)
    deviation[deviation == 0] = 1
    for part, chosen in ((train, train_rows), (test, test_rows)):
        np.testing.assert_allclose(part.x, (x[chosen] - mean) / deviation, atol=1e-5)
        np.testing.assert_array_equal(part.y, y[chosen])
    assert float(train.x.mean(dim=0).abs().max()) < 1e-6
    spread = train.x.std(dim=0)
    constant = x[train_rows].std(axis=0) == 0
    # All of Switzerland's cholesterol is a placeholder.
    assert bool(constant[3]) == (hospital == 2)
    torch.testing.assert_close(spread, torch.tensor(~constant, dtype=torch.float32))


def test_the_public_test_is_the_four_test_splits_together(directory: Path) -> None:
    pieces = [(*raw(directory, h), *split(directory, h)) for h in range(4)]
    train = np.concatenate([x[a] for x, _, a, _ in pieces])
    test = np.concatenate([x[b] for x, _, _, b in pieces])
    pooled = build(directory, "local").public_test()
    expected = (test - train.mean(axis=0)) / train.std(axis=0, ddof=1)
    np.testing.assert_allclose(pooled.x, expected, atol=1e-5)
    np.testing.assert_array_equal(pooled.y, np.concatenate([y[b] for _, y, _, b in pieces]))
    task = build(directory)
    own = torch.cat([task.load(hospital, 4)[1].x for hospital in range(4)])
    assert torch.equal(task.public_test().x, own)
    assert len(own) == 254


def test_public_features_come_from_their_own_record_alone(directory: Path) -> None:
    x, _ = raw(directory, 0)
    rows, _ = split(directory, 0)
    train, _ = build(directory).load(0, 4)
    age, pressure, cholesterol = x[rows[0], [0, 2, 3]]
    expected = [(age - 55) / 10, (pressure - 130) / 20, (cholesterol - 200) / 100]
    np.testing.assert_allclose(train.x[0, [0, 2, 3]], expected, atol=1e-6)
    # Affine in each column, the same line at every hospital.
    for hospital in range(4):
        part, _ = build(directory).load(hospital, 4)
        own, _ = raw(directory, hospital)
        age_of = own[split(directory, hospital)[0], 0]
        np.testing.assert_allclose(part.x[:, 0], (age_of - 55) / 10, atol=1e-6)
    assert float(train.x.abs().max()) < 8
    assert build(None).record_preprocessing_is_independent
    assert not build(None, "local").record_preprocessing_is_independent


def test_no_seed_moves_a_patient(directory: Path) -> None:
    assert torch.equal(build(directory).load(1, 4)[0].x, build(directory, seed=9).load(1, 4)[0].x)


def test_a_hospital_needs_its_own_file_alone(directory: Path, tmp_path: Path) -> None:
    name = "processed.hungarian.data"
    (tmp_path / name).write_bytes((directory / name).read_bytes())
    for standardise in ("public", "local"):
        task = build(tmp_path, standardise)
        assert len(task.load(1, 4)[0]) == 172
        with pytest.raises(TaskError, match=r"processed\.cleveland\.data, which does not exist"):
            task.load(0, 4)
        with pytest.raises(TaskError, match="UCI Machine Learning Repository, data set 45"):
            task.public_test()


def test_a_changed_byte_is_refused(directory: Path, tmp_path: Path) -> None:
    name = "processed.va.data"
    content = bytearray((directory / name).read_bytes())
    content[0] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError, match=r"processed\.va\.data is not the published file"):
        build(tmp_path).load(3, 4)


def test_only_its_four_hospitals_are_clients() -> None:
    with pytest.raises(TaskError, match="must be natural, not iid"):
        HeartDisease(seed=0, partition=PartitionSpec("iid"))
    with pytest.raises(TaskError, match="has 4 hospitals, so 4 clients, not 10"):
        build(None).load(0, 10)
    with pytest.raises(TaskError, match="client 4 of 4 does not exist"):
        build(None).load(4, 4)
