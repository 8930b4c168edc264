"""Attacks of the server on a round: who is counted, who is told what, and what is asked twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray
from secagg_attacker import (
    advertise,
    confirm,
    forge,
    pair_masks_of,
    read_single,
    rewrite,
    take_off,
    unmask,
)
from secagg_party import (
    ANY_PLAN,
    CONTENT,
    Contribution,
    Party,
    Play,
    Stage,
    plan_of,
    simple_contributions,
)

from fedveil.secagg.client_memory import Memory
from fedveil.secagg.errors import (
    BelowThresholdError,
    ImpossibleSumError,
    ProtocolError,
    SecAggError,
    UnknownSessionError,
    WireError,
)
from fedveil.secagg.masking import Keystream, self_mask
from fedveil.secagg.messages import (
    Confirmation,
    ConfirmRequest,
    InputRequest,
    RoundHeader,
    Signed,
    UnmaskReply,
    UnmaskRequest,
)
from fedveil.secagg.transcript import digest, kdf

VICTIM = "c001"
ALL_OF_FOUR = (0, 1, 2, 3)


def begun(clients: int = 4, slots: int = 2) -> Play:
    """Return a round in which everybody sent a vector."""
    party = Party(clients, slots=slots).set_up()
    play = party.open()
    play.input(simple_contributions(party))
    return play


def kept(play: Play, name: str) -> dict[str, bytes]:
    return dict(play.party.stores[name])


def test_clients_that_are_told_different_survivors_unmask_nothing() -> None:
    play = begun(7)
    party, sid = play.party, play.server.header.sid
    told = {0: (0, 1, 2, 3, 4, 5), 1: (0, 1, 2, 3, 4, 6)}
    signed = {i: confirm(party, party.names[i], sid, told[i % 2]) for i in range(5)}
    for i in range(5):
        agreed = [s for j, s in signed.items() if j % 2 == i % 2]
        secrets = kept(play, party.names[i])
        with pytest.raises(BelowThresholdError, match=r"[23] clients signed the survivors, 5 are"):
            unmask(party, party.names[i], sid, agreed)
        with pytest.raises(ProtocolError, match="the server tells clients different things"):
            unmask(party, party.names[i], sid, signed.values())
        assert kept(play, party.names[i]) == secrets


def test_signatures_that_do_not_count() -> None:
    play = begun(4)
    party, sid = play.party, play.server.header.sid
    a, b, c = (confirm(party, name, sid, (0, 1, 2)) for name in party.names[:3])
    stranger = forge(party, "c003", sid, (0, 1, 2))
    with pytest.raises(ProtocolError, match="by no survivor, or one survivor signs twice"):
        unmask(party, VICTIM, sid, (a, b, stranger))
    with pytest.raises(ProtocolError, match="by no survivor, or one survivor signs twice"):
        unmask(party, VICTIM, sid, (a, a, c))
    with pytest.raises(ProtocolError, match="by no survivor, or one survivor signs twice"):
        unmask(party, VICTIM, sid, (a, b, Signed(2**32 - 1, c.signature)))
    with pytest.raises(ProtocolError, match="c002 did not sign the survivors that this client"):
        unmask(party, VICTIM, sid, (a, b, Signed(2, a.signature)))
    with pytest.raises(BelowThresholdError, match="1 clients signed the survivors, 3 are needed"):
        unmask(party, VICTIM, sid, ())
    # Its own signature says nothing new to it, however often it comes.
    with pytest.raises(BelowThresholdError, match="2 clients signed the survivors, 3 are needed"):
        unmask(party, VICTIM, sid, (a, b, b))
    assert UnmaskReply.decode(unmask(party, VICTIM, sid, (a, b, c))).sid == sid


def test_signatures_of_another_round_do_not_count() -> None:
    play = begun(4)
    party, old = play.party, play.server.header.sid
    signed = [confirm(party, name, old, (0, 1, 2)) for name in party.names[:3]]
    again = party.open(1, 2)
    again.input(simple_contributions(party))
    sid = again.server.header.sid
    confirm(party, VICTIM, sid, (0, 1, 2))
    with pytest.raises(ProtocolError, match="c000 did not sign the survivors that this client"):
        unmask(party, VICTIM, sid, signed)


@pytest.mark.parametrize("field", ["content", "participants", "round", "attempt", "weight_key"])
def test_clients_that_are_told_different_rounds_share_no_mask_and_unmask_nothing(
    field: str,
) -> None:
    party = Party(4).set_up()
    play = party.open()
    true = play.server.header
    others = {"content": bytes(31) + b"1", "participants": (0, 1, 2), "weight_key": "n"}
    lie = replace(true, **{field: others.get(field, 9)})
    contributions = simple_contributions(party)
    for i, name in enumerate(party.names):
        header = lie if i < 2 else true
        request = InputRequest(header, party.server.parcels_for(i)).encode()
        round_ = party.client(name).begin(request, header.content)
        update = contributions[name].update
        reply, vector = round_.mask(update, [np.zeros(5)], 1.0, {})
        # The server overlooks that the replies are of different rounds.
        play.server.add_input(name, _as_if_of(reply, true.sid), vector)
    survivors = tuple(range(3))
    signed = [
        confirm(party, n, lie.sid if i < 2 else true.sid, survivors)
        for i, n in enumerate(party.names[:3])
    ]
    for name, header in zip(party.names[:3], (lie, lie, true), strict=True):
        with pytest.raises(ProtocolError, match="did not sign the survivors that this client"):
            unmask(party, name, header.sid, signed)
        with pytest.raises(ProtocolError, match="message of another round than the one under way"):
            party.client(name).resume().confirm(ConfirmRequest(bytes(32), survivors).encode())
    # Even with every secret, the sum is no sum: the masks do not cancel.
    play.server.close_input()
    for i, name in enumerate(party.names):
        play.server._seeds[i] = Memory(party.stores[name]).slot(1).seed
    play.server._signatures_sent = True
    with pytest.raises(ImpossibleSumError, match="some client sent a wrong vector"):
        play.finish()


def _as_if_of(reply: bytes, sid: bytes) -> bytes:
    return reply[:2] + sid + reply[34:]


def test_a_model_that_is_not_the_one_of_the_header_is_refused_before_training() -> None:
    party = Party(4).set_up()
    requests = party.open().server.requests()
    before = dict(party.stores[VICTIM])
    with pytest.raises(ProtocolError, match="what came with the request is not what the others"):
        party.client(VICTIM).begin(requests[VICTIM], bytes(31) + b"1")
    assert party.stores[VICTIM] == before


HEADERS: dict[str, tuple[dict[str, object], type[SecAggError], str]] = {
    "without itself": ({"participants": (0, 2, 3)}, ProtocolError, "not count this client among"),
    "nobody": ({"participants": ()}, ProtocolError, "not count this client among"),
    "too few": ({"participants": (0, 1)}, BelowThresholdError, "2 participants, 3 are needed"),
    "unsorted": ({"participants": (1, 0, 2)}, ProtocolError, "not ascending, or one is no member"),
    "one twice": ({"participants": (0, 1, 1)}, ProtocolError, "not ascending, or one is no member"),
    "beyond": ({"participants": (0, 1, 4)}, ProtocolError, "not ascending, or one is no member"),
    "far beyond": ({"participants": (0, 1, 2**32 - 1)}, ProtocolError, "or one is no member"),
    "slot 0": ({"slot": 0}, ProtocolError, "slot 0 of 2 was used already, or there is none"),
    "slot 3": ({"slot": 3}, ProtocolError, "slot 3 of 2 was used already, or there is none"),
    "other set-up": ({"transcript": bytes(32)}, UnknownSessionError, "round of another set-up"),
    "other purpose": ({"purpose": "gradient"}, ProtocolError, "a round to sum 'gradient' is"),
}


@pytest.mark.parametrize("lie", list(HEADERS))
def test_a_header_that_lies_is_refused_before_training(lie: str) -> None:
    changes, error, words = HEADERS[lie]
    party = Party(4, slots=2).set_up()
    header = replace(party.open().server.header, **changes)
    before = dict(party.stores[VICTIM])
    request = InputRequest(header, party.server.parcels_for(1)).encode()
    with pytest.raises(error, match=words):
        party.client(VICTIM).begin(request, CONTENT)
    assert party.stores[VICTIM] == before


SURVIVORS: dict[str, tuple[tuple[int, ...], type[SecAggError], str]] = {
    "without itself": ((0, 2, 3), ProtocolError, "not count this client among the survivors"),
    "nobody": ((), ProtocolError, "not count this client among the survivors"),
    "too few": ((1, 2), BelowThresholdError, "2 survivors, 3 are needed"),
    "unsorted": ((2, 1, 0), ProtocolError, "not ascending, or one is no member"),
    "one twice": ((0, 1, 1, 2), ProtocolError, "not ascending, or one is no member"),
    "beyond": ((0, 1, 4), ProtocolError, "not ascending, or one is no member"),
    "far beyond": ((0, 1, 2**32 - 1), ProtocolError, "not ascending, or one is no member"),
    "took no part": ((0, 1, 3), ProtocolError, "a survivor took no part in the round"),
}


@pytest.mark.parametrize("lie", list(SURVIVORS))
def test_survivors_that_lie_are_not_signed(lie: str) -> None:
    survivors, error, words = SURVIVORS[lie]
    party = Party(4).set_up()
    play = party.open(participants=party.names[:3])
    play.input(simple_contributions(party))
    before = kept(play, VICTIM)
    with pytest.raises(error, match=words):
        confirm(party, VICTIM, play.server.header.sid, survivors)
    assert kept(play, VICTIM) == before


@pytest.mark.parametrize("index", [2**32, 2**63, -1])
def test_an_index_that_is_none_does_not_fit_the_wire(index: int) -> None:
    with pytest.raises(WireError, match="does not fit"):
        ConfirmRequest(bytes(32), (index,)).encode()


def test_an_unmasking_request_has_nothing_to_choose() -> None:
    # Flower's names the living and the dead, and whoever is in both lists is unmasked.
    assert [field.name for field in fields(UnmaskRequest)] == ["sid", "signatures"]
    play = begun()
    play.confirm()
    play.unmask()
    for name in play.party.names:
        reply = UnmaskReply.decode(play.answers[Stage.UNMASK, name])
        owners = [{s.owner for s in shares} for shares in (reply.seed_shares, reply.key_shares)]
        assert owners == [set(ALL_OF_FOUR) - {play.party.names.index(name)}, set()]


def test_a_second_question_about_survivors_is_refused_and_so_is_a_second_unmasking() -> None:
    play = begun()
    party, sid = play.party, play.server.header.sid
    play.confirm()
    for survivors in (ALL_OF_FOUR, (0, 1, 2)):
        with pytest.raises(ProtocolError, match="survivors of this round are confirmed already"):
            confirm(party, VICTIM, sid, survivors)
    request = play.server.close_confirm()[VICTIM]
    assert party.client(VICTIM).resume().unmask(request)
    with pytest.raises(UnknownSessionError, match="or the session is over"):
        party.client(VICTIM).resume().unmask(request)
    with pytest.raises(UnknownSessionError, match="or the session is over"):
        confirm(party, VICTIM, sid, (0, 1, 2))


def test_a_client_object_that_lives_on_answers_once_too() -> None:
    play = begun()
    party, sid = play.party, play.server.header.sid
    first, second = (party.client(VICTIM).resume() for _ in range(2))
    request = ConfirmRequest(sid, ALL_OF_FOUR).encode()
    first.confirm(request)
    with pytest.raises(ProtocolError, match="confirmed already"):
        first.confirm(request)
    other = ConfirmRequest(sid, (0, 1, 2)).encode()
    with pytest.raises(ProtocolError, match="confirmed already"):
        second.confirm(other)


@pytest.mark.parametrize("stage", [Stage.CONFIRM, Stage.UNMASK])
def test_a_client_restarted_from_its_store_answers_once(stage: Stage) -> None:
    play = begun()
    party, sid = play.party, play.server.header.sid
    play.confirm()
    request = play.server.close_confirm()[VICTIM]
    if stage is Stage.UNMASK:
        party.client(VICTIM).resume().unmask(request)
    party.stores[VICTIM] = {str(k): bytes(v) for k, v in party.stores[VICTIM].items()}
    with pytest.raises(SecAggError, match=r"confirmed already|session is over"):
        confirm(party, VICTIM, sid, (0, 1, 2))
    with pytest.raises(ProtocolError, match="slot 1 of 2 was used already"):
        party.client(VICTIM).begin(play.server.requests()[VICTIM], CONTENT)
    if stage is Stage.UNMASK:
        with pytest.raises(UnknownSessionError, match="session is over"):
            party.client(VICTIM).resume().unmask(request)


def test_after_a_retry_the_two_kinds_belong_to_different_secrets() -> None:
    party = Party(4, slots=2).set_up()
    contributions = simple_contributions(party)
    first = party.open(1, 1)
    first.input(contributions, lost={"c003": Stage.INPUT})
    first.confirm()
    first.unmask()
    key = first.server._key_of(3)
    # The seed of slot 1 is gone from everybody but its owner, who has moved on, too.
    second = party.open(1, 2)
    second.input(contributions)
    assert all("slot-1" not in s and "held-1" not in s for s in party.stores.values())
    second.confirm()
    second.unmask()
    seed = second.server._seeds[3]
    for play in (first, second):
        with pytest.raises(ImpossibleSumError):
            read_single(play, play.vectors["c003"], 3, seed, key)
    public = X25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()
    assert public == party.server.mask_key(3, 1) != party.server.mask_key(3, 2)
    with pytest.raises(UnknownSessionError, match="or the session is over"):
        first.party.client("c003").resume().confirm(
            ConfirmRequest(first.server.header.sid, ALL_OF_FOUR).encode()
        )


def test_a_slot_serves_one_vector_even_where_the_model_differs() -> None:
    party = Party(4, slots=2).set_up()
    request = party.open().server.requests()[VICTIM]
    round_ = party.client(VICTIM).begin(request, CONTENT)
    other = rewrite(InputRequest, request, header=replace(round_.header, attempt=2))
    for again in (request, other):
        with pytest.raises(ProtocolError, match="slot 1 of 2 was used already"):
            party.client(VICTIM).begin(again, CONTENT)
    update = simple_contributions(party)[VICTIM].update
    round_.mask(update, [np.zeros(5)], 1.0, {})
    for later in (round_, party.client(VICTIM).resume()):
        with pytest.raises(ProtocolError, match="vector of this round was masked already"):
            later.mask(update, [np.zeros(5)], 1.0, {})


def test_slots_are_not_gone_back_to() -> None:
    party = Party(4, slots=3).set_up()
    opened = [party.open(i).server.requests()[VICTIM] for i in (1, 2, 3)]
    party.client(VICTIM).begin(opened[1], CONTENT)
    with pytest.raises(ProtocolError, match="slot 1 of 3 was used already"):
        party.client(VICTIM).begin(opened[0], CONTENT)
    assert "slot-1" not in party.stores[VICTIM]
    assert party.client(VICTIM).begin(opened[2], CONTENT)


def test_nothing_is_unmasked_before_the_survivors_are_confirmed() -> None:
    play = begun()
    party, sid = play.party, play.server.header.sid
    signed = [forge(party, name, sid, ALL_OF_FOUR) for name in party.names]
    with pytest.raises(ProtocolError, match="nothing is unmasked before the survivors are"):
        unmask(party, VICTIM, sid, signed)
    with pytest.raises(ProtocolError, match="nothing can be unmasked before the survivors are"):
        play.finish()
    play.server.close_input()
    with pytest.raises(BelowThresholdError, match="0 clients confirmed the survivors, 3 are"):
        play.server.close_confirm()


CLIENT_STEPS: list[tuple[str, Callable[[Party, str, bytes], object]]] = [
    ("keys", lambda party, name, data: party.client(name).share(data)),
    ("input", lambda party, name, data: party.client(name).begin(data, CONTENT)),
    (
        "confirm",
        lambda party, name, data: party.client(name).resume().confirm(data),
    ),
    ("unmask", lambda party, name, data: party.client(name).resume().unmask(data)),
]


def test_messages_replayed_early_late_or_to_another_entry_change_nothing_on_a_client() -> None:
    party = Party(4, slots=2)
    requests: dict[str, bytes] = {"keys": advertise(party)[VICTIM]}
    _replay(party, requests, now="keys")
    for name, keys in party.server.close_advertising().items():
        party.server.add_shares(name, party.client(name).share(keys))
    for slot in (1, 2):
        play = party.open(slot)
        requests[f"input-{slot}"] = play.server.requests()[VICTIM]
        _replay(party, requests, now=f"input-{slot}")
        play.input(simple_contributions(party))
        asked = ConfirmRequest(play.server.header.sid, ALL_OF_FOUR).encode()
        requests[f"confirm-{slot}"] = asked
        _replay(party, requests, now=f"confirm-{slot}")
        play.confirm()
        requests[f"unmask-{slot}"] = play.server.close_confirm()[VICTIM]
        _replay(party, requests, now=f"unmask-{slot}")
        play.unmask()
        _replay(party, requests, now="")
        assert play.finish().clients == 4


def _replay(party: Party, requests: dict[str, bytes], now: str) -> None:
    """Send every message so far to every entry, but the one that is due to the one it is for."""
    before = dict(party.stores[VICTIM])
    for label, data in requests.items():
        for entry, step in CLIENT_STEPS:
            if label != now or not now.startswith(entry):
                with pytest.raises(SecAggError):
                    step(party, VICTIM, data)
                assert party.stores[VICTIM] == before, (label, entry, now)


def test_the_server_takes_each_answer_once_in_its_time_and_from_its_owner() -> None:
    play = begun(4, slots=2)
    server, a = play.server, play.answers
    vector = play.vectors[VICTIM]
    with pytest.raises(ProtocolError, match="c001 sends a second vector"):
        server.add_input(VICTIM, a[Stage.INPUT, VICTIM], vector)
    with pytest.raises(ProtocolError, match="zoe is no member of the set-up"):
        server.add_input("zoe", a[Stage.INPUT, VICTIM], vector)
    play.confirm()
    for name in ("c000", VICTIM):
        with pytest.raises(ProtocolError, match=r"c00[01] is not wanted, or not any more"):
            server.add_confirmation(name, a[Stage.CONFIRM, VICTIM])
    early = UnmaskReply(server.header.sid, bytes(32), (), ()).encode()
    with pytest.raises(ProtocolError, match="an unmasking by c001 is not wanted"):
        server.add_unmasking(VICTIM, early)
    play.unmask()
    with pytest.raises(ProtocolError, match="an unmasking by c001 is not wanted"):
        server.add_unmasking(VICTIM, a[Stage.UNMASK, VICTIM])
    other = play.party.open(2)
    for add, stage in (
        (other.server.add_confirmation, Stage.CONFIRM),
        (other.server.add_unmasking, Stage.UNMASK),
    ):
        with pytest.raises(ProtocolError, match="a message of c001 is of another round"):
            add(VICTIM, a[stage, VICTIM])
    with pytest.raises(ProtocolError, match="a message of c001 is of another round"):
        other.server.add_input(VICTIM, a[Stage.INPUT, VICTIM], vector)
    assert play.finish().clients == 4


def test_a_confirmation_under_anothers_name_is_refused_by_the_server() -> None:
    play = begun()
    play.server.close_input()
    sid = play.server.header.sid
    for name in play.party.names:
        confirm(play.party, name, sid, ALL_OF_FOUR)
    signed = forge(play.party, "c000", sid, ALL_OF_FOUR)
    with pytest.raises(ProtocolError, match="the signature of c001 over the survivors is wrong"):
        play.server.add_confirmation(VICTIM, Confirmation(sid, signed.signature).encode())


def _looks_random(words: NDArray[np.uint32]) -> bool:
    """Chi-squared test over 16 equal ranges; a random vector fails it once in ten million."""
    counts = np.bincount(words >> 28, minlength=16)
    expected = len(words) / 16
    return bool(((counts - expected) ** 2 / expected).sum() < 64.0)


def test_a_late_vector_of_a_client_declared_dead_stays_masked() -> None:
    party = Party(4, dimension=4096, clip_norm=1.0, slots=2).set_up()
    rng = np.random.default_rng(7)
    contributions = {
        name: Contribution([rng.normal(0.0, 0.01, 4096).astype(np.float32)]) for name in party.names
    }
    play = party.open()
    play.input(contributions, lost={"c003": Stage.INPUT})
    seed = Memory(party.stores["c003"]).slot(1).seed
    play.confirm()
    play.unmask()
    late = play.vectors["c003"]
    with pytest.raises(ProtocolError, match="vector of c003 comes after the survivors were fixed"):
        play.server.add_input("c003", play.answers[Stage.INPUT, "c003"], late)
    assert play.finish().clients == 3

    # The server does have the dropped client's mask key, and takes all pairwise masks off.
    header = play.server.header
    pairwise = pair_masks_of(play, 3, play.server._key_of(3), header)
    left = take_off(play, late, pairwise)
    plain_words, _ = party.settings.encoding().views(
        take_off(play, late, [*pairwise, self_mask(seed, header.sid, 3, 1)])
    )
    words, _ = party.settings.encoding().views(left)
    scale = party.settings.encoding().scale
    expected = contributions["c003"].update[0] * scale
    # With the seed it would read the update, so nothing but the seed hides it: the test can fail.
    assert np.abs(plain_words.view(np.int32) - expected).max() < 2
    assert not _looks_random(plain_words.copy())
    assert _looks_random(words.copy())
    assert _looks_random((words - plain_words).copy())

    # And nobody gives a share of that seed: not in the round, not when asked again.
    for name in party.names[:3]:
        reply = UnmaskReply.decode(play.answers[Stage.UNMASK, name])
        assert 3 not in {share.owner for share in reply.seed_shares}
        assert 3 in {share.owner for share in reply.key_shares}
        with pytest.raises(UnknownSessionError, match="session is over"):
            confirm(party, name, header.sid, ALL_OF_FOUR)
        assert "held-1" not in party.stores[name]
    with pytest.raises(BelowThresholdError, match="0 shares of c003's seed came, 3 are needed"):
        play.server._seed_of(3)
    # The client itself gives it for a quorum's signatures only, and the others signed otherwise.
    confirm(party, "c003", header.sid, ALL_OF_FOUR)
    sent = [Signed(i, s) for i, s in play.server._signatures.items()]
    with pytest.raises(ProtocolError, match="c000 did not sign the survivors that this client"):
        unmask(party, "c003", header.sid, sent)


def test_a_server_on_a_ring_cannot_cut_a_client_off_from_its_neighbours() -> None:
    # With no neighbour in the sum, only the self-mask covers a client, and survivors give it up.
    party = Party(13, plan=plan_of(4, 3, 7), floors=ANY_PLAN, slots=2).set_up()
    near = party.server.graph.neighbours(1)
    for kept_near in (0, 2):
        rest = tuple(i for i in range(13) if i not in near[kept_near:])
        words = f"{kept_near} neighbours are among the "
        play = party.open(participants=[party.names[i] for i in rest])
        with pytest.raises(BelowThresholdError, match=f"{words}participants, 3 are needed"):
            party.client(VICTIM).begin(play.server.requests()[VICTIM], CONTENT)
    party = Party(13, plan=plan_of(4, 3, 7), floors=ANY_PLAN).set_up()
    near = party.server.graph.neighbours(1)
    play = party.open()
    party.client(VICTIM).begin(play.server.requests()[VICTIM], CONTENT)
    for kept_near in (0, 2):
        rest = tuple(i for i in range(13) if i not in near[kept_near:])
        words = f"{kept_near} neighbours are among the "
        with pytest.raises(BelowThresholdError, match=f"{words}survivors, 3 are needed"):
            confirm(party, VICTIM, play.server.header.sid, rest)
    rest = tuple(i for i in range(13) if i not in near[3:])
    assert confirm(party, VICTIM, play.server.header.sid, rest).signer == 1


def test_on_a_ring_no_survivors_that_all_would_confirm_fall_apart() -> None:
    # All choices of survivors out of 13, with one colluding client, whom 2 t - k = 2 allows: the
    # honest ones stay connected by masks that the server does not know.
    party = Party(13, plan=plan_of(4, 3, 7), floors=ANY_PLAN)
    advertise(party)
    around = [sum(1 << j for j in party.server.graph.neighbours(i)) for i in range(13)]
    colluder, confirmed = 1, 0
    for survivors in range(2**13):
        honest = survivors & ~colluder
        members = [i for i in range(13) if honest >> i & 1]
        if survivors.bit_count() < 7 or any(
            (around[i] & survivors).bit_count() < 3 for i in members
        ):
            continue
        reached = grown = 1 << members[0]
        while grown:
            grown = 0
            for i in members:
                if reached >> i & 1:
                    grown |= around[i] & honest
            grown &= ~reached
            reached |= grown
        assert reached == honest
        confirmed += 1
    assert confirmed > 13


def test_masks_of_two_sessions_have_nothing_in_common() -> None:
    # A mask is AES-256-CTR under 32 bytes from HKDF of a 32-byte secret: there is no smaller seed.
    party = Party(4, slots=2).set_up()
    headers = [party.open(i).server.header for i in (1, 2)]
    seed = Memory(party.stores[VICTIM]).slot(1).seed
    keys = set()
    for header in (headers[0], headers[1], replace(headers[0], attempt=2)):
        for index in range(4):
            keys.add(self_mask(seed, header.sid, index, 1).key)
    # One bit of the secret, whichever it is, makes another key.
    for bit in range(256):
        other = (int.from_bytes(seed, "big") ^ 1 << bit).to_bytes(32, "big")
        keys.add(self_mask(other, headers[0].sid, 1, 1).key)
    assert len(keys) == 12 + 256
    assert {len(key) for key in keys} == {32}
    assert len({_keystream(key) for key in keys}) == len(keys)


def _keystream(key: bytes) -> bytes:
    buffer = bytearray(64 + 16)
    Keystream(key).fill(memoryview(buffer), 64)
    return bytes(buffer[:64])


def test_the_header_binds_every_field() -> None:
    header = RoundHeader(bytes(32), 1, 1, 1, "update", "", CONTENT, (0, 1))
    others = {
        "transcript": CONTENT[:31] + b"1",
        "slot": 2,
        "round": 2,
        "attempt": 2,
        "purpose": "figures",
        "weight_key": "n",
        "content": CONTENT[:31] + b"1",
        "participants": (0, 1, 2),
    }
    assert set(others) == {field.name for field in fields(RoundHeader)}
    sids = {header.sid, *(replace(header, **{k: v}).sid for k, v in others.items())}
    assert len(sids) == 1 + len(others)


def test_what_is_made_for_one_purpose_serves_no_other() -> None:
    secret, parts = bytes(range(32)), (bytes(32), bytes(4))
    purposes = ("setup", "advertisement", "member", "transcript", "sid", "survivors", "seed")
    assert len({digest(purpose, *parts) for purpose in purposes}) == len(purposes)
    assert len({kdf(secret, purpose, *parts) for purpose in ("self", "pair", "parcel")}) == 3
    # Nor do parts that join to the same bytes.
    assert digest("sid", b"ab", b"c") != digest("sid", b"a", b"bc") != digest("sid", b"abc")
