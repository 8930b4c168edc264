"""`fedveil predict`: what it asks, what it shows, and what each mistake says."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from certificates import make_certificate
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from served_run import answer, run_of, serving, some_rows
from served_tasks import fresh_run
from typer.testing import CliRunner, Result

from fedveil.cli import app
from fedveil.cli_predict_access import AskError
from fedveil.cli_predict_inputs import parse_rows
from fedveil.cli_predict_readings import read_answers
from fedveil.errors import FedveilError
from fedveil.server.inference.http_server import HttpServer
from fedveil.server.inference.oip import Limits
from fedveil.server.inference.outputs import parse_outputs
from fedveil.server.inference.policy import PolicyOptions
from fedveil.server.inference.service import InferenceService
from fedveil.server.inference.source import open_source
from fedveil.server.inference.tls import TlsFiles
from fedveil.server.inference.tokens import TokenFile, add_token
from fedveil.tasks.digits import Digits
from fedveil.tasks.partition import PartitionSpec

SECRET = "fvt_made_up"  # noqa: S105
Served = tuple[InferenceService, str]
PUBLIC = Digits(seed=3, partition=PartitionSpec("iid")).public_test()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("FEDVEIL_HOME", str(tmp_path_factory.mktemp("home")))
        run_of(folder / "digits", 3)
        fresh_run(folder / "breast-cancer", "breast-cancer", epsilon=None)
        fresh_run(folder / "shakespeare", "shakespeare")
        yield {
            name: stack.enter_context(serving(folder / name, Limits(rows=100)))
            for name in ("digits", "breast-cancer", "shakespeare")
        }


def ask(url: str, *arguments: str, stdin: bytes = b"", **environment: str) -> Result:
    return CliRunner().invoke(
        app, ["predict", url, *arguments], input=stdin, env={"COLUMNS": "100", **environment}
    )


def told(url: str, *arguments: str, stdin: bytes = b"", **environment: str) -> dict:
    result = ask(url, *arguments, "--json", stdin=stdin, **environment)
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def refused(url: str, *arguments: str, stdin: bytes = b"", **environment: str) -> str:
    """Return the one line of a mistake."""
    result = ask(url, *arguments, stdin=stdin, **environment)
    assert isinstance(result.exception, FedveilError), (result.output, result.exception)
    assert result.exit_code == 1
    message = str(result.exception)
    assert "\n" not in message
    return message


def test_rows_of_the_public_test_set_as_people_see_them(served: dict[str, Served]) -> None:
    _, url = served["digits"]
    result = ask(url)
    assert result.exit_code == 0, result.exception
    found = answer(3, PUBLIC.x[:5].numpy())
    truth = PUBLIC.y[:5].tolist()
    for row, (label, true) in enumerate(zip(found.argmax(1), truth, strict=True)):
        weights = np.exp(found[row] - found[row].max())
        assert f"│ {row}   │ {label}      │ {true}    │" in result.stdout
        assert f"{100 * (weights / weights.sum()).max():.1f} %" in result.stdout
    right = int((found.argmax(1) == truth).sum())
    assert f"{right} of 5 answers are the true class" in result.stdout
    assert "digits, round 3 of run digits-run" in result.stdout
    assert "epsilon 0.750 at delta = 1e-05, for every record" in result.stdout


def test_many_rows_go_in_several_requests_and_come_in_order(served: dict[str, Served]) -> None:
    service, url = served["digits"]
    before = service.metrics.text().decode()
    found = told(url, "--rows", ":")
    after = service.metrics.text().decode()
    # 360 rows, of which the service takes 100 at once.
    assert _count(after) - _count(before) == 4
    assert [a["row"] for a in found["answers"]] == list(range(360))
    expected = answer(3, PUBLIC.x.numpy())
    assert [a["class"] for a in found["answers"]] == expected.argmax(1).tolist()
    assert [a["true"] for a in found["answers"]] == PUBLIC.y.tolist()
    assert (found["round"], found["epsilon"], found["delta"]) == (3, 0.75, 1e-5)
    sums = [sum(a["probabilities"]) for a in found["answers"]]
    np.testing.assert_allclose(sums, 1)


def _count(text: str) -> float:
    name = 'fedveil_requests_total{outcome="ok",protocol="http"} '
    return next((float(line.split()[1]) for line in text.splitlines() if name in line), 0.0)


def test_files_of_every_kind(served: dict[str, Served], tmp_path: Path) -> None:
    _, url = served["digits"]
    rows = some_rows(3)
    expected = answer(3, rows).argmax(1).tolist()
    np.save(tmp_path / "rows.npy", rows.astype(np.int64))
    np.savetxt(tmp_path / "rows.csv", rows, delimiter=",")
    (tmp_path / "rows.json").write_text(json.dumps(rows.tolist()))
    for name in ("rows.npy", "rows.csv", "rows.json"):
        path = tmp_path / name
        for found in (
            told(url, "--input", str(path)),
            told(url, "--input", "-", stdin=path.read_bytes()),
        ):
            assert [a["class"] for a in found["answers"]] == expected
            assert "true" not in found["answers"][0]
    np.save(tmp_path / "one.npy", rows[1])
    assert [a["class"] for a in told(url, "--input", str(tmp_path / "one.npy"))["answers"]] == [
        expected[1]
    ]


def test_an_image_is_brought_to_the_size_of_the_model(
    served: dict[str, Served], tmp_path: Path
) -> None:
    _, url = served["digits"]
    pixels = (PUBLIC.x[9].numpy() * 255).round().astype(np.uint8).reshape(8, 8)
    expected = int(answer(3, pixels.reshape(1, 64) / 255).argmax())
    Image.fromarray(pixels.repeat(5, 0).repeat(5, 1)).convert("RGB").save(tmp_path / "a.png")
    for name in (str(tmp_path / "a.png"), "-"):
        found = told(url, "--input", name, stdin=(tmp_path / "a.png").read_bytes())
        assert [a["class"] for a in found["answers"]] == [expected]


def test_named_fields_and_names_of_classes(served: dict[str, Served], tmp_path: Path) -> None:
    service, url = served["breast-cancer"]
    form = service.engine.task.form()
    assert form is not None
    assert form.kind == "fields"
    people = [{f.name: f.low + share * (f.high - f.low) for f in form.fields} for share in (0, 1)]
    names = [field.name for field in form.fields][::-1]
    lines = [names, *([str(person[name]) for name in names] for person in people)]
    (tmp_path / "people.csv").write_text("\n".join(map(",".join, lines)))
    (tmp_path / "people.json").write_text(json.dumps(people))
    rows = np.array([[-1.0] * 30, [1.0] * 30], np.float32)
    logits = service.engine.run(service.holder.current, rows).reshape(-1)
    for name in ("people.csv", "people.json"):
        found = told(url, "--input", str(tmp_path / name))
        assert [a["class"] for a in found["answers"]] == (logits > 0).astype(int).tolist()
        assert found["answers"][0]["name"] == ("malignant", "benign")[int(logits[0] > 0)]
        chances = [a["probabilities"][1] for a in found["answers"]]
        np.testing.assert_allclose(chances, 1 / (1 + np.exp(-logits)), rtol=1e-4)
    shown = ask(url, "--input", str(tmp_path / "people.csv")).stdout
    assert "no privacy is claimed" in shown
    (tmp_path / "people.csv").write_text("age\n7\n")
    assert "people.csv: a row has no 'mean radius'" in refused(
        url, "--input", str(tmp_path / "people.csv")
    )


def test_a_text(served: dict[str, Served]) -> None:
    service, url = served["shakespeare"]
    form = service.engine.task.form()
    assert form is not None
    assert form.kind == "text"
    text = "Shall I compare thee \u00e9\n"
    logits = service.engine.run(service.holder.current, np.array([form.encode(text)]))
    label = int(logits.argmax())
    for found in (told(url, "--text", text), told(url, "--input", "-", stdin=text.encode())):
        assert found["answers"][0]["class"] == label
        assert found["answers"][0]["name"] == service.engine.task.class_names[label]


@pytest.mark.parametrize("form", ["labels", "top-3", "round-1"])
def test_answers_that_tell_less(form: str, tmp_path: Path) -> None:
    run_of(tmp_path / "run", 3)
    policy = PolicyOptions(outputs=parse_outputs(form))
    with serving(tmp_path / "run", policy=policy) as (_, url):
        found = told(url, "--rows", "0:40")
        shown = ask(url).stdout
    expected = answer(3, PUBLIC.x[:40].numpy()).argmax(1).tolist()
    assert [a["class"] for a in found["answers"]] == expected
    assert ("probabilities" in found["answers"][0]) == (form != "labels")
    assert ("probability" in shown) == (form != "labels")


@pytest.mark.parametrize("place", ["/", "/v2", "/v2/", "/v2/models/digits/infer", "/v2/health"])
def test_an_address_of_the_protocol_is_one_of_the_service(
    place: str, served: dict[str, Served]
) -> None:
    assert told(served["digits"][1] + place, "--rows", "0")["model"] == "digits"


def test_another_place_below_an_address_is_not_guessed(served: dict[str, Served]) -> None:
    assert "/v3: " in refused(served["digits"][1] + "/v3", "--rows", "0")


BAD = [
    (("--rows", "360"), "row 360 does not exist; the public test set of digits has rows 0 to 359"),
    (("--rows", "x"), "--rows x: is no row, as 7, and no range of rows, as 0:5"),
    (("--task", "mnist"), "serves digits, not mnist"),
    (("--text", "hello"), "digits takes no text"),
    (("--rows", "1", "--text", "a"), "give one of them"),
    (("--input", "nowhere.csv"), "nowhere.csv: cannot be read (No such file or directory)"),
    (("--input", "x.exe"), "x.exe: is of no known kind"),
    (("--cert", "x"), "--cert and --key belong together"),
    (("--ca", "nowhere.pem"), "--ca nowhere.pem: there is no such file"),
    (("--ca", __file__), "test_cli_predict.py: holds no PEM certificate"),
    (("--token-file", "nowhere"), "--token-file nowhere: there is no such file; save in it"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], says: str, served: dict[str, Served]
) -> None:
    assert says in refused(served["digits"][1], *arguments)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"1,2,3\n", "rows of shape [3] do not fit the model, whose rows are [64]"),
        (b"1,2\n1\n", "row 2 is not 2 numbers"),
        (b"1,x\n", "begins with names, but digits has no named fields"),
        (b"", "holds no rows"),
        (b"[1,\n2", "is no valid JSON (line 2, column 2: "),
        (b"[[1], [1, 2]]", "row 2 has 2 values, and the first one has 1 values"),
        (b"[[1], [2], 3]", "row 3 is no list, and the first one has 1 values"),
        (b"[[[1], [2]], [[1], [2, 3]]]", "row 2 has lists of unequal length in it"),
        (b'["a"]', "holds something else than numbers"),
        (b"[" * 100_000, "is no valid JSON: nested too deeply"),
        (b"\x93NUMPYx", "is no array of numpy"),
        (b"\x89PNG\r\n", "is no image that can be read"),
        (b"\xff\xfe", "is no text in UTF-8"),
        (b",".join([b"nan"] * 64), "holds NaN, infinity"),
        (b",".join([b"1e99"] * 64), "holds NaN, infinity, or numbers too large"),
    ],
)
def test_inputs_that_do_not_fit_are_one_line(
    content: bytes, says: str, served: dict[str, Served]
) -> None:
    found = refused(served["digits"][1], "--input", "-", stdin=content)
    assert found.startswith("standard input: ")
    assert says in found


def test_codes_are_whole_numbers(served: dict[str, Served], tmp_path: Path) -> None:
    path = tmp_path / "codes.npy"
    np.save(path, np.full((2, 80), 0.5))
    assert "holds fractions, and the model takes INT64" in refused(
        served["shakespeare"][1], "--input", str(path)
    )


def test_pickles_are_not_opened(served: dict[str, Served], tmp_path: Path) -> None:
    """An array of objects runs code when it is loaded."""

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "hit",)  # type: ignore[return-value]

    np.save(tmp_path / "x.npy", np.array([Attack()], dtype=object), allow_pickle=True)
    assert "is no array of numpy" in refused(
        served["digits"][1], "--input", str(tmp_path / "x.npy")
    )
    assert not (tmp_path / "hit").exists()


def test_tokens_come_from_a_file_or_the_surroundings(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1)
    path = tmp_path / "tokens.json"
    token = add_token(path, "person", ("infer", "metadata"))
    blind = add_token(path, "blind", ("infer",))
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text(f"{token}\n")
    slow = PolicyOptions(rate=0.01)
    with serving(tmp_path / "run", tokens=TokenFile(path)) as (_, url):
        assert "takes a token; give --token-file FILE, or set FEDVEIL_TOKEN" in refused(url)
        assert len(told(url, "--token-file", str(file))["answers"]) == 5
        assert len(told(url, FEDVEIL_TOKEN=token)["answers"]) == 5
        assert "refuses (401): the token is not known" in refused(url, FEDVEIL_TOKEN=SECRET)
        assert (
            "refuses (403): the token of blind is not good for metadata; this command asks with "
            "the scopes infer and metadata" in refused(url, FEDVEIL_TOKEN=blind)
        )
        assert "has blanks in it" in refused(url, FEDVEIL_TOKEN=f"{token} x")
        file.chmod(0o644)
        assert token not in (open_to_all := refused(url, "--token-file", str(file)))
        assert "0644" in open_to_all
    with serving(tmp_path / "run", policy=slow) as (_, url):
        for _ in range(200):
            httpx.get(f"{url}/about")
            if httpx.get(f"{url}/about").status_code == 429:
                break
        assert "refuses (429): " in (busy := refused(url))
        assert "try again in" in busy


def test_a_token_does_not_cross_a_network_in_clear(tmp_path: Path) -> None:
    """The address is for documentation (RFC 5737): nothing may be sent to it before."""
    for url in ("http://192.0.2.1:8080", "http://localhost.evil.example", "http://[2001:db8::1]"):
        assert "would cross the network in clear" in refused(url, FEDVEIL_TOKEN=SECRET)
    assert SECRET not in refused("http://192.0.2.1:8080", FEDVEIL_TOKEN=SECRET)
    assert "holds a password" in refused("http://me:secret@127.0.0.1:8080")
    assert "secret" not in refused("http://me:secret@127.0.0.1:8080")


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://127.0.0.1", "http://", "http://a:b", ""])
def test_what_is_no_address(url: str) -> None:
    assert "is no address of a service" in refused(url)


def test_a_service_without_tls_is_told_from_none(served: dict[str, Served]) -> None:
    url = served["digits"][1].replace("http://", "https://")
    assert "does not speak TLS as https:// needs it; try http://" in refused(url)


def test_no_service_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        silent = refused(f"http://127.0.0.1:{port}", "--timeout", "0.2")
        assert "no answer within 0.2 s" in silent
    assert "no service answers there" in refused(f"http://127.0.0.1:{port}")


STRANGE = [
    (200, b"<h1>hello</h1>", "does not answer as an inference service of Fedveil does"),
    (200, b"{}", "does not answer as an inference service of Fedveil does"),
    (404, b"not here", "answers 404, and not as an inference service"),
    (302, b"", "answers 302, and not as an inference service"),
    (403, b'{"error": "no\\u001b[2Jway\\n"}', "refuses (403): no?[2Jway?"),
]


@pytest.mark.parametrize(("status", "content", "says"), STRANGE)
def test_somebody_else_answers(status: int, content: bytes, says: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("location", "http://127.0.0.1:1/")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        assert says in refused(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def test_tls_and_client_certificates(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1)
    authority = make_certificate(tmp_path, "ca", None)
    for name in ("server", "client"):
        make_certificate(tmp_path, name, authority)
    files = TlsFiles(*(tmp_path / name for name in ("server.pem", "server.key", "ca.pem")))
    service = InferenceService(open_source(tmp_path / "run", None, None), Limits())
    server = HttpServer(service, "127.0.0.1", 0, files)
    server.start()
    try:
        url = f"https://127.0.0.1:{server.port}"
        ca = ("--ca", str(tmp_path / "ca.pem"))
        pair = ("--cert", str(tmp_path / "client.pem"), "--key", str(tmp_path / "client.key"))
        assert len(told(url, *ca, *pair)["answers"]) == 5
        itself = ("--ca", str(tmp_path / "server.pem"))
        assert len(told(url, *itself, *pair)["answers"]) == 5
        assert "its certificate is refused" in refused(
            url, "--ca", str(tmp_path / "client.pem"), *pair
        )
        assert "its certificate is refused" in refused(url, *pair)
        assert "whether it demands a client certificate" in refused(url, *ca)
        assert "is no PEM certificate whose private key" in refused(
            url, *ca, "--cert", str(tmp_path / "ca.pem"), "--key", str(tmp_path / "client.key")
        )
        assert "whether the service takes https://" in refused(url.replace("https", "http"))
    finally:
        server.stop(5)
        service.close()


def test_the_command_itself_ends_with_one_line(served: dict[str, Served]) -> None:
    """No traceback, and 1: seen from outside."""
    done = subprocess.run(
        [sys.executable, "-m", "fedveil.cli", "predict", served["digits"][1], "--task", "adult"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("error: http://127.0.0.1:")


@given(st.text("0123456789:-x ", max_size=8))
def test_rows_are_read_as_a_slice_or_refused(text: str) -> None:
    try:
        found = parse_rows(text)
    except AskError:
        return
    start, _, stop = text.partition(":")
    expected = range(1000)[int(start or 0) : int(stop) if stop else None] if ":" in text else None
    wanted = [int(text)] if expected is None else list(expected)
    assert list(range(1000))[found] == [one for one in wanted if one < 1000]


@pytest.mark.parametrize(
    ("output", "form", "classes"),
    [
        (np.zeros((2, 3), np.float32), "full", 4),
        (np.array([[np.nan, 0]], np.float32), "full", 2),
        (np.array([5]), "labels", 5),
        (np.array([-1]), "labels", 5),
        (np.zeros((1, 2)), "labels", 5),
    ],
)
def test_outputs_that_none_of_our_services_gives(
    output: np.ndarray, form: str, classes: int
) -> None:
    with pytest.raises(AskError):
        read_answers(output, form, classes)
