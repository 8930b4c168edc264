"""What many tests share: a place for keys, the data sets where they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

# How long an example takes says nothing of the code on a machine that does other work.
hypothesis.settings.register_profile("fedveil", deadline=None)
hypothesis.settings.load_profile("fedveil")

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test's keys and runs away from the user's."""
    monkeypatch.setenv("FEDVEIL_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def data_dir() -> Callable[[str], Path]:
    """Return a function from a data set's name to its directory, or skip."""

    def find(name: str) -> Path:
        if not (DATA / name).is_dir():
            pytest.skip(f"the data set {name} is not in ../shared/data")
        return DATA / name

    return find
