"""What a real run leaves in the audit log and in the figures, held against its run folder."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from engine_taps import Answer, tap
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from prometheus_client.parser import text_string_to_metric_families
from secure_grid import stage_of
from test_run_metrics import free_port

from fedveil.audit_log.chain import read_head
from fedveil.audit_log.errors import AuditError
from fedveil.audit_log.trail import Event, read_events, trail
from fedveil.audit_log.verify import verify_audit
from fedveil.client.app import RequestError
from fedveil.errors import FedveilError
from fedveil.home import home
from fedveil.server.app import make_server_app
from fedveil.server.federation import RunSummary
from fedveil.server.records import RoundRecord
from fedveil.server.run_metrics import CoordinatorMetrics, serve_metrics
from fedveil.simulations import simulate as simulation
from fedveil.simulations.scenarios import find_scenario

FIRST_NODE = 2
Act = Callable[[Message, int], Message | None]


class Nobody:
    def started(self, *_: object) -> None: ...

    def reply(self, *_: object) -> None: ...

    def round_done(self, record: RoundRecord, rounds: int) -> None: ...

    def warning(self, text: str) -> None: ...


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, undrawn: None) -> Callable[..., RunSummary]:
    """Return a function that runs `digits` as a coordinator does, but in this process.

    It is given what a client does instead of answering: (message, its number) to a reply or None.
    """
    audited = functools.partial(make_server_app, is_audited=True)
    monkeypatch.setattr(simulation, "make_server_app", audited)

    acting: list[Act] = []

    def intercept(answer: Answer, app: ClientApp, message: Message, context: Context) -> Message:
        own = acting[0](message, message.metadata.dst_node_id - FIRST_NODE)
        return answer(app, message, context) if own is None else own

    tap(monkeypatch, intercept)

    def run_with(act: Act, *overrides: tuple[str, object], resume: bool = False) -> RunSummary:
        acting[:] = [act]
        config = find_scenario("digits").config([("federation.rounds", 2), *overrides])
        out = home() / "runs" / "one"
        return simulation.simulate(None if resume else config, out, Nobody())

    return run_with


def events() -> list[Event]:
    log, head = trail(home())
    verify_audit([log], kept=read_head(head))
    return read_events(log)[0]


def failed(message: Message, code: int, words: str) -> Message:
    return Message(Error(code, words), reply_to=message)


def one_refuses_one_dies(message: Message, client: int) -> Message | None:
    if client == 9:
        # In the words of a client that Flower runs.
        error = RequestError("my data are not for you")
        return failed(message, 2, f"{type(error)}:<'{error}'>")
    if client == 3 and stage_of(message) == "input":
        return failed(message, 5, "gone")
    return None


def test_a_run_tells_who_joined_was_refused_was_dropped_and_how_it_ended(
    run: Callable[..., RunSummary],
) -> None:
    summary = run(one_refuses_one_dies, ("federation.join_timeout", 5))
    found = events()
    assert found[0]["event"] == "begin"
    assert found[0]["config_sha256"] == summary.folder.info.config_sha256
    assert {e["run"] for e in found} == {"1"}
    assert {e["folder"] for e in found} == {str(summary.folder.path)}
    joined = {str(e["client"]) for e in found if e["event"] == "join"}
    assert joined == {f"client-{i}" for i in range(9)}
    (refused,) = [e for e in found if e["event"] == "refuse"]
    assert (refused["node"], refused["kind"]) == ("11", "request")
    assert refused["detail"] == "my data are not for you"
    dropped = [(e["round"], e["client"], e["kind"]) for e in found if e["event"] == "drop"]
    assert dropped[0] == (1, "client-3 (client-3)", "silent")
    rounds = [e for e in found if e["event"] == "round"]
    records = summary.folder.records
    assert [e["round"] for e in rounds] == [r.round for r in records] == [1, 2]
    for event, record in zip(rounds, records, strict=True):
        assert len(str(event["clients"]).split(", ")) == record.clients
        assert "client-3" not in str(event["clients"])
        assert event["dropped"] == record.failed
        assert float(event["epsilon"]) == pytest.approx(record.epsilon, rel=1e-4)
    assert (found[-1]["event"], found[-1]["outcome"]) == ("end", "finished")


def scraped(metrics: CoordinatorMetrics) -> dict[str, dict[str, float]]:
    port = free_port()
    with serve_metrics(metrics, port):
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    found: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            by = {k: v for k, v in sample.labels.items() if k != "run"}
            found[sample.name.removeprefix("fedveil_")][",".join(by.values())] = sample.value
    return found


def test_the_metrics_of_a_real_run_fit_its_folder(run: Callable[..., RunSummary]) -> None:
    runs = home() / "runs"
    metrics = CoordinatorMetrics(runs, trail(home())[0], lambda: 10, 0.0)
    folder = run(one_refuses_one_dies, ("federation.join_timeout", 5)).folder
    found, records = scraped(metrics), folder.records
    assert found["run_rounds_total"] == {"": 2}
    assert found["run_replies_total"] == {"": sum(r.clients for r in records)}
    left_out = {kind: n for kind, n in found["run_left_out_total"].items() if n}
    assert sum(left_out.values()) == sum(r.failed for r in records)
    assert left_out.keys() <= {"silent", "excluded", "protocol"}
    assert left_out["silent"] >= 1
    assert found["run_clients"] == {"": records[-1].clients + records[-1].failed}
    assert found["run_clients_seen"] == {"": 9}
    assert found["run_epsilon"] == {"": pytest.approx(records[-1].epsilon)}
    assert {kind: n for kind, n in found["join_refused_total"].items() if n} == {"request": 1}
    assert found["runs_begun_total"] == {"": 1}
    assert found["runs_ended_total"] == {"finished": 1}
    stages = found["run_stage_seconds_total"]
    assert set(stages) == {
        *("set-up", "input", "confirm", "unmask", "aggregate", "evaluate", "commit"),
    }
    assert all(seconds > 0.0 for seconds in stages.values())
    # A round is set up, answered, unmasked and aggregated; measured and committed it is later.
    inside = sum(stages[s] for s in ("set-up", "input", "confirm", "unmask", "aggregate"))
    assert inside <= found["run_round_seconds_total"][""] + 0.01


def test_an_attempt_that_fails_is_told_and_the_run_resumed(run: Callable[..., RunSummary]) -> None:
    def many_die(message: Message, client: int) -> Message | None:
        is_lost = client < 6 and stage_of(message) == "confirm"
        return failed(message, 8, "crashed") if is_lost else None

    with pytest.raises(FedveilError, match="given up after"):
        run(many_die, ("secagg.retries", 1))
    found = events()
    lost = [e for e in found if e["event"] == "attempt-failed"]
    assert [(e["round"], e["attempt"]) for e in lost] == [(1, 1), (1, 2)]
    assert {e["kind"] for e in found if e["event"] == "drop"} >= {"crashed"}
    assert not [e for e in found if e["event"] == "round"]
    assert (found[-1]["event"], found[-1]["outcome"]) == ("end", "failed")
    assert "given up after 2 attempts" in str(found[-1]["detail"])
    metrics = CoordinatorMetrics(home() / "runs", trail(home())[0], lambda: 10, 0.0)
    run(lambda *_: None, resume=True)
    after = events()[len(found) :]
    assert after[0]["event"] == "resume"
    assert after[0]["config_sha256"] == found[0]["config_sha256"]
    assert [e["round"] for e in after if e["event"] == "round"] == [1, 2]
    told = scraped(metrics)
    assert told["run_attempts_failed_total"] == {"": 2}
    assert told["run_left_out_total"]["crashed"] >= 6


def test_no_round_is_asked_for_where_nothing_can_be_written_down(
    run: Callable[..., RunSummary], tmp_path: Path
) -> None:
    asked: list[int] = []

    def remember(_: Message, client: int) -> None:
        asked.append(client)

    trail(home())[0].mkdir(parents=True)
    with pytest.raises(AuditError, match="nothing is done without it"):
        run(remember)
    assert asked == []
