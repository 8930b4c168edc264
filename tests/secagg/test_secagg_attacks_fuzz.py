"""Random and mutated messages to every entry of both sides: refused, or answered as any other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_attacker import advertise
from secagg_party import CONTENT, Party, Play, Stage, simple_contributions

from fedveil.secagg.client_memory import Memory
from fedveil.secagg.errors import SecAggError, WireError
from fedveil.secagg.messages import ConfirmRequest
from fedveil.secagg.server_session import ServerSession

VICTIM = "c001"
EXAMPLES = 150

Mutate = Callable[[bytes], bytes]


@dataclass
class Recorded:
    """A session of seven, one of whom drops out, frozen before every step."""

    party: Party
    stores: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: dict[str, bytes] = field(default_factory=dict)
    replies: dict[str, bytes] = field(default_factory=dict)
    servers: dict[str, Play | ServerSession] = field(default_factory=dict)
    play: Play | None = None

    def keep(self, step: str, message: bytes, server: Play | ServerSession) -> None:
        self.stores[step] = dict(self.party.stores[VICTIM])
        self.messages[step] = message
        # A roster's mapping cannot be copied, and is never changed.
        self.servers[step] = _copy(server, self.party)


def _copy(server: Play | ServerSession, party: Party) -> Play | ServerSession:
    return copy.deepcopy(server, {id(party.roster): party.roster})


def _record() -> Recorded:
    party = Party(7)
    recorded = Recorded(party)
    recorded.keep("advertise", party.server.request(), party.server)
    keys = advertise(party)
    recorded.replies["advertise"] = party.server._advertised[VICTIM].encode()
    recorded.keep("share", keys[VICTIM], party.server)
    for name, data in keys.items():
        shares = party.client(name).share(data)
        if name == VICTIM:
            recorded.replies["share"] = shares
        party.server.add_shares(name, shares)
    play = recorded.play = party.open()
    recorded.keep("begin", play.server.requests()[VICTIM], play)
    play.input(simple_contributions(party), lost={"c006": Stage.INPUT})
    recorded.replies["begin"] = play.answers[Stage.INPUT, VICTIM]
    asked = ConfirmRequest(play.server.header.sid, tuple(range(6))).encode()
    recorded.keep("confirm", asked, play)
    play.confirm()
    recorded.replies["confirm"] = play.answers[Stage.CONFIRM, VICTIM]
    recorded.keep("unmask", play.server.close_confirm()[VICTIM], play)
    play.unmask()
    recorded.replies["unmask"] = play.answers[Stage.UNMASK, VICTIM]
    return recorded


RECORDED = _record()
SECRETS = {
    Memory(RECORDED.stores[step]).slot(1).seed for step in ("share", "begin", "confirm", "unmask")
} | {Memory(RECORDED.stores["share"]).slot(1).mask_secret}


@st.composite
def _mutations(draw: st.DrawFn) -> Mutate:
    """Return a change of one byte, of the length, or of everything."""
    kind = draw(st.sampled_from(["byte", "byte", "byte", "cut", "add", "twice", "random"]))
    where, what = draw(st.floats(0.0, 1.0, exclude_max=True)), draw(st.integers(1, 255))
    noise = draw(st.binary(max_size=80))

    def mutate(data: bytes) -> bytes:
        at = int(where * len(data))
        match kind:
            case "byte":
                return data[:at] + bytes([data[at] ^ what]) + data[at + 1 :]
            case "cut":
                return data[:at]
            case "add":
                return data[:at] + (noise or b"\0") + data[at:]
            case "twice":
                return data + data
            case _:
                # The true version and kind in front, so that it gets further in.
                return data[:2] + noise if what % 2 else noise

    return mutate


def _step(party: Party, step: str, data: bytes) -> bytes:
    client = party.client(VICTIM)
    match step:
        case "advertise":
            return client.advertise(data)
        case "share":
            return client.share(data)
        case "begin":
            round_ = client.begin(data, CONTENT)
            update = [np.zeros(round_.encoding.dimension)]
            reply, vector = round_.mask(update, update, 1.0, {})
            return reply + vector
        case "confirm":
            return client.resume().confirm(data)
        case _:
            return client.resume().unmask(data)


def _client_from(step: str) -> Party:
    party = copy.copy(RECORDED.party)
    party.stores = {VICTIM: dict(RECORDED.stores[step])}
    return party


def _is_one_line(error: SecAggError) -> None:
    assert len(str(error).splitlines()) == 1


def _is_unchanged(store: dict[str, bytes], before: dict[str, bytes], *, but: bool) -> None:
    assert but or store == before


@pytest.mark.parametrize("step", list(RECORDED.messages))
def test_the_recorded_messages_are_answered(step: str) -> None:
    assert _step(_client_from(step), step, RECORDED.messages[step])


@pytest.mark.parametrize("step", list(RECORDED.messages))
@settings(max_examples=EXAMPLES)
@given(mutate=_mutations())
def test_a_client_refuses_mutated_messages_or_reveals_nothing_more(
    step: str, mutate: Mutate
) -> None:
    party = _client_from(step)
    before = dict(party.stores[VICTIM])
    data = mutate(RECORDED.messages[step])
    if data == RECORDED.messages[step]:
        return
    try:
        reply = _step(party, step, data)
    except SecAggError as error:
        _is_one_line(error)
        # A slot is used up even where its vector cannot be masked.
        _is_unchanged(party.stores[VICTIM], before, but=step == "begin")
        return
    if step == "unmask":
        assert reply == RECORDED.replies["unmask"]
    else:
        kept = Memory(party.stores[VICTIM]).slot(1)
        assert not any(secret in reply for secret in (*SECRETS, kept.seed, kept.mask_secret))


@pytest.mark.parametrize("entry", list(RECORDED.messages))
@pytest.mark.parametrize("state", list(RECORDED.messages))
@settings(max_examples=20)
@given(mutate=_mutations(), message=st.sampled_from(sorted(RECORDED.messages)))
def test_any_message_mutated_to_any_entry_of_a_client_in_any_state(
    entry: str, state: str, mutate: Mutate, message: str
) -> None:
    party = _client_from(state)
    try:
        reply = _step(party, entry, mutate(RECORDED.messages[message]))
    except SecAggError:
        return
    # What a client answers at all: its own seed leaves it in the unmasking alone.
    assert entry in (state, "advertise")
    assert entry == "unmask" or not any(secret in reply for secret in SECRETS)


def _server_step(server: Play | ServerSession, step: str, data: bytes) -> None:
    if isinstance(server, ServerSession):
        if step == "advertise":
            server.add_advertisement(data)
        else:
            server.add_shares(VICTIM, data)
        return
    match step:
        case "begin":
            server.server.add_input(VICTIM, data, RECORDED.play.vectors[VICTIM])  # type: ignore[union-attr]
        case "confirm":
            server.server.add_confirmation(VICTIM, data)
        case _:
            server.server.add_unmasking(VICTIM, data)


def _server_at(step: str) -> Play | ServerSession:
    """Return the server as it is when the reply comes."""
    server = _copy(RECORDED.servers[step], RECORDED.party)
    if step == "confirm":
        server.server.close_input()  # type: ignore[union-attr]
    return server


@pytest.mark.parametrize("step", list(RECORDED.replies))
def test_the_recorded_replies_are_taken(step: str) -> None:
    _server_step(_server_at(step), step, RECORDED.replies[step])


@pytest.mark.parametrize("step", list(RECORDED.replies))
@settings(max_examples=EXAMPLES)
@given(mutate=_mutations())
def test_a_server_refuses_mutated_replies_with_an_error_of_the_protocol(
    step: str, mutate: Mutate
) -> None:
    server = _server_at(step)
    data = mutate(RECORDED.replies[step])
    if data == RECORDED.replies[step]:
        return
    try:
        _server_step(server, step, data)
    except SecAggError as error:
        _is_one_line(error)
    else:
        # An advertisement and a confirmation are signed as a whole.
        assert step not in ("advertise", "confirm")


@settings(max_examples=EXAMPLES)
@given(mutate=_mutations())
def test_no_mutation_of_an_unmasking_makes_another_sum(mutate: Mutate) -> None:
    play = _server_at("unmask")
    assert isinstance(play, Play)
    names = RECORDED.party.names[:6]
    for name in names:
        reply = RECORDED.play.answers[Stage.UNMASK, name]  # type: ignore[union-attr]
        try:
            play.server.add_unmasking(name, mutate(reply) if name == VICTIM else reply)
        except SecAggError:
            assert name == VICTIM
    contributions = simple_contributions(RECORDED.party)
    expected = np.mean([contributions[n].update[0].astype(np.float64) for n in names], axis=0)
    bound = RECORDED.party.settings.encoding().error_bound(6, 6.0)
    np.testing.assert_allclose(play.finish().mean[0], expected, rtol=0, atol=bound)


@settings(max_examples=EXAMPLES)
@given(data=st.binary(max_size=600))
def test_random_bytes_are_no_vector_and_no_message(data: bytes) -> None:
    play = _server_at("begin")
    assert isinstance(play, Play)
    for name in ("add_confirmation", "add_unmasking"):
        with pytest.raises(SecAggError):
            getattr(play.server, name)(VICTIM, data)
    if len(data) != play.server._encoding.vector_bytes:
        with pytest.raises(SecAggError, match="a masked vector has"):
            play.server.add_input(VICTIM, RECORDED.replies["begin"], data)


@pytest.mark.parametrize("step", list(RECORDED.messages))
def test_every_single_byte_short_of_a_message_is_refused(step: str) -> None:
    party = _client_from(step)
    message = RECORDED.messages[step]
    for end in {*range(0, len(message), max(1, len(message) // 200)), len(message) - 1}:
        with pytest.raises(WireError):
            _step(party, step, message[:end])
