"""Attacks of clients: on the sum, on the round, and on each other's good name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from secagg_attacker import advertise, flip, rewrite
from secagg_party import CONTENT, Party, Play, Stage, simple_contributions

from fedveil.secagg import client_session
from fedveil.secagg.errors import (
    BelowThresholdError,
    EncodingError,
    ImpossibleSumError,
    ProtocolError,
    WireError,
)
from fedveil.secagg.messages import (
    InputReply,
    InputRequest,
    Packet,
    Parcel,
    Share,
    SharesReply,
    UnmaskReply,
)
from fedveil.secagg.shamir import SHARE_BYTES, split

LIAR, GONE = "c000", "c006"


def mean_of(play: Play, names: Sequence[str]) -> np.ndarray:  # type: ignore[type-arg]  # of floats
    contributions = simple_contributions(play.party)
    return np.mean([contributions[name].update[0].astype(np.float64) for name in names], axis=0)


def confirmed(party: Party, lost: Mapping[str, Stage]) -> Play:
    """Return a round just before the unmasking."""
    play = party.open()
    play.input(simple_contributions(party), lost=lost)
    play.confirm()
    return play


def unmask_with_a_lie(play: Play, lie: Callable[[UnmaskReply], bytes]) -> None:
    for name, request in play.server.close_confirm().items():
        reply = play.party.client(name).resume().unmask(request)
        data = lie(UnmaskReply.decode(reply)) if name == LIAR else reply
        play.server.add_unmasking(name, data)


def _other_shares(shares: Sequence[Share], change: Callable[[bytes], bytes]) -> tuple[Share, ...]:
    return tuple(Share(share.owner, change(share.value)) for share in shares)


LIES: dict[str, tuple[Callable[[UnmaskReply], bytes], str]] = {
    "key shares, a bit": (
        lambda r: replace(r, key_shares=_other_shares(r.key_shares, flip)).encode(),
        "a share that it gives of a neighbour's key is false",
    ),
    "key shares, all ones": (
        lambda r: replace(
            r, key_shares=_other_shares(r.key_shares, lambda _: b"\xff" * SHARE_BYTES)
        ).encode(),
        "a share that it gives of a neighbour's key is false",
    ),
    "seed shares, zero": (
        lambda r: replace(
            r, seed_shares=_other_shares(r.seed_shares, lambda _: bytes(SHARE_BYTES))
        ).encode(),
        "a share that it gives of a neighbour's seed is false",
    ),
    "one owner's under another's name": (
        lambda r: replace(
            r, seed_shares=(replace(r.seed_shares[0], owner=r.seed_shares[1].owner),)
        ).encode(),
        "a share that it gives of a neighbour's seed is false",
    ),
    "kinds swapped": (
        lambda r: replace(r, seed_shares=r.key_shares, key_shares=r.seed_shares).encode(),
        "a share that it gives of a neighbour's key is false",
    ),
    "of nobody": (
        lambda r: replace(r, seed_shares=(Share(2**32 - 1, bytes(SHARE_BYTES)),)).encode(),
        "a share that it gives of a neighbour's seed is false",
    ),
    "of itself": (
        lambda r: replace(r, seed_shares=(Share(0, bytes(SHARE_BYTES)),)).encode(),
        "a share that it gives of a neighbour's seed is false",
    ),
    "a false seed": (
        lambda r: replace(r, seed=bytes(32)).encode(),
        "its seed is not the one that it committed to",
    ),
}


@pytest.mark.parametrize("lie", list(LIES))
def test_whoever_lies_while_unmasking_is_named_and_does_no_harm(lie: str) -> None:
    change, fault = LIES[lie]
    play = confirmed(Party(7).set_up(), {GONE: Stage.INPUT})
    unmask_with_a_lie(play, change)
    rest = play.party.names[:6]
    bound = play.party.settings.encoding().error_bound(6, 6.0)
    np.testing.assert_allclose(play.finish().mean[0], mean_of(play, rest), rtol=0, atol=bound)
    assert play.server.faults == {LIAR: fault}


@pytest.mark.parametrize("cut", [0, 1, 2, 34, 66, 70, -1])
def test_an_unmasking_that_is_cut_short_is_refused_and_does_no_harm(cut: int) -> None:
    play = confirmed(Party(7).set_up(), {GONE: Stage.INPUT})
    for name, request in play.server.close_confirm().items():
        reply = play.party.client(name).resume().unmask(request)
        if name == LIAR:
            with pytest.raises(WireError):
                play.server.add_unmasking(name, reply[:cut])
        else:
            play.server.add_unmasking(name, reply)
    assert play.finish().clients == 6


def test_more_liars_than_the_threshold_bears_cost_the_round_and_nothing_else() -> None:
    # 6 hold shares of the dropped client's key, 5 are needed; two lie.
    play = confirmed(Party(7, slots=2).set_up(), {GONE: Stage.INPUT})
    for name, request in play.server.close_confirm().items():
        reply = UnmaskReply.decode(play.party.client(name).resume().unmask(request))
        if name in (LIAR, "c001"):
            reply = replace(reply, key_shares=_other_shares(reply.key_shares, flip))
        play.server.add_unmasking(name, reply.encode())
    with pytest.raises(BelowThresholdError, match="4 shares of c006's key came, 5 are needed"):
        play.finish()
    assert set(play.server.faults) == {LIAR, "c001"}
    again = play.party.open(1, 2)
    again.input(simple_contributions(play.party))
    again.confirm()
    again.unmask()
    assert again.finish().clients == 7


@pytest.mark.parametrize("kind", ["key", "seed"])
def test_a_dealer_whose_shares_lie_on_no_polynomial_is_named(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    party = Party(7)
    keys = advertise(party)
    calls: list[str] = []

    def crooked(secret: bytes, threshold: int, points: Sequence[int]) -> dict[int, int]:
        # The seed is dealt first, then the key; each share is committed to as it is.
        calls.append("key" if len(calls) % 2 else "seed")
        shares = split(secret, threshold, points)
        return {p: v + (calls[-1] == kind) * p for p, v in shares.items()} | {
            points[0]: shares[points[0]]
        }

    for name, data in keys.items():
        with monkeypatch.context() as patch:
            if name == GONE:
                patch.setattr(client_session, "split", crooked)
            party.server.add_shares(name, party.client(name).share(data))
    assert calls == ["seed", "key"]
    lost = {GONE: Stage.INPUT if kind == "key" else Stage.UNMASK}
    play = confirmed(party, lost)
    play.unmask(lost=lost)
    assert not play.server.faults
    with pytest.raises(BelowThresholdError, match=f"the {kind} of c006 is lost: it dealt wrong"):
        play.finish()
    assert play.server.faults == {
        GONE: f"the shares of its {kind} that it committed to do not give it"
    }


def _tampered(packet: Packet) -> Packet:
    return replace(packet, sealed=flip(packet.sealed, 40))


def _other_commitments(packet: Packet) -> Packet:
    return replace(packet, commitments=flip(packet.commitments))


def _empty(packet: Packet) -> Packet:
    return replace(packet, sealed=b"")


def _short(packet: Packet) -> Packet:
    return replace(packet, sealed=packet.sealed[:40])


@pytest.mark.parametrize("tamper", [_tampered, _other_commitments, _empty, _short])
def test_a_parcel_that_was_tampered_with_is_complained_of(
    tamper: Callable[[Packet], Packet],
) -> None:
    party = Party(7)
    for name, data in advertise(party).items():
        reply = SharesReply.decode(party.client(name).share(data))
        if name == GONE:
            reply = replace(reply, packets=(tamper(reply.packets[0]), *reply.packets[1:]))
        party.server.add_shares(name, reply.encode())
    play = confirmed(party, {GONE: Stage.INPUT})
    assert InputReply.decode(play.answers[Stage.INPUT, LIAR]).bad_parcels == (6,)
    said = "its shares for c000 do not agree with its commitments, says c000"
    assert play.server.faults == {GONE: said}
    play.unmask()
    assert play.finish().clients == 6
    reply = UnmaskReply.decode(play.answers[Stage.UNMASK, LIAR])
    assert reply.key_shares == ()


def test_parcels_swapped_between_holders_or_owners_do_not_open() -> None:
    party = Party(4).set_up()
    play = party.open()
    parcels = {i: party.server.parcels_for(i) for i in range(4)}
    for i, name in enumerate(party.names):
        others = {
            0: parcels[1],
            1: tuple(
                replace(p, owner=owner) for p, owner in zip(parcels[1], (3, 2, 0), strict=True)
            ),
            2: (*parcels[2], *parcels[2]),
            3: tuple(Parcel(o, b"", b"") for o in (3, 7, 2**32 - 1)),
        }
        request = InputRequest(play.server.header, others[i]).encode()
        round_ = party.client(name).begin(request, CONTENT)
        reply, _ = round_.mask(simple_contributions(party)[name].update, [np.zeros(5)], 1.0, {})
        bad = InputReply.decode(reply).bad_parcels
        assert bad == {0: (0, 2, 3), 1: (0, 3), 2: (0, 1, 3), 3: (3, 7, 2**32 - 1)}[i]


WRONG: dict[str, tuple[str, int, int, str]] = {
    "counts itself twice": ("tail", 1, 1, "over 4 clients claims 5 clients"),
    "counts itself not at all": ("tail", 1, -1, "over 4 clients claims 3 clients"),
    "a weight above the largest": ("tail", 0, 5 << 20, "a weight of 9"),
    "a negative weight": ("tail", 0, -(5 << 20), "some client sent a wrong vector"),
    "more clipped than there are": ("tail", 2, 5, "claims 4 clients, 5 clipped"),
    "a coordinate that passes the bound": ("vector", 0, 2**31 - 4, "passes 4 x"),
}


@pytest.mark.parametrize("which", list(WRONG))
def test_a_vector_that_makes_an_impossible_sum_is_found_out(which: str) -> None:
    part, at, add, words = WRONG[which]
    party = Party(4).set_up()
    play = party.open()
    for name, request in play.server.requests().items():
        round_ = party.client(name).begin(request, CONTENT)
        update = [np.zeros(5, np.float32)]
        reply, vector = round_.mask(update, update, 1.0, {})
        buffer = bytearray(vector)
        coordinates, tail = party.settings.encoding().views(buffer)
        if name == LIAR:
            # Masks only add, so a client can add to its own masked vector what it likes.
            target = tail if part == "tail" else coordinates
            target[at : at + 1] += np.array([add]).astype(target.dtype)
        play.server.add_input(name, reply, bytes(buffer))
    play.confirm()
    play.unmask()
    with pytest.raises(ImpossibleSumError, match=words):
        play.finish()


@pytest.mark.parametrize("size", [0, 1, 531, 533])
def test_a_vector_of_another_length_is_refused(size: int) -> None:
    party = Party(4).set_up()
    play = party.open()
    request = play.server.requests()[LIAR]
    one = simple_contributions(party)[LIAR]
    round_ = party.client(LIAR).begin(request, CONTENT)
    reply, vector = round_.mask(one.update, [np.zeros(5)], 1.0, {})
    assert len(vector) == 532
    with pytest.raises(EncodingError, match=f"532 bytes here, not {size}"):
        play.server.add_input(LIAR, reply, (vector + b"1")[:size])
    play.server.add_input(LIAR, reply, vector)


def test_figures_named_unlike_the_others_leave_one_out_and_no_sum_wrong() -> None:
    party = Party(4).set_up()
    play = party.open()
    contributions = simple_contributions(party, {"loss": 0.5})
    contributions[LIAR] = replace(contributions[LIAR], figures={"lost": 1e6})
    play.input(contributions)
    play.confirm()
    play.unmask()
    summed = play.finish()
    assert summed.clients == 3
    assert summed.figures == {"loss": 1.5}
    assert play.server.faults == {LIAR: "its figures are ['lost'], the others' are ['loss']"}


def test_figures_named_twice_are_refused() -> None:
    party = Party(7).set_up()
    play = party.open()
    vector = bytes(play.server._encoding.vector_bytes)
    sid = play.server.header.sid
    with pytest.raises(EncodingError, match="a figure is named twice"):
        play.server.add_input(LIAR, InputReply(sid, ("a", "a"), ()).encode(), vector)


def test_early_clients_with_odd_figures_cannot_keep_the_others_out() -> None:
    party = Party(10).set_up()
    play = party.open()
    vector = bytes(play.server._encoding.vector_bytes)
    sid = play.server.header.sid
    odd = {f"c00{i}" for i in range(3)}
    for name in odd:
        reply = InputReply(sid, (f"only {name} has it",), ())
        play.server.add_input(name, reply.encode(), vector)
    for i in range(3, 10):
        play.server.add_input(f"c00{i}", InputReply(sid, ("loss",), ()).encode(), vector)
    assert set(play.server.close_input()) == {f"c00{i}" for i in range(3, 10)}
    assert set(play.server.faults) == odd


def test_complaints_about_nobody_are_ignored() -> None:
    party = Party(4).set_up()
    play = party.open()
    vector = bytes(play.server._encoding.vector_bytes)
    reply = InputReply(play.server.header.sid, (), (4, 2**32 - 1)).encode()
    play.server.add_input(LIAR, reply, vector)
    assert play.server.faults == {}


def test_shares_for_others_than_the_neighbours_are_refused() -> None:
    party = Party(4)
    keys = advertise(party)
    reply = party.client(LIAR).share(keys[LIAR])
    packets = SharesReply.decode(reply).packets
    for false in (packets[1:], packets[::-1], (*packets, packets[0])):
        with pytest.raises(ProtocolError, match="the shares of c000 do not fit the set-up"):
            party.server.add_shares(LIAR, rewrite(SharesReply, reply, packets=false))
    for field, value in (
        ("seed_commitments", ()),
        ("transcript", bytes(32)),
        ("packets", tuple(replace(p, commitments=b"") for p in packets)),
    ):
        with pytest.raises(ProtocolError, match="the shares of c000 do not fit the set-up"):
            party.server.add_shares(LIAR, rewrite(SharesReply, reply, **{field: value}))
    party.server.add_shares(LIAR, reply)
