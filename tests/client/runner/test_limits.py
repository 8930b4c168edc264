from __future__ import annotations

import pytest

from fedveil.client.runner.limits import LimitError, TaskLimits, is_out_of_memory, machine_memory


def test_the_limits_say_their_numbers() -> None:
    limits = TaskLimits(3 << 29, 2.5)
    assert "1536 MiB" in limits.memory_words
    assert "2.5 s" in limits.time_words


@pytest.mark.parametrize(
    ("memory", "seconds", "words"),
    [
        (100 << 20, 1.0, "100 MiB is too low"),
        (1 << 30, 0.0, "0 s must be above 0"),
        (1 << 30, -1.0, "-1 s"),
        (1 << 30, float("nan"), "nan s"),
    ],
)
def test_a_limit_that_nothing_can_keep_is_refused(memory: int, seconds: float, words: str) -> None:
    with pytest.raises(LimitError, match=words):
        TaskLimits(memory, seconds)


def test_want_of_memory_is_found_behind_other_words() -> None:
    hidden = ValueError("hidden")
    hidden.__context__ = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
    hidden.__suppress_context__ = True
    assert is_out_of_memory(hidden)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError("seven"))


def test_the_machine_has_memory() -> None:
    with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
        kib = int(file.readline().split()[1])
    assert machine_memory() == kib * 1024
