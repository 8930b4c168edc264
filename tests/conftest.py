"""What many tests share: a place for keys, the data sets where they are."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from own_logging import own_logging

# How long an example takes says nothing of the code on a machine that does other work.
hypothesis.settings.register_profile("fedveil", deadline=None)
hypothesis.settings.load_profile("fedveil")

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def _homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return new folders; pytest's own numbers look through all that are there, for each."""
    root = tmp_path_factory.mktemp("homes")
    return (root / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def _own_home(_homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test's keys and runs away from the user's."""
    home = next(_homes)
    home.mkdir(mode=0o700)
    monkeypatch.setenv("FEDVEIL_HOME", str(home))


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Keep what a command says of logging from the tests that come after it."""
    with own_logging():
        yield


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the plots out of reports: drawing them takes longer than a small run does."""
    monkeypatch.setattr("fedveil.privacy.report_html.plot_svg", lambda *_, **__: "")


@pytest.fixture
def data_dir() -> Callable[[str], Path]:
    """Return a function from a data set's name to its directory, or skip."""

    def find(name: str) -> Path:
        if not (DATA / name).is_dir():
            pytest.skip(f"the data set {name} is not in ../shared/data")
        return DATA / name

    return find
