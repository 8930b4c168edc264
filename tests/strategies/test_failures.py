"""Failures keep their words and are of few kinds, whatever a client says."""

from __future__ import annotations

import copy

import pytest
from flwr.app import Error, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedveil.client.requests import RequestError
from fedveil.errors import FedveilError
from fedveil.flower import set_identity
from fedveil.privacy.policy_check import PolicyRefusedError
from fedveil.secagg.errors import ProtocolError, RosterError, UnknownSessionError
from fedveil.strategies.failures import Failure, FailureKind, failure_in, failure_of, kind_of


def reply(code: int, reason: str) -> Message:
    set_identity(1, 1)
    request = Message(RecordDict(), dst_node_id=2, message_type="train")
    return Message(Error(code, reason), reply_to=request)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (PolicyRefusedError, FailureKind.POLICY),
        (RequestError, FailureKind.REQUEST),
        (ProtocolError, FailureKind.PROTOCOL),
        (RosterError, FailureKind.PROTOCOL),
        (UnknownSessionError, FailureKind.RESTARTED),
        (ValueError, FailureKind.FAILED),
    ],
)
def test_what_an_app_raised_is_of_its_kind(raised: type[BaseException], kind: FailureKind) -> None:
    # As Flower words it.
    found = failure_in(reply(2, f"{raised}:<'because'>"))
    assert (found, found.kind) == ("because", kind)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (3, FailureKind.SILENT),
        (4, FailureKind.SILENT),
        (5, FailureKind.SILENT),
        (8, FailureKind.CRASHED),
        (2, FailureKind.FAILED),
        (99, FailureKind.FAILED),
    ],
)
def test_flowers_own_errors_are_of_their_kind(code: int, kind: FailureKind) -> None:
    assert failure_in(reply(code, "gone")).kind == kind


@given(st.text(max_size=400))
def test_a_client_makes_no_kind_of_its_own(reason: str) -> None:
    found = failure_in(reply(2, reason))
    assert found.kind in set(FailureKind)
    assert str(found).isprintable()


def test_a_failure_is_its_words_and_survives_being_raised_and_copied() -> None:
    failure = Failure(FailureKind.POLICY, "no")
    assert failure == "no"
    assert f"{failure}!" == "no!"
    assert failure_of(FedveilError(failure), FailureKind.OTHER) is failure
    plain = failure_of(FedveilError("seven"), FailureKind.PROTOCOL)
    assert (plain, plain.kind) == ("seven", FailureKind.PROTOCOL)
    copied = copy.deepcopy(failure)
    assert (copied, kind_of(copied)) == ("no", FailureKind.POLICY)
    assert kind_of("plain words") == FailureKind.OTHER
