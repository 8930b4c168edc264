"""Which engine is chosen, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedveil.errors import FedveilError
from fedveil.server.app import LoggingObserver
from fedveil.simulations.clients import SimulatedClients
from fedveil.simulations.engines.choose import choose_engine, parse_engine
from fedveil.simulations.engines.cohort import CohortEngine
from fedveil.simulations.engines.errors import EngineError
from fedveil.simulations.engines.processes import ProcessesEngine
from fedveil.simulations.engines.sequential import SequentialEngine
from fedveil.simulations.guards import Guards
from fedveil.simulations.scenarios import find_scenario
from fedveil.simulations.simulate import simulate
from fedveil.tasks.mnist import Mnist
from fedveil.tasks.pooled import Pool

OPACUS = ("training.engine", "opacus")
REASON = r'training\.engine = "opacus" takes one client at a time'


def clients(tmp_path: Path, *overrides: tuple[str, object]) -> SimulatedClients:
    config = find_scenario("digits").config(overrides)
    return SimulatedClients(config, Guards.of(tmp_path, None, None, resume=False))


@pytest.mark.parametrize(
    ("name", "processes", "words"),
    [
        ("", None, "there is no engine ''; there are auto, cohort, sequential, processes, ray"),
        ("Cohort", None, "there is no engine 'Cohort'"),
        ("dask", 2, "there is no engine 'dask'"),
        ("auto", 2, "--processes 2 is for --engine processes and ray; with --engine auto leave"),
        ("cohort", 1, "with --engine cohort leave it out"),
        ("processes", 0, "--processes must be 1 or more, not 0"),
        ("processes", -3, "not -3"),
    ],
)
def test_nonsense_is_refused_before_anything_runs(
    tmp_path: Path, name: str, processes: int | None, words: str
) -> None:
    config = find_scenario("digits").config()
    with pytest.raises(EngineError) as caught:
        simulate(config, tmp_path / "r", LoggingObserver(), engine=name, processes=processes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_auto_takes_cohort_where_it_can(tmp_path: Path) -> None:
    engine, said = choose_engine(parse_engine("auto", None), clients(tmp_path), None)
    assert isinstance(engine, CohortEngine)
    assert said.startswith("engine cohort")
    engine.close()


def test_else_one_after_another_with_the_reason(tmp_path: Path) -> None:
    engine, said = choose_engine(parse_engine("auto", None), clients(tmp_path, OPACUS), None)
    assert isinstance(engine, SequentialEngine)
    assert said == f"engine sequential, not cohort: {REASON}".replace("\\", "")


IMAGES = np.zeros((40, 28, 28), np.uint8)


@pytest.mark.parametrize(
    ("model", "mode", "kind"),
    [
        ("cnn", "none", SequentialEngine),
        ("cnn", "client/central", SequentialEngine),
        ("cnn", "record/local", CohortEngine),
        ("mlp", "none", CohortEngine),
        ("mlp", "client/central", CohortEngine),
    ],
)
def test_auto_takes_the_faster_for_convolutions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, mode: str, kind: type
) -> None:
    pool = Pool(IMAGES, np.arange(40) % 10, IMAGES[:10], np.arange(10))
    monkeypatch.setattr(Mnist, "read_pool", lambda _: pool)
    overrides = [("task.options.model", model), ("federation.clients", 4), ("seed", 7)]
    config = find_scenario("mnist").config(overrides, mode)
    guards = Guards.of(tmp_path, None, None, resume=False)
    engine, said = choose_engine(parse_engine("auto", None), SimulatedClients(config, guards), None)
    engine.close()
    assert type(engine) is kind
    if kind is SequentialEngine:
        assert said == (
            "engine sequential, not cohort: convolutions without noise for each record are faster "
            "one after another"
        )
        asked, _ = choose_engine(
            parse_engine("cohort", None), SimulatedClients(config, guards), None
        )
        assert isinstance(asked, CohortEngine)
        asked.close()


def test_a_cohort_that_cannot_be_says_why(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=f"cannot be trained together: {REASON}; take"):
        choose_engine(parse_engine("cohort", None), clients(tmp_path, OPACUS), None)


def test_data_that_are_missing_are_told_by_the_run_itself(tmp_path: Path) -> None:
    said: list[str] = []
    config = find_scenario("mnist").config()
    with pytest.raises(FedveilError, match="data") as caught:
        simulate(config, tmp_path / "run", LoggingObserver(), say=said.append)
    assert not isinstance(caught.value, EngineError)
    assert len(said) == 1


@pytest.mark.parametrize(("asked", "found"), [(3, 3), (50, 10)])
def test_no_more_processes_than_clients(tmp_path: Path, asked: int, found: int) -> None:
    engine, said = choose_engine(parse_engine("processes", asked), clients(tmp_path), None)
    assert isinstance(engine, ProcessesEngine)
    assert said == f"engine processes: {found} at a time"
    engine.close()


def test_the_run_says_its_engine_first(tmp_path: Path) -> None:
    heard: list[str] = []

    class Listener(LoggingObserver):
        def started(self, *_: object) -> None:
            heard.append("started")

    config = find_scenario("digits").config([("federation.rounds", 1)])
    simulate(config, tmp_path / "run", Listener(), engine="sequential", say=heard.append)
    assert heard == ["engine sequential: one client after another", "started"]
