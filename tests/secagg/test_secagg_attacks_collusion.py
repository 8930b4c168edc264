"""How many colluding clients it takes: as many as the plan bears get nothing, one more breaks it.

The server shows honest clients different statements: a statement is a session id and a set of
survivors. Each client signs one statement a slot, and gives shares for it only where a quorum
signed it. Colluders sign everything, and give the server all that they hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
import pytest
from secagg_attacker import advertise, confirm, forge, read_single, unmask
from secagg_party import CONTENT, Party, Play, plan_of, simple_contributions

from fedveil.secagg.client_memory import Memory
from fedveil.secagg.errors import BelowThresholdError, FloorError, ProtocolError
from fedveil.secagg.messages import Share, UnmaskReply
from fedveil.secagg.parameters import Plan, colluders_borne, plan_for, side_floor
from fedveil.secagg.shamir import combine

Honest = frozenset[int]
Statement = tuple[Honest, Honest]
"""Honest participants and, among them, honest survivors; colluders are always in both."""


def _subsets(items: Honest, least: int) -> list[Honest]:
    sizes = range(max(least, 0), len(items) + 1)
    return [frozenset(chosen) for size in sizes for chosen in combinations(sorted(items), size)]


def _is_broken(
    plan: Plan, colluders: int, first: Statement, second: Statement, sides: tuple[int, ...]
) -> bool:
    """Tell whether the server reads the vector of honest client 0, which it gets with `first`.

    Honest client i signs statement `sides[i]`, if it is among its survivors.
    """
    statements = (first, second)
    signers = [
        {i for i in survivors if sides[i] == side} for side, (_, survivors) in enumerate(statements)
    ]
    counted = [len(s) + colluders >= plan.quorum for s in signers]

    def shares(owner: int, *, of_seed: bool) -> int:
        return colluders + sum(
            len(signers[side] - {owner})
            for side, (participants, survivors) in enumerate(statements)
            if counted[side] and owner in participants and (owner in survivors) == of_seed
        )

    has_seed = (counted[sides[0]] and 0 in signers[sides[0]]) or (
        shares(0, of_seed=True) >= plan.threshold
    )
    # The pairwise masks fall with its own key, or with those of all honest peers of its round.
    has_masks = shares(0, of_seed=False) >= plan.threshold or all(
        shares(peer, of_seed=False) >= plan.threshold for peer in first[0] - {0}
    )
    return has_seed and has_masks


def _attacks_that_work(plan: Plan, colluders: int) -> int:
    """Count them, over all pairs of statements and all ways to show them to honest clients."""
    honest = frozenset(range(plan.clients - colluders))
    least = plan.quorum - colluders
    statements = [
        (participants, survivors)
        for participants in _subsets(honest, least)
        for survivors in _subsets(participants, least)
    ]
    return sum(
        _is_broken(plan, colluders, first, second, sides)
        for first in statements
        if 0 in first[0]
        for second in statements
        for sides in product((0, 1), repeat=len(honest))
        # Whoever signs a statement took part in its round, and sent one vector: if the session
        # ids are the same, so are the participants, else client 0 began only its own round.
        if first[0] == second[0] or sides[0] == 0
    )


@pytest.mark.parametrize("clients", [4, 7])
def test_no_choice_of_survivors_gives_both_kinds_to_as_many_colluders_as_are_borne(
    clients: int,
) -> None:
    assert _attacks_that_work(plan_for(clients), colluders_borne(clients)) == 0


@pytest.mark.parametrize("clients", [4, 7])
def test_the_search_finds_the_attacks_that_one_colluder_more_makes_possible(clients: int) -> None:
    assert _attacks_that_work(plan_for(clients), colluders_borne(clients) + 1) > 0


def test_the_search_finds_the_attacks_that_a_smaller_quorum_makes_possible() -> None:
    plan = plan_for(7)
    assert _attacks_that_work(Plan(7, plan.neighbours, plan.threshold, plan.quorum - 1), 2) > 0


def _split_view(party: Party, colluders: int) -> tuple[Play, bytes | None, dict[int, int]]:
    """Run the best attack on client 0; return its seed, if any, and the shares of its key.

    One part of the honest clients is told that client 0 survived, the other that it did not.
    """
    clients = len(party.names)
    bad = tuple(range(clients - colluders, clients))
    honest = range(clients - colluders)
    part = tuple(honest)[: party.server.plan.quorum - colluders]
    play = party.open()
    play.input(simple_contributions(party))
    sid = play.server.header.sid
    alive = (*part, *bad)
    others = tuple(i for i in honest if i not in part)
    # Whom the other part is told to survive: itself and the colluders, filled up to a quorum.
    fill = party.server.plan.quorum - len(others) - len(bad)
    dead = tuple(sorted((*others, *part[1 : 1 + max(0, fill)], *bad)))
    seed, shares = None, dict[int, int]()
    for told, asked in ((alive, part), (dead, others)):
        signed = [confirm(party, party.names[i], sid, told) for i in asked]
        signed += [forge(party, party.names[i], sid, told) for i in bad]
        signed.sort(key=lambda s: s.signer)
        for i in asked:
            try:
                reply = UnmaskReply.decode(unmask(party, party.names[i], sid, signed))
            except BelowThresholdError:
                continue
            if i == 0:
                seed = reply.seed
            shares.update(_of_client_0(reply.key_shares, i))
    for i in bad:
        held = Memory(party.stores[party.names[i]]).held(1).keys
        shares.update(_of_client_0(held, i))
    return play, seed, shares


def _of_client_0(shares: Sequence[Share], holder: int) -> dict[int, int]:
    values = [int.from_bytes(share.value, "big") for share in shares if share.owner == 0]
    return {holder: values[0]} if values else {}


@pytest.mark.parametrize("clients", [4, 7, 10])
def test_the_best_attack_with_as_many_colluders_as_are_borne_fails_with_real_sessions(
    clients: int,
) -> None:
    party = Party(clients).set_up()
    _, seed, shares = _split_view(party, colluders_borne(clients))
    assert seed is not None
    assert len(shares) < party.server.plan.threshold


@pytest.mark.parametrize("clients", [4, 7, 10])
def test_one_colluder_more_reads_the_vector_so_that_the_bound_is_tight(clients: int) -> None:
    party = Party(clients).set_up()
    play, seed, shares = _split_view(party, colluders_borne(clients) + 1)
    threshold = party.server.plan.threshold
    assert seed is not None
    assert len(shares) >= threshold
    key = combine({i + 1: value for i, value in shares.items()}, threshold)
    read = read_single(play, play.vectors["c000"], 0, seed, key)
    update = simple_contributions(party)["c000"].update[0]
    bound = party.settings.encoding().error_bound(1, 1.0)
    np.testing.assert_allclose(read.mean[0], update, rtol=0, atol=bound)


def test_colluders_cannot_sign_for_an_honest_client() -> None:
    party = Party(4).set_up()
    play = party.open()
    play.input(simple_contributions(party))
    sid, told = play.server.header.sid, (0, 1, 3)
    mine = confirm(party, "c000", sid, told)
    bad = forge(party, "c003", sid, told)
    posing = forge(party, "c003", sid, told).signature
    with pytest.raises(BelowThresholdError, match="2 clients signed the survivors, 3 are needed"):
        unmask(party, "c000", sid, (mine, bad))
    with pytest.raises(ProtocolError, match="c001 did not sign the survivors"):
        unmask(party, "c000", sid, (mine, type(bad)(1, posing), bad))


def test_a_plan_that_bears_fewer_is_refused_by_clients_that_insist_on_more() -> None:
    # The numbers for no colluders at all: a majority.
    party = Party(7, plan=plan_of(6, 4, 4))
    keys = advertise(party)
    with pytest.raises(FloorError, match="does not bear 2 colluding clients of 7"):
        party.client("c000").share(keys["c000"])


def test_a_ring_that_is_thinned_on_one_side_is_not_confirmed() -> None:
    """The server wants to cut off an arc, with colluders in the thinned place who say they live."""
    plan = plan_for(101)
    victim, half = 0, plan.neighbours // 2
    floor = side_floor(plan.clients, plan.neighbours, plan.threshold, 0.05)
    assert floor > plan.threshold - half, "else the threshold alone would refuse it"
    for left, is_refused in ((floor - 1, True), (floor, False)):
        party = Party(101).set_up()
        graph, names = party.server.graph, party.server.names
        one_side = [i for i in graph.neighbours(victim) if graph.side(victim, i) == 0]
        gone = {names[i] for i in one_side[left:]}
        play = party.open()
        requests = play.server.requests()
        asked = [n for n in names if n not in gone]
        for name in asked:
            reply, vector = (
                party.client(name)
                .begin(requests[name], CONTENT)
                .mask([np.zeros(5)], [np.zeros(5)], 1.0, {})
            )
            play.server.add_input(name, reply, vector)
        confirm = play.server.close_input()[names[victim]]
        client = party.client(names[victim]).resume()
        if is_refused:
            with pytest.raises(BelowThresholdError, match="on one side of the ring"):
                client.confirm(confirm)
        else:
            assert client.confirm(confirm)
