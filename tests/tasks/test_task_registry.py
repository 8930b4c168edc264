from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedveil.tasks.base import Task
from fedveil.tasks.errors import TaskError
from fedveil.tasks.partition import PartitionSpec
from fedveil.tasks.registry import create_task, task_names

BUILT_IN = [
    "adult",
    "breast-cancer",
    "digits",
    "fashion-mnist",
    "heart-disease",
    "mnist",
    "shakespeare",
]

THIRD_PARTY = """
from torch import nn
from fedveil.tasks.base import Examples
from fedveil.tasks.objectives import BinaryTask
from fedveil.tasks.options import Number


class Coins(BinaryTask):
    name = "coins"
    nominal_records = 8
    known_options = {"bias": Number(0.5, 0, 1)}

    def model(self):
        return nn.Linear(1, 1)

    def load(self, partition, num_partitions):
        raise NotImplementedError

    def public_test(self):
        return None


class Unfinished(BinaryTask):
    name = "unfinished"


NOT_A_TASK = 3
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a package with a few entry points on the import path."""
    (tmp_path / "coin_tasks.py").write_text(THIRD_PARTY)
    (tmp_path / "coin_broken.py").write_text("import a_module_that_nobody_has\n")
    info = tmp_path / "coin_tasks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: coin-tasks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[fedveil.tasks]\n"
        "coins = coin_tasks:Coins\n"
        "unfinished = coin_tasks:Unfinished\n"
        "number = coin_tasks:NOT_A_TASK\n"
        "absent = coin_tasks:Absent\n"
        "broken = coin_broken:Broken\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def create(name: str, **kwargs: object) -> Task:
    return create_task(name, seed=0, partition=PartitionSpec("iid"), **kwargs)  # type: ignore[arg-type]


def test_names_are_sorted() -> None:
    assert [name for name in task_names() if name in BUILT_IN] == BUILT_IN
    assert task_names() == sorted(task_names())


def test_names_cost_no_torch_and_a_task_loads_no_other() -> None:
    code = (
        "import sys\n"
        "from fedveil.tasks.registry import create_task, task_names\n"
        "from fedveil.tasks.partition import PartitionSpec\n"
        "import fedveil.tasks.files\n"
        "assert 'digits' in task_names()\n"
        "assert 'torch' not in sys.modules and 'sklearn' not in sys.modules\n"
        "create_task('digits', seed=0, partition=PartitionSpec('iid'))\n"
        "assert 'fedveil.tasks.digits' in sys.modules\n"
        "assert 'fedveil.tasks.mnist' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_lists_the_installed_ones() -> None:
    with pytest.raises(TaskError, match=r"no task 'digit'; installed tasks: .*adult.*, digits, "):
        create("digit")


@pytest.mark.usefixtures("install")
def test_a_third_party_task_is_built_with_its_settings() -> None:
    assert "coins" in task_names()
    task = create("coins", options={"bias": 1})
    assert (task.name, task.seed, dict(task.options)) == ("coins", 0, {"bias": 1.0})
    with pytest.raises(TaskError, match=r"coins has no option 'side'; known options: bias \("):
        create("coins", options={"side": "heads"})


@pytest.mark.usefixtures("install")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"'broken' \(coin_broken:Broken\) cannot be imported: ModuleNotFoundError"),
        ("absent", "cannot be imported: AttributeError"),
        ("number", "not a complete subclass"),
        ("unfinished", "not a complete subclass"),
    ],
)
def test_what_is_not_a_task_is_refused(name: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        create(name)


def test_a_name_of_two_packages_is_refused(install: Path) -> None:
    other = install / "other_coins-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other-coins\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[fedveil.tasks]\ndigits = other_coins:Digits\n")
    with pytest.raises(TaskError, match=r"'digits' is installed twice .*other_coins:Digits"):
        create("digits")


def test_common_settings_are_checked() -> None:
    with pytest.raises(TaskError, match="seed must be an integer of 0 or more, not -1"):
        create_task("digits", seed=-1, partition=PartitionSpec("iid"))
    with pytest.raises(TaskError, match="digits come in no natural groups"):
        create_task("digits", seed=0, partition=PartitionSpec("natural"))


@pytest.mark.parametrize("name", ["adult", "fashion-mnist", "mnist", "shakespeare"])
def test_a_task_without_its_data_has_a_model_and_says_what_is_missing(
    name: str, tmp_path: Path
) -> None:
    without = create(name)
    assert sum(p.numel() for p in without.model().parameters()) > 0
    with pytest.raises(TaskError, match="no data directory is set"):
        without.load(0, 2)
    elsewhere = create(name, data_dir=tmp_path)
    first, pin = next(iter(elsewhere.data_files.items()))
    with pytest.raises(TaskError) as error:
        elsewhere.public_test()
    for part in (str(tmp_path / first), pin, elsewhere.data_source):
        assert part in str(error.value)
