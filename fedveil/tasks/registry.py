"""Tasks by name: the installed entry points of the group `fedveil.tasks`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from fedveil.tasks.errors import TaskError
from fedveil.tasks.options import OptionValue
from fedveil.tasks.partition import PartitionSpec

if TYPE_CHECKING:
    from fedveil.tasks.base import Task

__all__ = ["GROUP", "create_task", "task_names"]

GROUP = "fedveil.tasks"


def task_names() -> list[str]:
    """Return the names of the installed tasks, ascending; imports none of them."""
    return sorted(entry_points(group=GROUP).names)


def create_task(
    name: str,
    *,
    seed: int,
    partition: PartitionSpec,
    data_dir: Path | None = None,
    options: Mapping[str, OptionValue] = MappingProxyType({}),
) -> Task:
    """Build the task of this name; the code of no other task is imported.

    Data files are not touched here: they are read and checked when examples are first asked
    for, so that a coordinator can build a task for its model alone.

    Parameters
    ----------
    name : str
        One of `task_names`.
    seed : int
        >= 0. Fixes who holds which record, and each client's own test split.
    partition : PartitionSpec
        How records are divided among clients.
    data_dir : Path, optional
        Where the data files of the task lie; not needed when it comes with a package.
    options : Mapping[str, str | int | float | bool]
        Options of the task; the rest keep their defaults.

    Returns
    -------
    Task
        The task, its settings checked.

    Raises
    ------
    TaskError
        If the name is unknown or belongs to two packages, if the task cannot be imported or is
        not a `Task`, or if a setting is not allowed.
    """
    entry = _entry(name)
    return _load(entry)(seed=seed, partition=partition, data_dir=data_dir, options=options)


def _entry(name: str) -> EntryPoint:
    found = entry_points(group=GROUP, name=name)
    if not found:
        known = ", ".join(task_names()) or "none"
        raise TaskError(f"there is no task {name!r}; installed tasks: {known}")
    if len(found) > 1:
        # Which code runs must never hang on the order of the import path.
        targets = ", ".join(sorted(entry.value for entry in found))
        raise TaskError(f"the task {name!r} is installed twice ({targets}); remove one package")
    return next(iter(found))


def _load(entry: EntryPoint) -> type[Task]:
    try:
        loaded = entry.load()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise TaskError(
            f"the task {entry.name!r} ({entry.value}) cannot be imported: {reason}"
        ) from error
    from fedveil.tasks.base import Task

    if not (inspect.isclass(loaded) and issubclass(loaded, Task)) or inspect.isabstract(loaded):
        raise TaskError(
            f"the task {entry.name!r} ({entry.value}) is not a complete subclass of"
            " fedveil.tasks.base.Task"
        )
    return loaded
