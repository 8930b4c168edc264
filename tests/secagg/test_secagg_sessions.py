from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from secagg_party import (
    ANY_PLAN,
    Contribution,
    Drops,
    Party,
    Play,
    Stage,
    plan_of,
    simple_contributions,
)

from fedveil.secagg import client_session, graph
from fedveil.secagg.encoding import DecodedSum, Encoding
from fedveil.secagg.errors import (
    BelowThresholdError,
    EncodingError,
    ProtocolError,
    UnknownSessionError,
)
from fedveil.secagg.messages import FIGURES, InputReply, SharesReply
from fedveil.secagg.parameters import plan_for

LAST = (None, Stage.INPUT, Stage.CONFIRM, Stage.UNMASK)
Words = tuple[NDArray[np.unsignedinteger], NDArray[np.uint64]]


class Recorder:
    """Copies of what is encoded, in order, and of what is decoded."""

    def __init__(self) -> None:
        self.encoded: list[Words] = []
        self.decoded: list[Words] = []

    def forget(self) -> None:
        self.encoded.clear()
        self.decoded.clear()


@contextmanager
def recording() -> Iterator[Recorder]:
    recorder = Recorder()
    encode, decode = Encoding.encode, Encoding.decode

    def encode_and_copy(self: Encoding, *args: object, **kwargs: object) -> None:
        encode(self, *args, **kwargs)  # type: ignore[arg-type]
        recorder.encoded.append((args[4].copy(), args[5].copy()))  # type: ignore[attr-defined]

    def copy_and_decode(
        self: Encoding, vector: NDArray[np.unsignedinteger], tail: NDArray[np.uint64], *args: object
    ) -> DecodedSum:
        recorder.decoded.append((vector.copy(), tail.copy()))
        return decode(self, vector, tail, *args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoding, "encode", encode_and_copy)
        patch.setattr(Encoding, "decode", copy_and_decode)
        patch.setattr(graph, "_COST", 2)
        yield recorder


def copied(party: Party) -> Party:
    """Return a party that goes on by itself from where this one stands."""
    fixed = [party.roster, *party.identities.values()]
    return copy.deepcopy(party, {id(one): one for one in fixed})


def check_round(
    party: Party,
    recorder: Recorder,
    contributions: Mapping[str, Contribution],
    drops: Drops,
    lost: Drops,
    round_: int = 1,
) -> bool:
    """Play a round, check it against what must come of it, and tell whether a sum came."""
    recorder.forget()
    expected = survivors_of(party, drops, lost)
    play = None
    try:
        play = party.open(round_)
        play.input(contributions, drops, lost)
        play.confirm(drops, lost)
        play.unmask(drops, lost)
        found = play.finish()
    except BelowThresholdError:
        if play is not None:
            assert _only_refuses_below_threshold(play)
            assert not play.server.faults, "honest clients are accused"
        assert expected is None, f"no sum, though {expected} could be unmasked"
        assert not recorder.decoded
        return False
    assert _only_refuses_below_threshold(play)
    assert play.server.survivors == expected
    words = dict(zip(play.vectors, recorder.encoded, strict=True))
    vector, tail = recorder.decoded[0]
    summed = np.zeros_like(vector), np.zeros_like(tail)
    for name in expected:
        summed[0][:] += words[name][0]
        summed[1][:] += words[name][1]
    assert vector.tobytes() == summed[0].tobytes()
    assert tail.tobytes() == summed[1].tobytes()
    assert found.clients == len(expected)
    assert not play.server.faults
    return True


def _only_refuses_below_threshold(play: Play) -> bool:
    return all(isinstance(error, BelowThresholdError) for error in play.refusals.values())


def survivors_of(party: Party, drops: Drops, lost: Drops) -> tuple[str, ...] | None:
    """Say whose sum must come of a round, or that none can: a second account of the protocol."""
    server, plan = party.server, party.server.plan
    names = server.names
    around = {
        name: {names[i] for i in server.graph.neighbours(i_own)} for i_own, name in enumerate(names)
    }

    def answer(stage: Stage, asked: set[str], known: set[str]) -> set[str]:
        return {
            name
            for name in asked
            if drops.get(name, 9) > stage
            and lost.get(name, 9) > stage
            and (plan.is_complete or len(around[name] & known) >= plan.threshold)
        }

    participants = set(server.ready)
    if len(participants) < plan.quorum:
        return None
    survivors = answer(Stage.INPUT, participants, participants)
    if len(survivors) < plan.quorum:
        return None
    confirmed = answer(Stage.CONFIRM, survivors, survivors)
    if len(confirmed) < plan.quorum:
        return None
    helpers = answer(Stage.UNMASK, confirmed, survivors)
    needed = {name for name in survivors if name not in helpers}
    needed |= {name for name in participants - survivors if around[name] & survivors}
    if any(len(around[name] & helpers) < plan.threshold for name in needed):
        return None
    return tuple(sorted(survivors))


# Any session ---------------------------------------------------------------------------------


@st.composite
def drops_of(draw: st.DrawFn, names: Sequence[str], most: int) -> dict[str, Stage]:
    who = draw(st.lists(st.sampled_from(names), max_size=most, unique=True)) if most else []
    return {name: draw(st.sampled_from([Stage.INPUT, Stage.CONFIRM, Stage.UNMASK])) for name in who}


@st.composite
def plans(draw: st.DrawFn, clients: int) -> tuple[int, int, int]:
    rings = range(2, clients - 1, 2)
    neighbours = draw(st.sampled_from([clients - 1, *rings]))
    threshold = draw(st.integers(neighbours // 2 + 1, neighbours))
    quorum = draw(st.integers(clients // 2 + 1, clients))
    return neighbours, threshold, quorum


@given(st.data(), st.integers(2, 10), st.integers(0, 9), st.sampled_from([16, 32]))
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_the_sum_is_that_of_the_survivors_to_the_bit_or_none_at_all(
    data: st.DataObject, clients: int, dimension: int, ring_bits: int
) -> None:
    absent = data.draw(st.integers(0, max(0, min(2, clients - 2))), "absent")
    neighbours, threshold, quorum = data.draw(plans(clients - absent), "k, t, quorum")
    party = Party(
        clients,
        dimension=dimension,
        clip_norm=3.0,
        max_weight=4.0,
        ring_bits=ring_bits,
        slots=2,
        plan=plan_of(neighbours, threshold, quorum),
        floors=ANY_PLAN,
        is_tolerant=True,
    )
    silent = data.draw(st.sets(st.sampled_from(party.names), max_size=1), "deal no shares")
    gone: dict[str, Stage] = dict.fromkeys(silent, Stage.SHARE)
    gone |= dict.fromkeys(data.draw(st.permutations(party.names))[:absent], Stage.ADVERTISE)
    values = st.lists(st.floats(-2.0, 2.0), min_size=dimension, max_size=dimension)
    contributions = {
        name: Contribution(
            [np.array(data.draw(values))],
            data.draw(st.floats(0.01, 4.0)),
            {"loss": data.draw(st.floats(-1e3, 1e3))},
        )
        for name in party.names
    }
    with recording() as recorder:
        party.set_up(gone)
        most = data.draw(st.integers(0, clients), "most that drop")
        for round_ in (1, 2):
            drops = data.draw(drops_of(party.names, most), "drops")
            lost = data.draw(drops_of(party.names, min(most, 1)), "lost")
            came = check_round(party, recorder, contributions, drops, lost, round_)
            event(f"round {round_}: {'a' if came else 'no'} sum, {neighbours + 1 < clients=}")


@pytest.mark.parametrize("dimension", [65_535, 131_073])
@pytest.mark.parametrize("ring_bits", [16, 32])
def test_the_sum_is_right_to_the_bit_across_blocks_of_keystream(
    dimension: int, ring_bits: int
) -> None:
    party = Party(4, dimension=dimension, ring_bits=ring_bits)
    with recording() as recorder:
        assert check_round(
            party.set_up(), recorder, simple_contributions(party), {"c001": Stage.INPUT}, {}
        )


def test_a_crowd_on_a_ring_bears_drops_at_every_stage() -> None:
    drops = dict.fromkeys(("c000", "c001", "c002"), Stage.INPUT)
    drops |= {"c010": Stage.CONFIRM, "c011": Stage.CONFIRM, "c020": Stage.UNMASK}
    lost = {"c015": Stage.INPUT}

    def crowd() -> Party:
        party = Party(30, plan=plan_of(12, 7, 17), floors=ANY_PLAN, dimension=3, is_tolerant=True)
        return party.set_up({"c005": Stage.ADVERTISE, "c006": Stage.SHARE})

    with recording() as recorder:
        party = crowd()
        # The ring is drawn at random, and may put all that drop out beside each other.
        while survivors_of(party, drops, lost) is None:
            party = crowd()
        assert check_round(party, recorder, simple_contributions(party), drops, lost)


def test_the_default_sparse_plan_sums_a_hundred_and_one() -> None:
    party = Party(101, dimension=2).set_up()
    assert not party.server.plan.is_complete
    found = party.play(simple_contributions(party), dict.fromkeys(party.names[:4], Stage.INPUT))
    assert found.clients == 97


# All sessions --------------------------------------------------------------------------------


def all_patterns(clients: int) -> tuple[int, int]:
    """Play every pattern of drops on one set-up, and return how many there are and give a sum."""
    party = Party(clients, dimension=2)
    contributions = simple_contributions(party)
    summed = count = 0
    with recording() as recorder:
        party.set_up()
        for pattern in itertools.product(LAST, repeat=clients):
            drops = {
                name: stage
                for name, stage in zip(party.names, pattern, strict=True)
                if stage is not None
            }
            summed += check_round(copied(party), recorder, contributions, drops, {})
            count += 1
    return count, summed


@pytest.mark.parametrize("clients", [2, 3, 4, 5, pytest.param(6, marks=pytest.mark.slow)])
def test_every_pattern_of_drops_gives_the_right_sum_or_none(clients: int) -> None:
    count, summed = all_patterns(clients)
    assert count == 4**clients
    # Worked out from quorum and threshold alone: see `patterns_with_a_sum`.
    assert summed == patterns_with_a_sum(clients)
    assert 0 < summed < count


def patterns_with_a_sum(clients: int) -> int:
    """Count by hand, for the complete graph: i, c and u drop before input, confirm and unmask."""
    plan = plan_for(clients)
    total = 0
    for pattern in itertools.product(range(4), repeat=clients):
        i, c, u = (sum(p == stage for p in pattern) for stage in (1, 2, 3))
        survivors = clients - i
        confirmed = survivors - c
        helpers = confirmed - u
        is_enough = survivors >= plan.quorum and confirmed >= plan.quorum
        # Whoever does not help has its secret given by the helpers, none of whom it is.
        total += is_enough and (i + c + u == 0 or helpers >= plan.threshold)
    return total


def test_a_drop_at_each_stage_alone_costs_only_who_drops() -> None:
    for stage in LAST[1:]:
        party = Party(5).set_up()
        found = party.play(simple_contributions(party), {"c002": stage})
        assert found.clients == (4 if stage is Stage.INPUT else 5)


@pytest.mark.parametrize("stage", [Stage.ADVERTISE, Stage.SHARE])
def test_a_drop_in_the_set_up_costs_only_who_drops(stage: Stage) -> None:
    party = Party(5).set_up({"c002": stage})
    found = party.play(simple_contributions(party))
    assert found.clients == 4
    assert party.server.ready == ("c000", "c001", "c003", "c004")
    expected = np.mean([simple_contributions(party)[n].update[0] for n in party.server.ready], 0)
    assert found.mean[0] == pytest.approx(expected, abs=1e-6)


def test_too_few_in_the_set_up_are_told() -> None:
    with pytest.raises(BelowThresholdError, match="1 clients can be summed, 2 are needed"):
        Party(3).set_up({"c000": Stage.ADVERTISE, "c001": Stage.ADVERTISE})
    party = Party(4).set_up({"c000": Stage.SHARE, "c001": Stage.SHARE})
    with pytest.raises(BelowThresholdError, match="2 clients can take part, 3 are needed"):
        party.open()


# Several rounds ------------------------------------------------------------------------------


def test_who_drops_in_one_round_takes_part_in_the_next() -> None:
    party = Party(6, slots=4).set_up()
    contributions = simple_contributions(party)
    with recording() as recorder:
        for round_, stage in enumerate(LAST, start=1):
            drops = {"c003": stage} if stage is not None else {}
            assert check_round(party, recorder, contributions, drops, {}, round_)


def test_an_answer_that_was_lost_does_not_cost_the_next_round() -> None:
    party = Party(6, slots=4).set_up()
    contributions = simple_contributions(party)
    with recording() as recorder:
        for round_, stage in enumerate((Stage.INPUT, Stage.CONFIRM, Stage.UNMASK), start=1):
            assert check_round(party, recorder, contributions, {}, {"c000": stage}, round_)
        assert check_round(party, recorder, contributions, {"c005": Stage.UNMASK}, {}, 4)


def test_who_joins_in_the_second_round_can_help_in_it() -> None:
    # c000 is first asked in round 2, and then holds shares that are needed for c001.
    party = Party(4, slots=2).set_up()
    contributions = simple_contributions(party)
    assert party.play(contributions, {"c000": Stage.INPUT}).clients == 3
    assert party.play(contributions, {"c001": Stage.INPUT}, round_=2).clients == 3


def test_a_round_that_failed_is_tried_again_with_the_next_slot() -> None:
    party = Party(4, slots=3).set_up()
    contributions = simple_contributions(party)
    tries = [(Stage.INPUT, "2 vectors came"), (Stage.CONFIRM, "2 clients confirmed")]
    for attempt, (stage, said) in enumerate(tries, start=1):
        drops = {"c000": stage, "c001": stage}
        with pytest.raises(BelowThresholdError, match=rf"{said}.*, 3 are needed"):
            party.play(contributions, drops, attempt=attempt)
    assert party.server.slots_left == 1
    assert party.play(contributions, attempt=3).clients == 4


def test_a_retry_masks_the_same_input_anew() -> None:
    party = Party(4, slots=2, dimension=2000).set_up()
    contributions = simple_contributions(party)
    vectors = []
    for attempt in (1, 2):
        play = party.open(1, attempt)
        with recording() as recorder:
            play.input(contributions)
        words = dict(zip(play.vectors, recorder.encoded, strict=True))
        vectors.append((play.vectors, words))
    for name in party.names:
        views = [np.frombuffer(v[name], "<u4", 2000) for v, _ in vectors]
        plain = [words[name][0] for _, words in vectors]
        # Unmasked, both would differ by a rounding at most; the masks spread over the whole ring.
        assert np.abs((plain[0] - plain[1]).view("<i4")).max() <= 1
        difference = (views[0] - views[1]).view("<i4").astype(np.float64)
        assert np.abs(difference).mean() == pytest.approx(2**30, rel=0.1)
        assert vectors[0][0][name][-512:] != vectors[1][0][name][-512:]


def test_a_masked_vector_looks_nothing_like_its_input() -> None:
    party = Party(3, dimension=20_000).set_up()
    play = party.open()
    play.input({name: Contribution([np.zeros(20_000)]) for name in party.names})
    for vector in play.vectors.values():
        counts = np.bincount(np.frombuffer(vector, np.uint8), minlength=256)
        # 80 512 bytes: each value some 314 times; chi-squared of 255 degrees beyond 450 is < 1e-12.
        expected = len(vector) / 256
        assert float(((counts - expected) ** 2 / expected).sum()) < 450.0


def test_when_the_slots_run_out_it_is_said() -> None:
    party = Party(3, slots=2).set_up()
    contributions = simple_contributions(party)
    for round_ in (1, 2):
        assert party.server.slots_left == 3 - round_
        party.play(contributions, round_=round_)
    with pytest.raises(ProtocolError, match="used up after 2 rounds"):
        party.open(3)


def test_a_new_set_up_takes_the_place_of_the_old_one() -> None:
    old = Party(3, slots=2).set_up()
    request = old.open().server.requests()["c000"]
    new = Party(3)
    new.stores, new.identities, new.roster = old.stores, old.identities, old.roster
    new.server = type(old.server)(new.settings, plan_for, new.roster)
    new.set_up()
    with pytest.raises(UnknownSessionError, match="another set-up"):
        old.client("c000").begin(request, bytes(32))
    assert new.play(simple_contributions(new)).clients == 3


def test_a_client_without_a_set_up_says_so() -> None:
    party = Party(3).set_up()
    request = party.open().server.requests()["c000"]
    party.stores["c000"].clear()
    with pytest.raises(UnknownSessionError, match="does not know the session"):
        party.client("c000").begin(request, bytes(32))
    with pytest.raises(UnknownSessionError, match="does not know the session"):
        party.client("c000").resume()


# Steps out of order --------------------------------------------------------------------------


def test_a_sum_is_given_once() -> None:
    party = Party(3).set_up()
    play = party.open()
    play.input(simple_contributions(party))
    with pytest.raises(ProtocolError, match="before the survivors are confirmed"):
        play.finish()
    play.confirm()
    play.unmask()
    assert play.finish().clients == 3
    with pytest.raises(ProtocolError, match="unmasked already"):
        play.finish()


def test_shares_that_come_late_still_give_the_sum() -> None:
    party = Party(5).set_up()
    play = party.open()
    late = dict.fromkeys(party.names[1:], Stage.UNMASK)
    play.input(simple_contributions(party))
    play.confirm()
    play.unmask(lost=late)
    with pytest.raises(BelowThresholdError, match="1 shares of c001's seed came, 3 are needed"):
        play.finish()
    for name in party.names[1:4]:
        play.server.add_unmasking(name, play.answers[Stage.UNMASK, name])
    assert play.finish().clients == 5


def test_a_vector_after_the_survivors_are_fixed_or_a_second_one_is_refused() -> None:
    party = Party(5).set_up()
    play = party.open()
    play.input(simple_contributions(party), lost={"c004": Stage.INPUT})
    with pytest.raises(ProtocolError, match="second vector"):
        play.server.add_input("c000", play.answers[Stage.INPUT, "c000"], play.vectors["c000"])
    play.confirm()
    with pytest.raises(ProtocolError, match="c004 comes after the survivors were fixed"):
        play.server.add_input("c004", play.answers[Stage.INPUT, "c004"], play.vectors["c004"])
    play.unmask()
    assert play.finish().clients == 4


def test_messages_of_another_round_are_refused() -> None:
    party = Party(3, slots=2).set_up()
    contributions = simple_contributions(party)
    first = party.open()
    first.input(contributions)
    first.confirm()
    first.unmask()
    second = party.open(2)
    for add in (
        lambda: second.server.add_input(
            "c000", first.answers[Stage.INPUT, "c000"], first.vectors["c000"]
        ),
        lambda: second.server.add_confirmation("c000", first.answers[Stage.CONFIRM, "c000"]),
        lambda: second.server.add_unmasking("c000", first.answers[Stage.UNMASK, "c000"]),
    ):
        with pytest.raises(ProtocolError, match="of another round"):
            add()


@pytest.mark.parametrize("change", [-1, 1])
def test_a_vector_of_another_length_is_refused_and_spoils_nothing(change: int) -> None:
    party = Party(4).set_up()
    play = party.open()
    play.input(simple_contributions(party), lost={"c000": Stage.INPUT})
    vector = (play.vectors["c000"] + b"\0")[: len(play.vectors["c000"]) + change]
    with pytest.raises(EncodingError, match="a masked vector has"):
        play.server.add_input("c000", play.answers[Stage.INPUT, "c000"], vector)
    play.confirm()
    play.unmask()
    assert play.finish().clients == 3


# Figures and weights -------------------------------------------------------------------------


def test_weights_weigh_updates_and_figures_are_summed() -> None:
    party = Party(4, dimension=2, max_weight=100.0).set_up()
    weights = dict(zip(party.names, (1.0, 10.0, 39.0, 100.0), strict=True))
    updates = {name: np.array([i + 1.0, -i]) for i, name in enumerate(party.names)}
    found = party.play(
        {
            name: Contribution(
                [updates[name]], weights[name], {"loss": 0.5 * weights[name], "n": 1.0}
            )
            for name in party.names
        },
        {"c001": Stage.INPUT},
    )
    left = [name for name in party.names if name != "c001"]
    assert found.weight == 140.0
    assert found.figures == {"loss": 70.0, "n": 3.0}
    expected = sum(weights[name] * updates[name] for name in left) / 140.0
    bound = party.settings.encoding().error_bound(3, 140.0)
    assert found.mean[0] == pytest.approx(expected, abs=bound)


def test_a_round_for_figures_alone_has_no_coordinates() -> None:
    party = Party(3, dimension=1000).set_up()
    play = party.open(purpose=FIGURES)
    play.input({name: Contribution([], 2.0 / 4, {"acc": 0.25}) for name in party.names})
    assert {len(vector) for vector in play.vectors.values()} == {512}
    play.confirm()
    play.unmask()
    found = play.finish([])
    assert (found.weight, dict(found.figures), found.mean) == (1.5, {"acc": 0.75}, ())


def test_who_names_other_figures_is_left_out_and_named() -> None:
    party = Party(5).set_up()
    contributions = simple_contributions(party, {"loss": 2.0})
    contributions["c003"] = replace(contributions["c003"], figures={"los": 2.0})
    with recording() as recorder:
        play = party.open()
        play.input(contributions)
        play.confirm()
        play.unmask()
        found = play.finish()
    assert play.server.survivors == ("c000", "c001", "c002", "c004")
    assert found.figures == {"loss": 8.0}
    assert list(play.server.faults) == ["c003"]
    assert "['los']" in play.server.faults["c003"]
    assert "['loss']" in play.server.faults["c003"]
    words = dict(zip(play.vectors, recorder.encoded, strict=True))
    expected = sum((words[n][0] for n in play.server.survivors), np.zeros(5, "<u4"))
    assert recorder.decoded[0][0].tobytes() == expected.astype("<u4").tobytes()


def test_when_nobody_names_the_same_figures_no_quorum_is_left() -> None:
    party = Party(4).set_up()
    contributions = {
        name: replace(one, figures={name: 1.0}) for name, one in simple_contributions(party).items()
    }
    with pytest.raises(BelowThresholdError, match="1 vectors came, 3 are needed"):
        party.play(contributions)


def test_the_order_of_figures_does_not_matter() -> None:
    party = Party(3).set_up()
    figures = [{"a": 1.0, "b": 2.0}, {"b": 2.0, "a": 1.0}, {"b": 2.0, "a": 1.0}]
    contributions = {
        name: replace(one, figures=own)
        for (name, one), own in zip(simple_contributions(party).items(), figures, strict=True)
    }
    assert party.play(contributions).figures == {"a": 3.0, "b": 6.0}


# Clients that deal wrongly -------------------------------------------------------------------


def set_up_with(party: Party, dealer: str, change: str) -> None:
    """Set up, with one client's packet for c000 changed on its way."""
    request = party.server.request()
    for name in party.names:
        party.server.add_advertisement(party.client(name).advertise(request))
    for name, keys in party.server.close_advertising().items():
        reply = SharesReply.decode(party.client(name).share(keys))
        if name == dealer:
            packet = reply.packets[0]
            assert packet.holder == 0
            value = getattr(packet, change)
            changed = bytes([value[0] ^ 1]) + value[1:]
            packets = (replace(packet, **{change: changed}), *reply.packets[1:])
            reply = replace(reply, packets=packets)
        party.server.add_shares(name, reply.encode())


@pytest.mark.parametrize("change", ["sealed", "commitments"])
@pytest.mark.parametrize("stage", LAST)
def test_a_complaint_about_a_bad_parcel_is_recorded_and_costs_nothing(
    change: str, stage: Stage | None
) -> None:
    party = Party(5, slots=2)
    set_up_with(party, "c002", change)
    drops = {} if stage is None else {"c002": stage}
    play = party.open()
    play.input(simple_contributions(party), drops)
    assert InputReply.decode(play.answers[Stage.INPUT, "c000"]).bad_parcels == (2,)
    assert InputReply.decode(play.answers[Stage.INPUT, "c001"]).bad_parcels == ()
    play.confirm(drops)
    play.unmask(drops)
    assert play.finish().clients == (4 if stage is Stage.INPUT else 5)
    assert list(play.server.faults) == ["c002"]
    assert "says c000" in play.server.faults["c002"]


def split_wrongly(_secret: bytes, _threshold: int, points: Sequence[int]) -> dict[int, int]:
    """Deal shares of something else, on a polynomial of too high a degree."""
    return {point: 7 * point**4 + 1 for point in points}


@pytest.mark.parametrize(
    ("stage", "kind"), [(Stage.INPUT, "key"), (Stage.CONFIRM, "seed"), (None, "")]
)
def test_a_dealer_of_wrong_shares_is_named_when_they_are_needed(
    monkeypatch: pytest.MonkeyPatch, stage: Stage | None, kind: str
) -> None:
    party = Party(5)
    request = party.server.request()
    for name in party.names:
        party.server.add_advertisement(party.client(name).advertise(request))
    for name, keys in party.server.close_advertising().items():
        with monkeypatch.context() as patch:
            if name == "c002":
                patch.setattr(client_session, "split", split_wrongly)
            party.server.add_shares(name, party.client(name).share(keys))
    drops = {} if stage is None else {"c002": stage}
    play = party.open()
    play.input(simple_contributions(party), drops)
    play.confirm(drops)
    play.unmask(drops)
    if stage is None:
        assert play.finish().clients == 5
        assert not play.server.faults
    else:
        with pytest.raises(BelowThresholdError, match=f"the {kind} of c002 is lost"):
            play.finish()
        assert list(play.server.faults) == ["c002"]
