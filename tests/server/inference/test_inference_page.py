"""The page for people, in a real browser: what it shows, what it asks, and what attacks it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from browser import CHROMIUM, TEXT, Page, browser
from served_run import INFER, body, run_of, serving, some_rows
from served_tasks import fresh_run

from fedveil.server.inference import page as page_module
from fedveil.server.inference.outputs import parse_outputs
from fedveil.server.inference.policy import PolicyOptions
from fedveil.server.inference.service import InferenceService
from fedveil.server.inference.tokens import TokenFile, add_token
from fedveil.tasks.breast_cancer import BreastCancer

FILES = ("/", "/page.css", "/page.js", "/inputs.js", "/charts.js", "/icon.svg")
WEB = Path(page_module.__file__).parent / "web"
READY = (
    "document.querySelector('#main')?.hidden === false && document.querySelector('dd').innerText"
)
ANSWERED = "!document.querySelector('#answer').hidden"
MARKUP = ("<img src=x onerror=alert(1)>", "<b>benign</b>")

Served = tuple[InferenceService, str]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    """Return services of three tasks; one has names of classes that would like to be HTML."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("FEDVEIL_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(BreastCancer, "class_names", MARKUP)
        run_of(folder / "digits", 1)
        fresh_run(folder / "breast-cancer", "breast-cancer")
        fresh_run(folder / "shakespeare", "shakespeare", epsilon=None)
        yield {
            name: stack.enter_context(serving(folder / name))
            for name in ("digits", "breast-cancer", "shakespeare")
        }


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    rule = "--host-resolver-rules=MAP evil.example 127.0.0.1"
    with browser(tmp_path_factory.mktemp("browser"), rule) as found:
        found.emulate(1200, 1000, "light")
        yield found


def shown(tab: Page, place: str) -> str:
    return str(tab.run(f"document.querySelector('#{place}').textContent"))


def rows_asked(tab: Page) -> np.ndarray:
    """Return the row that the page sent last."""
    tensor = tab.posted("/infer")[-1]["inputs"][0]  # type: ignore[index]
    return np.array(tensor["data"]).reshape(tensor["shape"])


def shares(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def test_the_page_shows_the_claim_and_answers_a_drawing(
    tab: Page, served: dict[str, Served]
) -> None:
    service, url = served["digits"]
    history = service.metrics.latencies
    clock, history._clock = history._clock, lambda: clock() - 10
    for _ in range(10):
        history.add(0.004, answered=True)
    history._clock = clock
    tab.open(f"{url}/")
    tab.wait_for(READY)
    assert shown(tab, "health") == "ready"
    assert (shown(tab, "round"), shown(tab, "run")) == ("1", "digits-run")
    assert (shown(tab, "epsilon"), shown(tab, "delta")) == ("0.250", "0.00001")
    assert shown(tab, "accuracy") == "50.0 %"
    assert "by a factor of at most 1.28 (e to the power of epsilon)" in shown(tab, "meaning")
    tab.wait_for("document.querySelector('#times').textContent")
    assert re.fullmatch(r"p50 4(\.\d)? msp99 4(\.\d)? ms", shown(tab, "times"))
    assert tab.run("document.querySelectorAll('#rates-chart path').length") == 2
    assert tab.run("document.querySelector('#times-chart path').getAttribute('d').length") > 5
    box = tab.run(
        "(b => [b.left, b.top, b.width])(document.querySelector('.board').getBoundingClientRect())"
    )
    left, top, size = box  # type: ignore[misc]
    tab.drag(*((left + size * x, top + size * y) for x, y in ((0.3, 0.2), (0.5, 0.5), (0.6, 0.9))))
    tab.wait_for(ANSWERED)
    row = rows_asked(tab)
    assert row.shape == (1, 64)
    assert row.min() == 0
    assert 0.5 < row.max() <= 1
    image = row.reshape(8, 8)
    assert image[0].any()
    assert image[-1].any(), "a drawing is fitted into the image"
    logits = service.engine.run(service.holder.current, row.astype(np.float32))[0]
    assert shown(tab, "class") == str(int(logits.argmax()))
    assert shown(tab, "share") == f"{100 * shares(logits).max():.1f} %"
    assert tab.run("document.querySelectorAll('#bars li').length") == 10
    assert shown(tab, "source").startswith("round 1 · ")
    tab.run("document.querySelector('.drawing button').click()")
    tab.wait_for("document.querySelector('#answer').hidden")
    tab.run("document.querySelector('.board').focus()")
    tab.key(" ")
    tab.wait_for(ANSWERED)
    assert rows_asked(tab).max() == 1
    assert tab.complaints == []


def test_fields_are_given_to_the_model_as_the_task_scales_them(
    tab: Page, served: dict[str, Served]
) -> None:
    service, url = served["breast-cancer"]
    tab.open(f"{url}/")
    tab.wait_for(READY)
    tab.run("document.querySelector('[name=\"mean radius\"]').value = '9.5'")
    tab.run("document.querySelector('.actions button').click()")
    tab.wait_for(ANSWERED)
    form = BreastCancer.form(service.engine.task)  # type: ignore[arg-type]
    given = {field.name: str(field.typical) for field in form.fields} | {"mean radius": "9.5"}
    np.testing.assert_allclose(rows_asked(tab)[0], form.encode(given))
    row = np.array([form.encode(given)], np.float32)
    logit = float(service.engine.run(service.holder.current, row).reshape(-1)[0])
    label = int(logit > 0)
    yes = 1 / (1 + np.exp(-logit))
    assert shown(tab, "class") == MARKUP[label]
    assert shown(tab, "share") == f"{100 * max(yes, 1 - yes):.1f} %"
    assert tab.run("document.querySelectorAll('#answer img, #answer b b').length") == 0
    assert tab.complaints == []
    asked = len(tab.posted("/infer"))
    tab.run("document.querySelector('[name=\"mean radius\"]').value = ''")
    tab.run("document.querySelector('.actions button').click()")
    assert tab.wait_for("document.querySelector('#answer').hidden")
    assert len(tab.posted("/infer")) == asked, "an empty field is asked about"


def test_a_text_is_asked_about_by_its_codes(tab: Page, served: dict[str, Served]) -> None:
    service, url = served["shakespeare"]
    tab.open(f"{url}/")
    tab.wait_for(READY)
    assert (shown(tab, "epsilon"), shown(tab, "delta")) == ("none", "none")
    assert "No privacy is claimed" in shown(tab, "meaning")
    text = "Shall I compare thee to a summer\\'s day? \\n" * 3 + "\U0001d11e\\u00e9~"
    tab.run(f"document.querySelector('textarea').value = '{text}'")
    tab.run("document.querySelector('.actions button').click()")
    tab.wait_for(ANSWERED)
    form = service.engine.task.form()
    assert form is not None
    assert form.kind == "text"
    spoken = text.replace("\\'", "'").replace("\\n", "\n").replace("\\u00e9", "\u00e9")
    codes = form.encode(spoken)
    assert rows_asked(tab)[0].tolist() == codes
    output = service.engine.run(service.holder.current, np.array([codes]))[0]
    assert shown(tab, "class") == service.engine.task.class_names[int(output.argmax())]
    assert tab.run("document.querySelectorAll('#bars li').length") == 10
    assert "87 classes more" in shown(tab, "source")
    assert tab.complaints == []


def test_a_token_is_asked_for_and_kept_in_memory_only(tab: Page, tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1)
    path = tmp_path / "tokens.json"
    token = add_token(path, "person", ("infer", "metadata"))
    with serving(tmp_path / "run", tokens=TokenFile(path)) as (_, url):
        tab.open(f"{url}/")
        tab.wait_for("document.querySelector('#entry')?.hidden === false")
        assert tab.run("document.querySelector('#main').hidden")
        enter = "document.querySelector('#entry button').click()"
        tab.run(f"document.querySelector('#token').value = 'fvt_wrong'; {enter}")
        tab.wait_for("!document.querySelector('#trouble').hidden")
        assert shown(tab, "trouble") == "the token is not known, or was revoked"
        tab.run(f"document.querySelector('#token').value = '{token}'; {enter}")
        tab.wait_for(READY)
        assert tab.run("document.querySelector('#entry').hidden")
        tab.run("document.querySelector('.board').focus()")
        tab.key(" ")
        tab.wait_for(ANSWERED)
        kept = tab.run(
            "JSON.stringify([localStorage, sessionStorage, location.href,"
            " document.documentElement.outerHTML, document.querySelector('#token').value])"
        )
        assert token not in str(kept)
        # A browser itself notes what was refused for want of a token.
        assert [one for one in tab.complaints if " 401 " not in one] == []
        tab.open(f"{url}/")
        tab.wait_for("document.querySelector('#entry')?.hidden === false")


@pytest.mark.parametrize("form", ["labels", "top-2", "round-2"])
def test_the_page_shows_no_more_than_the_service_tells(
    form: str, tab: Page, tmp_path: Path
) -> None:
    run_of(tmp_path / "run", 1)
    policy = PolicyOptions(outputs=parse_outputs(form))
    with serving(tmp_path / "run", policy=policy) as (service, url):
        tab.open(f"{url}/")
        tab.wait_for(READY)
        tab.run("document.querySelector('.board').focus()")
        tab.key(" ")
        tab.wait_for(ANSWERED)
        logits = service.engine.run(service.holder.current, rows_asked(tab).astype(np.float32))[0]
        assert shown(tab, "class") == str(int(logits.argmax()))
        told = {
            "labels": ("the class alone", ""),
            "top-2": ("the 2 most probable classes", f"{100 * shares(logits).max():.1f} %"),
            "round-2": ("probabilities with 2 decimals", f"{100 * shares(logits).max():.0f}.0 %"),
        }[form]
        assert (shown(tab, "outputs"), shown(tab, "share")) == told
        assert (tab.run("document.querySelectorAll('#bars li').length") == 0) == (form == "labels")
        assert tab.complaints == []


@contextmanager
def foreign(content: str) -> Iterator[str]:
    """Serve a page of somebody else's; yield its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def test_a_foreign_page_cannot_ask_the_model(tab: Page, served: dict[str, Served]) -> None:
    """Cross-site request forgery: a simple request, which a browser sends without asking first."""
    service, url = served["digits"]
    rows = body(some_rows(1))
    attack = (
        "fetch('%s', {method: 'POST', mode: '%s', headers: {'content-type': 'text/plain'},"
        f" body: '{httpx.Request('POST', url, json=rows).content.decode()}'}})"
        ".then((reply) => reply.type + reply.status, () => 'blocked')"
    )
    count = _answers(service)
    with foreign("<p>hello</p>") as place:
        tab.open(place)
        tab.wait_for(f"({TEXT}).includes('hello')")
        assert tab.run(attack % (url + INFER, "no-cors")) == "opaque0"
        assert tab.run(attack % (url + INFER, "cors")) == "blocked"
    assert _answers(service) == count, "the model was asked on behalf of a foreign page"
    origin = {"origin": "http://evil.example"}
    for method, address in (("GET", "/about"), ("GET", "/"), ("POST", INFER), ("GET", "/v2")):
        reply = httpx.request(method, url + address, headers=origin, json=rows)
        assert (reply.status_code, reply.json()["error"].count("\n")) == (403, 0)


def _answers(service: InferenceService) -> str:
    found = re.search(
        rb'requests_total\{outcome="ok",protocol="http"\} (\S+)', service.metrics.text()
    )
    return found[1].decode() if found else "0"


def test_a_rebound_name_reaches_nothing(tab: Page, served: dict[str, Served]) -> None:
    """DNS rebinding: the attacker's name leads to this machine, and the page is of one origin."""
    service, url = served["digits"]
    rebound = url.replace("127.0.0.1", "evil.example")
    count = _answers(service)
    tab.open(f"{rebound}/")
    tab.wait_for(f"({TEXT}).includes('no name of this service')")
    assert tab.run("location.origin") == rebound
    body_text = httpx.Request("POST", url, json=body(some_rows(1))).content.decode()
    for address, sent in (("/about", ""), ("/v2/models/digits", ""), (INFER, body_text)):
        more = f", {{method: 'POST', body: '{sent}'}}" if sent else ""
        assert tab.run(f"fetch('{address}'{more}).then((reply) => reply.status)") == 421
    assert _answers(service) == count
    reply = httpx.get(f"{url}/about", headers={"host": "evil.example"})
    assert (reply.status_code, "--known-as NAME" in reply.text) == (421, True)
    with httpx.Client(base_url=url, timeout=30, headers={"host": "evil.example"}) as client:
        for address in (*FILES, "/v2/health/live", "/metrics", "/nothing"):
            assert client.get(address).status_code == 421


def test_nobody_frames_the_page(tab: Page, served: dict[str, Served]) -> None:
    _, url = served["digits"]
    with foreign(f"<p>hello</p><iframe src='{url}/'></iframe>") as place:
        tab.open(place)
        tab.wait_for(f"({TEXT}).includes('hello')")
        tab.wait_for("document.readyState === 'complete'")
        assert any("frame-ancestors" in one for one in tab.complaints), tab.complaints


def test_with_tokens_any_name_will_do(tmp_path: Path) -> None:
    """Behind a load balancer a service has names of its own; a foreign page has no token."""
    run_of(tmp_path / "run", 1)
    path = tmp_path / "tokens.json"
    add_token(path, "person", ("infer",))
    named = {"host": "models.example", "origin": "https://elsewhere.example"}
    with serving(tmp_path / "run", tokens=TokenFile(path)) as (_, url):
        assert httpx.get(f"{url}/", headers=named).status_code == 200
        for address in ("/about", "/latencies"):
            assert httpx.get(url + address, headers=named).status_code == 401
        assert httpx.post(url + INFER, headers=named, json=body(some_rows(1))).status_code == 401


def test_headers_of_the_page(served: dict[str, Served]) -> None:
    _, url = served["digits"]
    with httpx.Client(base_url=url, timeout=30) as client:
        replies = {address: client.get(address) for address in FILES}
        assert client.head("/").status_code == 200
        assert {client.post(address).status_code for address in FILES} == {405}
    for reply in replies.values():
        assert reply.status_code == 200
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"


def test_nothing_comes_from_elsewhere_and_nothing_becomes_html() -> None:
    names = {path.name for path in WEB.iterdir()}
    assert names == {"page.html", *(address[1:] for address in FILES[1:])}
    for path in WEB.iterdir():
        content = path.read_text()
        found = set(re.findall(r"https?://[^\s\"'<]+", content))
        assert found <= {"http://www.w3.org/2000/svg"}, path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", content)
        assert not re.search(r"localStorage|sessionStorage|document\.cookie|indexedDB", content)
    page = (WEB / "page.html").read_text()
    assert not re.search(r"<style|style=| on\w+=", page)
    assert re.findall(r"<script[^>]*>([^<]*)</script>", page) == [""]
    notice = re.search(r"<noscript>(.*?)</noscript>", page, re.S)
    assert notice
    assert "fedveil predict" in notice[1]
