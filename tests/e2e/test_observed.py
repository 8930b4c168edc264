"""A federation of real processes, watched: its logs, its metrics, its status, its audit logs."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from deployed import free_ports
from kits import Kits, kits
from prometheus_client.parser import text_string_to_metric_families

from fedveil.audit_log.trail import read_events, trail
from fedveil.server.run_watch import committed_rounds

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLIENTS = ("ward-a", "ward-b", "ward-c")
SETTINGS = "federation.rounds = 2\nfederation.min_clients = 2\nfederation.join_timeout = 30\n"


class Watched:
    """The federation after a run in which ward-c refuses, and everything was said as JSON."""

    def __init__(self, federation: Kits) -> None:
        self.federation = federation
        self.coordinator = federation.kit("coordinator")
        (self.port,) = free_ports(1)
        policy = federation.kit("ward-c") / "policy.toml"
        text = policy.read_text()
        policy.write_text(text.replace("min_cohort = 2", "min_cohort = 50"))
        assert "min_cohort = 50" in policy.read_text()
        asked = ("--log-format", "json")
        metrics = ("--metrics-port", str(self.port))
        federation.start("server", "fedveil", "server", str(self.coordinator), *asked, *metrics)
        federation.start_clients()
        federation.wait_for_clients()
        federation.start("run", "fedveil", "run", str(self.coordinator), *asked)
        assert federation.wait_for_end("run", 600.0) == 0, federation.logs()
        (self.run,) = (self.coordinator / "runs").iterdir()

    def scraped(self) -> dict[str, dict[str, float]]:
        text = httpx.get(f"http://127.0.0.1:{self.port}/metrics", trust_env=False).text
        found: defaultdict[str, dict[str, float]] = defaultdict(dict)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                by = ",".join(v for k, v in sample.labels.items() if k != "run")
                found[sample.name.removeprefix("fedveil_")][by] = sample.value
        return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with kits(tmp_path_factory.mktemp("kits"), CLIENTS, SETTINGS) as federation:
        yield Watched(federation)


def test_the_metrics_of_the_server_fit_the_run(watched: Watched) -> None:
    found, records = watched.scraped(), committed_rounds(watched.run)
    assert found["registered_clients"] == {"": 3}
    assert found["run_rounds_total"] == {"": 2}
    assert found["run_replies_total"] == {"": 4}
    assert found["run_clients_seen"] == {"": 2}
    assert found["run_epsilon"] == {"": pytest.approx(records[-1].epsilon)}
    assert {kind: n for kind, n in found["join_refused_total"].items() if n} == {"policy": 1}
    assert (found["runs_begun_total"], found["runs_ended_total"]) == ({"": 1}, {"finished": 1})
    stages = found["run_stage_seconds_total"]
    inside = sum(stages[s] for s in ("set-up", "input", "confirm", "unmask", "aggregate"))
    assert 0.0 < inside <= found["run_round_seconds_total"][""] + 0.01
    assert stages["commit"] > 0.0


def test_the_status_tells_round_clients_epsilon_and_who_was_refused(watched: Watched) -> None:
    command = watched.federation.command
    told = json.loads(command("status", str(watched.coordinator), "--json").stdout)
    (folder,) = told["folders"]
    records = committed_rounds(watched.run)
    assert folder == {
        "run": told["runs"][0]["number"],
        "folder": watched.run.name,
        "round": 2,
        "rounds": 2,
        "clients": 2,
        "left_out": 0,
        "epsilon": records[-1].epsilon,
        "trouble": "",
    }
    (refusal,) = told["refusals"]
    assert refusal["kind"] == "policy"
    assert refusal["run"] == folder["run"]
    shown = command("status", str(watched.coordinator)).stdout
    assert "2/2" in shown
    assert "policy" in shown
    client = json.loads(command("status", str(watched.federation.kit("ward-c")), "--json").stdout)
    assert client["node"] is True
    # It is asked before every round, in case that its owner has changed the policy.
    assert {one["kind"] for one in client["refusals"]} == {"refused"}
    joined = json.loads(command("status", str(watched.federation.kit("ward-a")), "--json").stdout)
    assert joined["last"]["outcome"] == "ok"
    assert joined["refusals"] == []
    assert list(joined["epsilon"].values()) == [pytest.approx(records[-1].epsilon, rel=1e-6)]


def test_the_audit_logs_tell_one_story_and_verify(watched: Watched) -> None:
    events, _ = read_events(trail(watched.coordinator)[0])
    kinds = [event["event"] for event in events]
    for first, then in (("server-start", "register"), ("submit", "begin"), ("begin", "end")):
        assert kinds.index(first) < kinds.index(then)
    assert kinds.count("register") == 3
    assert kinds.count("join") == 2
    (submit,) = [event for event in events if event["event"] == "submit"]
    assert str(submit["user"]).endswith(f"({os.geteuid()})")
    roster = hashlib.sha256((watched.coordinator / "roster.toml").read_bytes()).hexdigest()
    (begin,) = [event for event in events if event["event"] == "begin"]
    assert begin["roster_sha256"] == submit["roster_sha256"] == roster
    number = begin["run"]
    assert [e["run"] for e in events if e["event"] == "submitted"] == [number]
    rounds = [event for event in events if event["event"] == "round"]
    assert [event["clients"] for event in rounds] == ["client-0 (ward-a), client-1 (ward-b)"] * 2
    (ended,) = [event for event in events if event["event"] == "ended"]
    assert ended["outcome"] == "finished:completed"

    bundles = set()
    for name in CLIENTS:
        own, _ = read_events(trail(watched.federation.kit(name))[0])
        (start,) = [event for event in own if event["event"] == "node-start"]
        assert start["roster_sha256"] == roster
        begun = [event for event in own if event["event"] == "task"]
        done = [event for event in own if event["event"] == "task-end"]
        assert len(begun) == len(done) > 0
        assert {event["run"] for event in begun} == {number}
        assert {event["component"] for event in begun} == {"fedveil.client.app:app"}
        outcomes = {event["outcome"] for event in done}
        assert outcomes == ({"refused"} if name == "ward-c" else {"ok"})
        bundles |= {str(event["bundle_sha256"]) for event in begun}
    assert len(bundles) == 1, "all were sent the same code"
    assert len(bundles.pop()) == 64

    for kit in ("coordinator", *CLIENTS):
        told = watched.federation.command("audit-log", "verify", str(watched.federation.kit(kit)))
        assert "the last that was noted" in told.stdout
    shown = watched.federation.command(
        "audit-log", "show", str(watched.coordinator), "--event", "refuse"
    ).stdout
    assert len(shown.splitlines()) == 1
    assert "kind=policy" in shown


def test_a_log_that_was_tampered_with_is_told_by_the_command(
    watched: Watched, tmp_path: Path
) -> None:
    kit = tmp_path / "kit"
    log, head = trail(kit)
    source, source_head = trail(watched.federation.kit("ward-c"))
    head.parent.mkdir(parents=True, mode=0o700)
    head.write_bytes(source_head.read_bytes())
    lines = source.read_bytes().splitlines(keepends=True)
    whitewashed = [line.replace(b'"refused"', b'"ok"') for line in lines]
    assert whitewashed != lines
    for spoilt in (whitewashed, lines[:-1]):
        log.write_bytes(b"".join(spoilt))
        done = watched.federation.command("audit-log", "verify", str(kit), code=1)
        assert "was changed" in done.stderr or "cut off at the end" in done.stderr
        shown = watched.federation.command("audit-log", "show", str(kit), code=1)
        assert "error:" in shown.stderr


def test_every_line_is_json_to_the_end(watched: Watched) -> None:
    """Run last: it ends them all."""
    federation, coordinator = watched.federation, str(watched.coordinator)
    for code, arguments in (
        (2, ("run", coordinator, "--no-such-option")),
        (1, ("run", coordinator, "--set", "no.such=1")),
        (1, ("client", coordinator)),
        (1, ("server", coordinator)),  # its port is taken
    ):
        done = federation.command(*arguments, "--log-format", "json", code=code)
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert json.loads(line)["level"] == "error"
    # A worker that dies by a signal, and a server that is ended.
    federation.processes["ward-b"].send_signal(signal.SIGTERM)
    assert federation.wait_for_end("ward-b") == 0
    federation.processes["server"].send_signal(signal.SIGTERM)
    assert federation.wait_for_end("server") == 0
    federation.wait_for("ward-a", "started anew")
    for name in ("server", "run", *CLIENTS):
        lines = federation.log(name).splitlines()
        assert lines
        for line in lines:
            record = json.loads(line)
            assert {"time", "level", "source", "message"} <= record.keys(), line
    sources = {json.loads(line)["source"] for line in federation.log("server").splitlines()}
    assert "fedveil.superlink" in sources, "Flower's own lines are among them"
    sources = {json.loads(line)["source"] for line in federation.log("ward-a").splitlines()}
    assert {"fedveil.supernode", "fedveil.task"} & sources
    told = [json.loads(line) for line in federation.log("run").splitlines()]
    assert [record["round"] for record in told if "round" in record] == [1, 2]
    assert all("epsilon" in record for record in told if "round" in record)
