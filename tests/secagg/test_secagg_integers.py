"""A round that sums integers: exact modulo the ring, and nothing but integers gets in."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from secagg_party import ANY_PLAN, CONTENT, Contribution, Drops, Party, Play, Stage, plan_of

from fedveil.secagg.encoding import DecodedSum, Encoding
from fedveil.secagg.errors import (
    BelowThresholdError,
    EncodingError,
    ImpossibleSumError,
    ProtocolError,
)
from fedveil.secagg.floors import Floors
from fedveil.secagg.integers import decode_integers, encode_integers
from fedveil.secagg.messages import FIGURES, INTEGERS, UPDATE

Integers = Mapping[str, NDArray[np.int64]]


def hand_in(play: Play, values: Integers, drops: Drops | None = None) -> None:
    for name, request in play.server.requests().items():
        if drops and drops.get(name, Stage.UNMASK) <= Stage.INPUT:
            continue
        round_ = play.party.client(name).begin(request, CONTENT)
        reply, vector = round_.mask_integers(values[name], {"n": 2.0})
        play.vectors[name] = vector
        play.server.add_input(name, reply, vector)


def summed(party: Party, values: Integers, drops: Drops | None = None) -> DecodedSum:
    play = party.open(purpose=INTEGERS)
    hand_in(play, values, drops)
    play.confirm(drops)
    play.unmask(drops)
    return play.finish([])


def integers_of(party: Party, seed: int = 0, bound: int = 2**40) -> dict[str, NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    return {
        name: generator.integers(-bound, bound, party.settings.dimension) for name in party.names
    }


def centred(total: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Return integers modulo the ring, by Python's own arithmetic."""
    half = 2 ** (bits - 1)
    return np.array([(int(x) + half) % 2**bits - half for x in total])


@pytest.mark.parametrize("ring_bits", [16, 32])
@pytest.mark.parametrize("clients", [2, 3, 10])
def test_the_sum_is_exact_modulo_the_ring(clients: int, ring_bits: int) -> None:
    party = Party(clients, dimension=37, ring_bits=ring_bits).set_up()
    values = integers_of(party)
    found = summed(party, values)
    assert found.integers is not None
    assert found.integers.dtype == np.int64
    np.testing.assert_array_equal(found.integers, centred(sum(values.values()), ring_bits))  # type: ignore[arg-type]
    assert (found.mean, found.weight, found.clients, found.clipped) == ((), clients, clients, 0)
    assert found.figures == {"n": 2.0 * clients}


def test_a_sum_within_the_ring_is_the_sum_itself() -> None:
    party = Party(5, dimension=9).set_up()
    values = integers_of(party, bound=2**28)
    found = summed(party, values)
    np.testing.assert_array_equal(found.integers, sum(values.values()))


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=60)
def test_any_two_integers_add_up_modulo_the_ring(one: int, other: int) -> None:
    for bits in (16, 32):
        encoding = Encoding(1, 1.0, 1.0, 2, bits)
        _, vector, tail = encoding.empty()
        _, vector2, tail2 = encoding.empty()
        encode_integers(encoding, np.array([one]), {}, vector, tail)
        encode_integers(encoding, np.array([other]), {}, vector2, tail2)
        found = decode_integers(encoding, vector + vector2, tail + tail2, 2, [])
        half = 2 ** (bits - 1)
        assert found.integers is not None
        assert int(found.integers[0]) == (one + other + half) % 2**bits - half


@pytest.mark.parametrize("stage", [Stage.INPUT, Stage.CONFIRM, Stage.UNMASK])
def test_a_client_may_drop_out_at_any_stage(stage: Stage) -> None:
    party = Party(7, dimension=11).set_up()
    values = integers_of(party, bound=1000)
    found = summed(party, values, {"c002": stage})
    left = [v for n, v in values.items() if n != "c002" or stage > Stage.INPUT]
    assert found.clients == len(left)
    np.testing.assert_array_equal(found.integers, sum(left))


def test_below_the_quorum_nothing_is_unmasked() -> None:
    """The quorum carries the noise: a sum of fewer has less than what is accounted."""
    party = Party(4, dimension=3, plan=plan_of(3, 3, 4)).set_up()
    values = integers_of(party)
    with pytest.raises(BelowThresholdError, match="3 vectors came, 4 are needed"):
        summed(party, values, {"c001": Stage.INPUT})


def test_on_the_ring_of_many_clients_it_works_alike() -> None:
    party = Party(9, dimension=5, plan=plan_of(4, 3, 6), floors=ANY_PLAN).set_up()
    values = integers_of(party, bound=99)
    found = summed(party, values, {"c004": Stage.INPUT})
    np.testing.assert_array_equal(found.integers, sum(v for n, v in values.items() if n != "c004"))


def test_the_masked_vector_hides_what_was_handed_in() -> None:
    party = Party(3, dimension=500).set_up()
    play = party.open(purpose=INTEGERS)
    hand_in(play, {name: np.zeros(500, np.int64) for name in party.names})
    words = np.frombuffer(play.vectors["c000"][: 4 * 500], "<u4")
    # Uniform words: a zero among 500 has a chance of 2^-23.
    assert np.count_nonzero(words) > 490
    assert 0.4 < (words >= 2**31).mean() < 0.6


@pytest.mark.parametrize("purpose", [UPDATE, FIGURES])
def test_integers_are_refused_where_something_else_is_summed(purpose: str) -> None:
    party = Party(3).set_up()
    play = party.open(purpose=purpose)
    request = play.server.requests()["c000"]
    round_ = party.client("c000").begin(request, CONTENT)
    with pytest.raises(ProtocolError, match=f"{purpose}s are to be summed"):
        round_.mask_integers(np.zeros(5, np.int64), {})


def test_an_update_is_refused_where_integers_are_summed() -> None:
    party = Party(3).set_up()
    play = party.open(purpose=INTEGERS)
    one = Contribution([np.zeros(5)])
    with pytest.raises(ProtocolError, match="integers are to be summed"):
        play.input(dict.fromkeys(party.names, one))


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(4, np.int64),
        np.zeros((5, 1), np.int64),
        np.zeros(5, np.int32),
        np.zeros(5, np.float64),
    ],
)
def test_other_shapes_and_types_do_not_leave_the_client(values: NDArray[np.int64]) -> None:
    party = Party(3).set_up()
    round_ = party.client("c000").begin(
        party.open(purpose=INTEGERS).server.requests()["c000"], CONTENT
    )
    with pytest.raises(EncodingError, match="the session is for int64"):
        round_.mask_integers(values, {})


def test_a_slot_serves_one_vector_whatever_is_summed() -> None:
    party = Party(3).set_up()
    play = party.open(purpose=INTEGERS)
    request = play.server.requests()["c000"]
    round_ = party.client("c000").begin(request, CONTENT)
    round_.mask_integers(np.ones(5, np.int64), {})
    with pytest.raises(ProtocolError, match="masked already"):
        round_.mask_integers(np.ones(5, np.int64), {})
    with pytest.raises(ProtocolError, match="used already"):
        party.client("c000").begin(request, CONTENT)


def test_a_sum_that_claims_other_clients_is_impossible() -> None:
    encoding = Encoding(2, 1.0, 1.0, 3)
    _, vector, tail = encoding.empty()
    encode_integers(encoding, np.array([1, 2]), {}, vector, tail)
    with pytest.raises(ImpossibleSumError):
        decode_integers(encoding, vector, tail, 2, [])


def test_a_client_knows_the_facts_of_the_sum_by_itself() -> None:
    party = Party(10, plan=lambda n: plan_of(n - 1, 8, 9)(n)).set_up()
    play = party.open(purpose=INTEGERS, participants=party.names[:9])
    round_ = party.client("c000").begin(play.server.requests()["c000"], CONTENT)
    facts = round_.facts(Floors())
    assert (facts.participants, facts.quorum, facts.colluding) == (9, 9, 3)
    assert round_.facts(Floors(corrupt_share=0.1)).colluding == 0
    assert round_.facts(Floors(corrupt_share=0.45)).colluding == 4


def test_on_the_ring_the_share_is_of_all_clients() -> None:
    party = Party(9, plan=plan_of(4, 3, 6), floors=ANY_PLAN).set_up()
    round_ = party.client("c000").begin(
        party.open(purpose=INTEGERS).server.requests()["c000"], CONTENT
    )
    assert round_.facts(Floors(sparse_corrupt_share=0.12)).colluding == 2
