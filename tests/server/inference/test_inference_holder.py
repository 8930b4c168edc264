"""The holder swaps one reference, and readers never see halves of two swaps."""

from __future__ import annotations

import threading

from fedveil.server.inference.model_holder import ModelHolder


def test_the_last_model_is_kept_and_can_come_back() -> None:
    holder = ModelHolder("one")
    assert holder.kept == ("one",)
    assert not holder.roll_back()
    holder.swap("two")
    holder.swap("three")
    assert holder.kept == ("three", "two")
    assert holder.roll_back()
    assert (holder.current, holder.kept) == ("two", ("two", "three"))


def test_readers_see_neighbours_whatever_is_swapped_meanwhile() -> None:
    holder = ModelHolder(0)
    seen: list[tuple[int, ...]] = []

    def read() -> None:
        while holder.current < 2000:
            seen.append(holder.kept)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(1, 2001):
        holder.swap(number)
    for reader in readers:
        reader.join(30)
    assert all(len(kept) == 1 or kept[0] == kept[1] + 1 for kept in seen)
