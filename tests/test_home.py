"""The user's folder: found by the environment, refused where others may write."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedveil.home import HomeError, default_key_file, home, make_private


def test_the_environment_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDVEIL_HOME", str(tmp_path / "mine"))
    assert home() == tmp_path / "mine"
    assert default_key_file() == tmp_path / "mine" / "keys" / "model.key"


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_may_write_in_is_refused(
    mode: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(mode)
    monkeypatch.setenv("FEDVEIL_HOME", str(folder))
    with pytest.raises(HomeError, match=rf"shared: has mode {mode:04o}.* chmod go-w "):
        default_key_file()


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755, 0o500])
def test_a_folder_that_others_may_read_is_used(
    mode: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    folder.chmod(mode)
    monkeypatch.setenv("FEDVEIL_HOME", str(folder))
    assert home() == folder


def test_folders_are_made_for_their_owner_alone(tmp_path: Path) -> None:
    make_private(tmp_path / "a" / "b")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
