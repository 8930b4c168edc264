"""The same seed gives the same model, bit for bit, whoever runs the clients and in what order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from flwr.app import Message

from fedveil.server.federation import RunSummary
from fedveil.simulations import simulate as simulate_module
from fedveil.simulations.clients import SimulatedClients
from fedveil.simulations.engines.choose import Choice
from fedveil.simulations.engines.interface import Engine, Work
from fedveil.simulations.engines.processes import ProcessesEngine
from fedveil.simulations.engines.sequential import SequentialEngine
from fedveil.simulations.guards import Guards
from fedveil.simulations.scenarios import find_scenario

Run = Callable[..., tuple[RunSummary, object]]
With = Callable[[Engine], None]

SIZE = [("federation.rounds", 2), ("federation.clients", 10)]
SEEDED = ("dp.insecure_seed", 7)
NO_PRIVACY = ("dp.unit", "none")
IN_CLEAR = ("secagg.enabled", False)
SUMMED = [SEEDED, ("dp.unit", "client"), ("dp.noise", "central")]
SETTINGS = {
    "no privacy": [NO_PRIVACY],
    "no privacy, in clear": [NO_PRIVACY, IN_CLEAR],
    "record/local": [SEEDED],
    "record/local, in clear": [SEEDED, IN_CLEAR],
    "client/central": SUMMED,
    "client/central, in clear": [*SUMMED, IN_CLEAR],
    "record/distributed": [SEEDED, ("dp.noise", "distributed"), ("training.local_steps", 1)],
}


class Permuted:
    """Runs the messages, and hands over the replies, in an order of its own."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self._engine, self._random = engine, random.Random(seed)  # noqa: S311  # no secret

    def run(self, work: Sequence[Work]) -> Iterator[Message]:
        replies = list(self._engine.run(self._random.sample(work, len(work))))
        yield from self._random.sample(replies, len(replies))

    def close(self) -> None:
        self._engine.close()


class _Lent:
    """An engine that several runs use, one after another: processes take long to start."""

    def __init__(self, engine: Engine) -> None:
        self.run = engine.run

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int, bool], Engine]]:
    """Return a function of how many processes, and whether they take part in secure sums."""
    made: dict[tuple[int, bool], ProcessesEngine] = {}
    out = tmp_path_factory.mktemp("pools")

    def pool(processes: int, secure: bool) -> Engine:
        if (processes, secure) not in made:
            config = find_scenario("digits").config([("secagg.enabled", secure)])
            clients = SimulatedClients(config, Guards.of(out, None, None, resume=False))
            made[processes, secure] = ProcessesEngine(clients, processes)
        return _Lent(made[processes, secure])

    yield pool
    for engine in made.values():
        engine.close()


@pytest.fixture
def with_engine(monkeypatch: pytest.MonkeyPatch) -> With:
    """Return a function that lets the runs after it have some engine."""

    def choose(engine: Engine) -> None:
        def chosen(_: Choice, __: SimulatedClients, ___: Path | None) -> tuple[Engine, str]:
            return engine, ""

        monkeypatch.setattr(simulate_module, "choose_engine", chosen)

    return choose


def result(summary: RunSummary) -> list[object]:
    """Return all that a run has to tell, but for how long it took."""
    folder = summary.folder
    models = [
        {name: tensor.tobytes() for name, tensor in folder.store.load(1 + i).tensors.items()}
        for i in range(folder.committed)
    ]
    return [models, [record.model_copy(update={"seconds": 0.0}) for record in folder.records]]


@pytest.mark.parametrize("name", SETTINGS)
def test_order_and_processes_make_no_difference(
    run: Run, with_engine: With, pools: Callable[[int, bool], Engine], name: str
) -> None:
    settings = [*SIZE, *SETTINGS[name]]
    secure = IN_CLEAR not in settings
    expected, _ = run(*settings, out="sequential", engine="sequential")
    app = SimulatedClients(
        expected.folder.config, Guards.of(expected.folder.path, None, None, resume=False)
    ).app()
    with_engine(Permuted(SequentialEngine(app), seed=1))
    permuted, _ = run(*settings, out="permuted")
    assert result(permuted) == result(expected)
    for processes in (1, 3) if name == "record/local, in clear" else (3,):
        with_engine(Permuted(pools(processes, secure), seed=processes))
        several, _ = run(*settings, out=f"processes-{processes}")
        assert result(several) == result(expected)
