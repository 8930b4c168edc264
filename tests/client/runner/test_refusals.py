"""What flower-supernode 1.41 printed when it was not admitted, and what is made of it."""

from __future__ import annotations

import pytest

from fedveil.client.runner.refusals import Admission, Refusal, refusal_in

PRINTED = (
    "Starting Flower SuperNode\nUvicorn running on http://127.0.0.1:19100\nExit Code: 305\n"
    "Failed to initialize the connection to the SuperLink.\n{}\n"
    "The SuperNode could not establish a connection to the SuperLink.\n"
    "For more information, visit: <https://flower.ai/...>\nShutting down"
)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("[code: 2004] Failed to activate SuperNode.", "not registered there, or was revoked"),
        ("[code: 2001] SuperNode authentication is enabled.", "has no key"),
        (
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local "
            "issuer certificate (_ssl.c:1006)",
            "not signed by this kit's authority (unable to get local issuer certificate)",
        ),
        (
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired "
            "(_ssl.c:1006)",
            "certificate has expired; the coordinator renews it",
        ),
        (
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: Hostname mismatch, "
            "certificate is not valid for 'wards.example'. (_ssl.c:1006)",
            "for another address",
        ),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)", "does not speak TLS"),
        (
            "[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol "
            "(_ssl.c:1006)",
            "does not speak TLS",
        ),
        ("[code: 9] Something new.", "does not admit this node: [code: 9] Something new."),
    ],
)
def test_the_reason_is_said_in_one_line_that_names_the_server(reason: str, words: str) -> None:
    found = refusal_in(PRINTED.format(reason), "link:9092")
    assert found is not None
    assert words in found.text
    assert "link:9092" in found.text
    assert "\n" not in found.text
    # One that was just started may register it; a proxy hangs up until its server is there.
    assert bool(found.for_now) == ("2004" in reason or "EOF" in reason)


def test_other_ends_are_no_refusals() -> None:
    assert refusal_in("SuperNode ID: 7\nSuperNode terminated gracefully.", "link:9092") is None


def test_a_node_that_waited_long_for_its_server_has_its_time_to_be_admitted_all_the_same() -> None:
    now = [1000.0]
    admission = Admission(60.0, lambda: now[0])
    now[0] = 9000.0
    not_yet = Refusal("not registered", "not known yet")
    assert admission.is_waited_for(not_yet)
    now[0] += 59.0
    assert admission.is_waited_for(not_yet)
    now[0] += 1.0
    assert not admission.is_waited_for(not_yet)
    assert admission.is_waited_for(Refusal("no TLS", "it hung up")), "another reason, another time"


def test_what_does_not_pass_is_not_waited_for() -> None:
    assert not Admission(60.0, lambda: 0.0).is_waited_for(Refusal("another authority"))
