from __future__ import annotations

from pathlib import Path

import pytest

from fedveil.client.runner.gpu import GpuError, GpuTurn, gpu_of


@pytest.mark.parametrize(
    ("named", "visible", "cards", "expected"),
    [
        (None, None, [], ""),
        (None, None, ["nvidia0", "nvidiactl"], "0"),
        (None, None, ["nvidiactl"], ""),
        (None, "1,0", ["nvidia0", "nvidia1"], "1"),
        (None, "", ["nvidia0"], ""),
        (None, "-1", ["nvidia0"], ""),
        ("none", "0", ["nvidia0"], ""),
        ("3", "0", [], "3"),
        ("GPU-8f1b", None, [], "GPU-8f1b"),
        ("0, 2", "1", [], "0,2"),
    ],
)
def test_the_gpu_is_the_named_one_or_the_first_that_is_seen(
    tmp_path: Path, named: str | None, visible: str | None, cards: list[str], expected: str
) -> None:
    for card in cards:
        (tmp_path / card).touch()
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert gpu_of(named, environ, tmp_path) == expected


@pytest.mark.parametrize("named", ["../0", "0/1", "a b", "x" * 65, "0,", "0,0", "0,../1"])
def test_a_name_that_is_no_gpu_is_refused(named: str) -> None:
    with pytest.raises(GpuError, match="GPU"):
        gpu_of(named, {})


def test_one_has_the_turn_and_the_next_gets_it(tmp_path: Path) -> None:
    folder = tmp_path / "gpus"
    one, two, elsewhere = GpuTurn("0", folder), GpuTurn("0", folder), GpuTurn("1", folder)
    assert one.take()
    assert not two.take()
    assert elsewhere.take(), "another GPU is another turn"
    one.leave()
    assert two.take()
    two.close()
    assert one.take(), "whoever ends leaves it"
    for turn in (one, elsewhere):
        turn.close()


def test_several_are_taken_together_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "gpus"
    both, second, first = (GpuTurn(gpu, folder) for gpu in ("0,1", "1", "0"))
    assert second.take()
    assert not both.take()
    assert first.take(), "the one that was free is not kept"
    first.leave()
    second.leave()
    assert both.take()
    assert not first.take()
    assert not second.take()
    for turn in (both, second, first):
        turn.close()


def test_without_a_gpu_every_turn_comes_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "gpus"
    assert GpuTurn("", folder).take()
    assert GpuTurn("", folder).take()
    assert not folder.exists()
