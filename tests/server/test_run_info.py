"""What is wrong with a run folder is told apart, with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from served_run import new_run

from fedveil.server.run_info import RunFolderError, read_info


def _remove(file: Path) -> None:
    file.unlink()


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _forget(file: Path) -> None:
    fields = json.loads(file.read_text())
    del fields["store"]
    file.write_text(json.dumps(fields))


def _link(file: Path) -> None:
    file.rename(file.with_suffix(".away"))
    file.symlink_to(file.with_suffix(".away"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_remove, "run: is not a run folder (there is no run.json in it); name one that"),
        (_cut, "run.json: is damaged, or of another version of Fedveil; restore it from a copy"),
        (_empty, "run.json: is damaged, or of another version of Fedveil; restore it from a copy"),
        (_forget, "run.json: is damaged, or of another version of Fedveil; restore it from a copy"),
        (_link, "run.json is a symbolic link; name the file itself"),
    ],
)
def test_missing_damaged_and_unsafe_are_told_apart(
    change: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    new_run(tmp_path / "run")
    assert read_info(tmp_path / "run").run == "digits-run"
    change(tmp_path / "run" / "run.json")
    with pytest.raises(RunFolderError) as told:
        read_info(tmp_path / "run")
    assert says in str(told.value)


def test_a_path_where_nothing_is_and_a_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is not a run folder \(nothing is there\)"):
        read_info(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"is not a run folder \(it is a file\)"):
        read_info(tmp_path / "file")


def test_who_may_not_read_it_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    new_run(tmp_path / "run")
    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(RunFolderError, match=r"run.json: cannot be read \(Permission denied\)"):
        read_info(tmp_path / "run")
