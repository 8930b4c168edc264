"""The guarded runner at Flower's own interface for tasks, with workers that are real processes."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr.app import Message
from supernode_double import RUN, SuperNodeDouble, supernode

from fedveil.audit_log.chain import read_head
from fedveil.audit_log.trail import AuditTrail, Event, read_events, trail
from fedveil.audit_log.verify import verify_audit
from fedveil.client.flower_runtime import SuperNodeGoneError, TaskQueue
from fedveil.client.runner.gpu import GpuTurn
from fedveil.client.runner.limits import TaskLimits
from fedveil.client.runner.runner import MessageStuckError, Runner
from fedveil.client.runner.service import child_environment
from fedveil.client.runner.task_trail import TaskTrail
from fedveil.client.runner.worker_process import WorkerProcess, WorkerRefusedError
from fedveil.flower import CLIENT_APP_CRASHED, CLIENT_APP_RAISED

SECRET = b"of this test alone"
LIMITS = TaskLimits(2 << 30, 60.0)
TESTS = Path(__file__).resolve().parents[2]


@pytest.fixture
def node() -> Iterator[SuperNodeDouble]:
    with supernode(SECRET) as double:
        yield double


def environment(home: Path) -> dict[str, str]:
    paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return child_environment(os.environ, home, "") | {"PYTHONPATH": paths}


def runner(
    node: SuperNodeDouble,
    home: Path,
    limits: TaskLimits = LIMITS,
    app: str = "runner_apps:app",
    turn: GpuTurn | None = None,
) -> Runner:
    def start() -> WorkerProcess:
        return WorkerProcess(app, node.address, limits, environment(home))

    tasks = TaskTrail(AuditTrail(audited(home)), app)
    return Runner(node.address, SECRET, start, limits, turn or GpuTurn(""), tasks)


def audited(home: Path) -> Path:
    """Return where the audit log of a node lies here: apart from what the node writes itself."""
    return home.with_name(f"{home.name}-audit")


def written(home: Path) -> list[Event]:
    log, head = trail(audited(home))
    verify_audit([log], kept=read_head(head))
    return read_events(log)[0]


def told(reply: Message) -> dict[str, str]:
    assert not reply.has_error(), reply.error.reason
    return {name: str(value) for name, value in reply.content.config_records["told"].items()}


def wait_until_dead(pid: int) -> None:
    # Its state in /proc is that of the first thread, which may be dead before the others are. What
    # counts is that it can be waited for, as its runner will.
    deadline = time.monotonic() + 10
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


Ask = Callable[[str], Message]


def asking(runner: Runner, node: SuperNodeDouble) -> Ask:
    def ask(action: str) -> Message:
        node.ask(action)
        assert runner.look()
        reply = node.reply()
        assert reply.metadata.reply_to_message_id
        return reply

    return ask


def test_one_warm_process_answers_one_message_after_the_other(
    node: SuperNodeDouble, tmp_path: Path
) -> None:
    with runner(node, tmp_path) as one:
        assert not one.look(), "there is no task yet"
        answers = [told(asking(one, node)("who")) for _ in range(3)]
    assert [a["seen"] for a in answers] == ["1", "2", "3"]
    assert [a["counted"] for a in answers] == ["1", "2", "3"], "the state goes from task to task"
    assert len({a["pid"] for a in answers}) == 1
    assert int(answers[0]["pid"]) != os.getpid()
    assert not Path(f"/proc/{answers[0]['pid']}").exists(), "it ends with its runner"


@pytest.mark.parametrize(
    ("action", "how"),
    [("crash", "was ended by SIGSEGV"), ("leave", "ended with code 3")],
)
def test_a_crash_is_reported_and_the_next_message_answered(
    node: SuperNodeDouble, tmp_path: Path, action: str, how: str
) -> None:
    with runner(node, tmp_path) as one:
        ask = asking(one, node)
        before = told(ask("who"))
        error = ask(action).error
        after = told(ask("who"))
    assert error.code == CLIENT_APP_CRASHED
    assert how in (error.reason or "")
    assert after["pid"] != before["pid"]
    # What the task that crashed had in mind is not kept.
    assert after["counted"] == "2"


def test_a_process_that_is_killed_from_outside_is_reported_too(
    node: SuperNodeDouble, tmp_path: Path
) -> None:
    with runner(node, tmp_path) as one:
        ask = asking(one, node)
        pid = int(told(ask("who"))["pid"])
        node.ask("hang")
        killing = threading.Timer(1.0, os.kill, (pid, 9))
        killing.start()
        assert one.look()
        killing.join()
        assert "was ended by SIGKILL" in (node.reply().error.reason or "")
        assert told(ask("who"))["pid"] != str(pid)


def test_a_process_that_died_between_two_messages_costs_neither(
    node: SuperNodeDouble, tmp_path: Path
) -> None:
    with runner(node, tmp_path) as one:
        ask = asking(one, node)
        pid = int(told(ask("who"))["pid"])
        os.kill(pid, 9)
        wait_until_dead(pid)
        assert told(ask("who"))["pid"] != str(pid)


@pytest.mark.parametrize(
    ("action", "words"), [("fail", "seven is no prime"), ("quit", "had enough")]
)
def test_what_an_app_raises_is_reported_as_flower_does_and_the_process_stays(
    node: SuperNodeDouble, tmp_path: Path, action: str, words: str
) -> None:
    with runner(node, tmp_path) as one:
        ask = asking(one, node)
        before = told(ask("who"))
        error = ask(action).error
        assert error.code == CLIENT_APP_RAISED
        assert words in (error.reason or "")
        assert told(ask("who"))["pid"] == before["pid"]


def test_a_message_that_takes_too_long_is_ended(node: SuperNodeDouble, tmp_path: Path) -> None:
    limits = TaskLimits(2 << 30, 2.0)
    with runner(node, tmp_path, limits) as one:
        ask = asking(one, node)
        before = told(ask("who"))
        error = ask("hang").error
        assert error.reason == limits.time_words
        assert "2 s" in limits.time_words
        assert told(ask("who"))["pid"] != before["pid"]


@pytest.mark.parametrize("action", ["eat", "eat_torch"])
def test_a_message_that_takes_too_much_memory_is_ended(
    node: SuperNodeDouble, tmp_path: Path, action: str
) -> None:
    with runner(node, tmp_path) as one:
        ask = asking(one, node)
        before = told(ask("who"))
        error = ask(action).error
        assert error.reason == LIMITS.memory_words
        assert "2048 MiB" in LIMITS.memory_words
        assert told(ask("who"))["pid"] != before["pid"]


def test_the_process_leaves_no_core_dump(node: SuperNodeDouble, tmp_path: Path) -> None:
    with runner(node, tmp_path) as one:
        assert told(asking(one, node)("core"))["limit"] in ("0", "1")


def hostile_bundle(folder: Path) -> bytes:
    """Return a bundle whose code writes a file when it is imported, under every name it can."""
    code = f"open({str(folder / 'imported')!r}, 'w').close()\nimport hostile_helper\n"
    project = (
        '[project]\nname = "hostile"\nversion = "1.0.0"\n[tool.flwr.app]\npublisher = "x"\n'
        '[tool.flwr.app.components]\nserverapp = "hostile:app"\nclientapp = "hostile:app"\n'
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as bundle:
        bundle.writestr("pyproject.toml", project)
        names = ("hostile", "hostile_helper", "fedveil/__init__", "runner_apps", "sitecustomize")
        for name in names:
            bundle.writestr(f"{name}.py", code)
        bundle.writestr("fedveil/client/__init__.py", code)
        bundle.writestr("fedveil/client/app.py", code)
    return packed.getvalue()


def test_code_of_the_bundle_is_neither_installed_nor_run(tmp_path: Path) -> None:
    home = tmp_path / "kit"
    home.mkdir()
    bundle = hostile_bundle(tmp_path)
    with supernode(SECRET, bundle) as node, runner(node, home) as one:
        answer = told(asking(one, node)("who"))
    assert answer["hostile"] == ""
    assert not (tmp_path / "imported").exists()
    assert list(home.rglob("*")) == [], "nothing of the bundle was written"

    # The bundle would have shown itself: run by hand, it writes the file.
    with zipfile.ZipFile(io.BytesIO(bundle)) as packed:
        packed.extractall(tmp_path / "unpacked")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path / "unpacked"))
        __import__("hostile")
    assert (tmp_path / "imported").exists()
    for name in ("hostile", "hostile_helper"):
        sys.modules.pop(name, None)


def test_nothing_is_imported_from_where_the_node_happens_to_stand(
    node: SuperNodeDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("runner_apps", "fedveil", "flwr"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    with runner(node, tmp_path) as one:
        assert told(asking(one, node)("who"))["seen"] == "1"
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("app", "words"),
    [
        ("no.such.module:app", "cannot be imported"),
        ("runner_apps:nothing", "cannot be imported"),
        ("runner_apps:not_an_app", "is a int, not a Flower ClientApp"),
    ],
)
def test_an_app_that_is_none_is_refused_once_and_for_all(
    node: SuperNodeDouble, tmp_path: Path, app: str, words: str
) -> None:
    with runner(node, tmp_path, app=app) as one, pytest.raises(WorkerRefusedError, match=words):
        one.look()


def test_a_task_is_claimed_with_the_secret_alone(node: SuperNodeDouble) -> None:
    node.ask("who")
    stranger = TaskQueue(node.address, b"guessed")
    with pytest.raises(SuperNodeGoneError, match="401"):
        stranger.claim()
    stranger.close()
    owner = TaskQueue(node.address, SECRET)
    assert owner.claim()
    assert owner.claim() is None, "a task is given out once"
    owner.close()


def test_a_task_waits_for_its_turn_on_the_gpu(node: SuperNodeDouble, tmp_path: Path) -> None:
    other, mine = GpuTurn("0", tmp_path), GpuTurn("0", tmp_path)
    assert other.take()
    with runner(node, tmp_path, turn=mine) as one:
        assert not one.look()
        node.ask("who")
        working = threading.Thread(target=one.look)
        working.start()
        working.join(2.0)
        assert working.is_alive(), "the other has the turn"
        assert not node.state.get_messages_legacy(is_reply=True)
        other.leave()
        working.join(30.0)
        assert told(node.reply())["seen"] == "1"
        assert other.take(), "it was left after the task"
    other.close()
    mine.close()


def test_a_message_that_is_stored_after_its_task_was_given_out_is_answered(
    node: SuperNodeDouble, tmp_path: Path
) -> None:
    with runner(node, tmp_path) as one:
        told(asking(one, node)("who"))
        node.give_out()
        storing = threading.Timer(1.0, node.put, ("who",))
        storing.start()
        assert one.look()
        storing.join()
        assert told(node.reply())["seen"] == "2"


def test_a_task_without_a_message_is_told_so_that_the_supernode_is_started_anew(
    node: SuperNodeDouble, tmp_path: Path
) -> None:
    with runner(node, tmp_path) as one:
        node.give_out()
        with pytest.raises(MessageStuckError, match=r"is lost: the SuperNode has no message for"):
            one.look()


def test_one_whose_process_dies_before_it_takes_the_message_is_told_too(
    node: SuperNodeDouble, tmp_path: Path
) -> None:
    with runner(node, tmp_path) as one:
        pid = int(told(asking(one, node)("who"))["pid"])
        node.give_out()
        killing = threading.Timer(1.0, os.kill, (pid, 9))
        killing.start()
        with pytest.raises(MessageStuckError, match="is lost: the SuperNode of this client"):
            one.look()
        killing.join()


def test_a_supernode_that_is_not_there_is_told(tmp_path: Path) -> None:
    with supernode(SECRET) as node:
        one = runner(node, tmp_path)
    with one, pytest.raises(SuperNodeGoneError, match="the SuperNode of this client"):
        one.look()


def test_each_message_is_written_down_before_it_is_run_and_when_it_has_ended(
    tmp_path: Path,
) -> None:
    bundle = hostile_bundle(tmp_path)
    with supernode(SECRET, bundle) as node, runner(node, tmp_path) as one:
        ask = asking(one, node)
        for action in ("who", "fail", "refuse", "crash"):
            ask(action)
    events = written(tmp_path)
    assert [event["event"] for event in events] == ["task", "task-end"] * 4
    for begun, ended in zip(events[::2], events[1::2], strict=True):
        assert begun["run"] == ended["run"] == str(RUN)
        assert begun["message"] == ended["message"]
        assert begun["component"] == "runner_apps:app"
        assert begun["bundle_sha256"] == hashlib.sha256(bundle).hexdigest()
    assert str(events[0]["message"]) == f"query.who of run {RUN}"
    ended = events[1::2]
    assert [event["outcome"] for event in ended] == ["ok", "error", "refused", "crashed"]
    assert "seven is no prime" in str(ended[1]["detail"])
    assert "not with my data" in str(ended[2]["detail"])
    assert "was ended by SIGSEGV" in str(ended[3]["detail"])


def test_limits_are_written_down(node: SuperNodeDouble, tmp_path: Path) -> None:
    with runner(node, tmp_path, TaskLimits(2 << 30, 2.0)) as one:
        ask = asking(one, node)
        ask("hang")
        ask("eat")
    outcomes = [event["outcome"] for event in written(tmp_path) if event["event"] == "task-end"]
    assert outcomes == ["out-of-time", "out-of-memory"]


def test_nothing_is_run_that_cannot_be_written_down(node: SuperNodeDouble, tmp_path: Path) -> None:
    with runner(node, tmp_path) as one:
        ask = asking(one, node)
        told(ask("who"))
        log, _ = trail(audited(tmp_path))
        log.write_bytes(log.read_bytes().replace(b'"ok"', b'"no"'))
        refused = ask("who")
        assert "audit log cannot be written" in refused.error.reason
        log.rename(log.with_name("kept.jsonl"))
        assert told(ask("who"))["counted"] == "2", "the one in between was never run"


def test_a_runner_that_is_killed_leaves_the_message_that_it_had_begun(tmp_path: Path) -> None:
    """Read from the log alone: what was begun and has no end was at work when it came."""
    with supernode(SECRET) as node:
        program = (
            "import sys; from pathlib import Path; import test_runner as t\n"
            "class Node: address = sys.argv[1]\n"
            "one = t.runner(Node, Path(sys.argv[2]))\n"
            "while True: one.look()\n"
        )
        paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        command = [sys.executable, "-c", program, node.address, str(tmp_path)]
        log, _ = trail(audited(tmp_path))
        with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}) as process:
            node.ask("hang")
            deadline = time.monotonic() + 60
            while not log.exists() or b'"event":"task"' not in log.read_bytes():
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
    (event,) = written(tmp_path)
    assert str(event["message"]).startswith("query.hang")
