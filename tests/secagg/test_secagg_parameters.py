from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from fedveil.secagg import graph as graph_module
from fedveil.secagg.errors import EncodingError, FloorError, SecAggError
from fedveil.secagg.floors import Floors
from fedveil.secagg.graph import Graph, graph_for
from fedveil.secagg.messages import Settings
from fedveil.secagg.parameters import (
    COMPLETE_UP_TO,
    SIGMA,
    Plan,
    breach_bound,
    colluders_borne,
    plan_for,
    side_floor,
)

SETTINGS = Settings("run", 10, 1.0, 1.0, 10, 32, 1)


def loss_bound(clients: int, neighbours: int, threshold: int, dropped: float) -> float:
    """Bound the probability that some client has fewer than t neighbours alive, with scipy."""
    alive = clients - math.ceil(dropped * clients)
    return float(clients * hypergeom.cdf(threshold - 1, clients - 1, alive, neighbours))


def oracle_breach(clients: int, neighbours: int, threshold: int, corrupt: float) -> float:
    bad = math.ceil(corrupt * clients)
    return float(
        clients * hypergeom.sf(2 * threshold - neighbours - 1, clients - 1, bad, neighbours)
    )


# Plans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clients", "neighbours", "threshold"), [(1000, 52, 37), (10_000, 62, 44)])
def test_sparse_plans_are_those_of_the_design(
    clients: int, neighbours: int, threshold: int
) -> None:
    plan = plan_for(clients)
    assert (plan.neighbours, plan.threshold) == (neighbours, threshold)
    assert plan.quorum == (clients + math.ceil(0.05 * clients)) // 2 + 1


@pytest.mark.parametrize("clients", [101, 150, 1000, 10_000])
def test_sparse_plans_are_safe_survive_drops_and_are_the_cheapest(clients: int) -> None:
    plan = plan_for(clients)
    assert not plan.is_complete
    assert oracle_breach(clients, plan.neighbours, plan.threshold, 0.05) < 2.0**-40
    assert loss_bound(clients, plan.neighbours, plan.threshold, 0.05) < 2.0**-20
    fewer = plan.neighbours - 2
    for threshold in range(fewer // 2 + 1, fewer + 1):
        assert (
            oracle_breach(clients, fewer, threshold, 0.05) >= 2.0**-40
            or loss_bound(clients, fewer, threshold, 0.05) >= 2.0**-20
            or side_loss_bound(clients, fewer, threshold) >= 2.0**-20
        )


@pytest.mark.parametrize("clients", [101, 150, 500, 1000, 5000, 10_000])
def test_no_arc_of_the_ring_can_be_cut_off(clients: int) -> None:
    plan = plan_for(clients)
    half = plan.neighbours // 2
    floor = side_floor(clients, plan.neighbours, plan.threshold, 0.05)
    assert floor >= plan.threshold - half
    once = hypergeom(clients - 1, math.ceil(0.05 * clients), half)
    assert math.comb(clients, 2) * once.sf(floor - 1) ** 2 < 2.0**-40
    if floor > plan.threshold - half:
        assert math.comb(clients, 2) * once.sf(floor - 2) ** 2 >= 2.0**-40
    assert side_loss_bound(clients, plan.neighbours, plan.threshold) < 2.0**-20


def side_loss_bound(clients: int, neighbours: int, threshold: int) -> float:
    floor = side_floor(clients, neighbours, threshold, 0.05)
    alive = clients - math.ceil(0.05 * clients)
    return 2 * clients * float(hypergeom(clients - 1, alive, neighbours // 2).cdf(floor - 1))


@pytest.mark.parametrize("clients", range(2, COMPLETE_UP_TO + 1))
def test_up_to_a_hundred_clients_everybody_is_a_neighbour(clients: int) -> None:
    plan = plan_for(clients)
    assert plan.is_complete
    assert plan.neighbours == clients - 1
    colluding = colluders_borne(clients)
    assert 3 * colluding < clients <= 3 * (colluding + 1)
    # An honest client answers for one kind alone, so 2 (t - c) <= k - c would give both.
    assert 2 * (plan.threshold - colluding) > plan.neighbours - colluding
    assert 2 * (plan.threshold - 1 - colluding) <= plan.neighbours - colluding
    # Two quorums have an honest client in common.
    assert 2 * plan.quorum - clients > colluding
    assert 2 * (plan.quorum - 1) - clients <= colluding
    # Whatever a quorum of survivors still needs, the quorum itself can give.
    assert plan.quorum >= plan.threshold


def test_above_a_hundred_the_graph_is_sparse() -> None:
    assert plan_for(COMPLETE_UP_TO).is_complete
    assert not plan_for(COMPLETE_UP_TO + 1).is_complete


@pytest.mark.parametrize("clients", [-1, 0, 1])
def test_fewer_than_two_clients_cannot_be_summed(clients: int) -> None:
    with pytest.raises(SecAggError):
        plan_for(clients)


@pytest.mark.parametrize(("corrupt", "dropped"), [(0.05, 0.5), (0.3, 0.5), (0.5, 0.3), (0.7, 0.3)])
def test_shares_that_no_plan_bears_are_refused(corrupt: float, dropped: float) -> None:
    with pytest.raises(SecAggError, match=r"lower secagg.corrupt_share or secagg.dropped_share"):
        plan_for(150, corrupt=corrupt, dropped=dropped)


def test_more_corrupt_or_dropped_clients_cost_more_neighbours() -> None:
    least = plan_for(1000, corrupt=0.02, dropped=0.02)
    assert plan_for(1000, corrupt=0.1, dropped=0.02).neighbours > least.neighbours
    assert plan_for(1000, corrupt=0.02, dropped=0.1).neighbours > least.neighbours


@pytest.mark.parametrize(
    ("numbers", "wrong"),
    [
        ((1, 1, 1, 1), "at least 2"),
        ((2**31, 4, 3, 2**30 + 1), "at least 2"),
        ((5, 0, 1, 3), "0 neighbours"),
        ((5, 5, 3, 3), "5 neighbours"),
        ((7, 3, 2, 4), "even"),
        ((7, 4, 2, 4), "threshold must be in 3 .. 4"),
        ((7, 4, 5, 4), "threshold must be in 3 .. 4"),
        ((6, 5, 2, 4), "threshold must be in 3 .. 5"),
        ((7, 4, 3, 3), "quorum must be in 4 .. 7"),
        ((7, 4, 3, 8), "quorum must be in 4 .. 7"),
        ((6, 4, 3, 3), "quorum must be in 4 .. 6"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(
    numbers: tuple[int, int, int, int], wrong: str
) -> None:
    with pytest.raises(SecAggError, match=wrong):
        Plan(*numbers)


@pytest.mark.parametrize("numbers", [(2, 1, 1, 2), (7, 4, 3, 4), (7, 4, 4, 7), (6, 5, 3, 4)])
def test_numbers_at_the_edges_pass(numbers: tuple[int, int, int, int]) -> None:
    assert Plan(*numbers).clients == numbers[0]


@given(st.data(), st.integers(3, 400), st.floats(0.0, 0.5))
@settings(max_examples=150)
def test_the_breach_bound_is_the_tail_of_the_hypergeometric_distribution(
    data: st.DataObject, clients: int, corrupt: float
) -> None:
    neighbours = data.draw(st.integers(1, min(clients - 1, 80)))
    threshold = data.draw(st.integers(neighbours // 2 + 1, neighbours))
    expected = oracle_breach(clients, neighbours, threshold, corrupt)
    found = breach_bound(clients, neighbours, threshold, corrupt)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-30)


def test_a_breach_bound_counted_by_hand() -> None:
    # Of 4 others 1 colludes (0.2 of 5), 2 are drawn: with 2 t - k = 0 surely, 1 in half of all
    # draws, 2 never.
    assert breach_bound(5, 2, 1, 0.2) == 5.0
    assert breach_bound(5, 3, 2, 0.2) == pytest.approx(5 * 0.75)
    assert breach_bound(5, 2, 2, 0.2) == 0.0


# Graphs --------------------------------------------------------------------------------------


def reached(graph: Graph, start: int) -> set[int]:
    found, edge = {start}, [start]
    while edge:
        for other in graph.neighbours(edge.pop()):
            if other not in found:
                found.add(other)
                edge.append(other)
    return found


@given(st.data(), st.integers(4, 120), st.binary(min_size=32, max_size=32))
@settings(max_examples=40)
def test_a_ring_is_regular_symmetric_and_connected(
    data: st.DataObject, clients: int, transcript: bytes
) -> None:
    half = data.draw(st.integers(1, (clients - 2) // 2))
    plan = Plan(clients, 2 * half, 2 * half, clients)
    graph = graph_for(plan, transcript)
    around = {client: graph.neighbours(client) for client in range(clients)}
    for client, others in around.items():
        assert len(others) == len(set(others)) == plan.neighbours
        assert client not in others
        assert list(others) == sorted(others)
        assert all(client in around[other] for other in others)
    assert reached(graph, 0) == set(range(clients))


@pytest.mark.parametrize("clients", [2, 3, 7, 100])
def test_the_complete_graph_connects_all(clients: int) -> None:
    graph = graph_for(plan_for(clients), bytes(32))
    for client in range(clients):
        expected = tuple(other for other in range(clients) if other != client)
        assert graph.neighbours(client) == expected


def test_neighbours_on_a_ring_written_out_by_hand() -> None:
    graph = Graph((3, 0, 4, 1, 5, 2), 2)
    assert [graph.neighbours(c) for c in range(6)] == [
        (3, 4),
        (4, 5),
        (3, 5),
        (0, 2),
        (0, 1),
        (1, 2),
    ]
    assert Graph((3, 0, 4, 1, 5, 2), 4).neighbours(0) == (1, 2, 3, 4)


def test_the_graph_is_the_same_for_all_who_compute_it_and_another_for_other_keys() -> None:
    plan = Plan(40, 6, 4, 30)
    one = graph_for(plan, bytes(32))
    graph_for.cache_clear()
    again, other = graph_for(plan, bytes(32)), graph_for(plan, b"\1" + bytes(31))
    assert again is not one
    assert edges(one) == edges(again)
    assert edges(one) != edges(other)
    assert edges(one) != edges(Graph(tuple(range(40)), 6))


def edges(graph: Graph) -> set[tuple[int, int]]:
    return {(i, j) for i in range(40) for j in graph.neighbours(i)}


def test_who_is_whose_neighbour_is_spread_evenly_over_transcripts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graph_module, "_COST", 2)
    # An edge of fixed clients is there with probability k / (n - 1) = 1/2; 400 graphs leave its
    # share within 0.5 +- 0.16 but for a chance below 2 exp(-2 400 0.16^2) < 3e-9 (Hoeffding).
    plan = Plan(9, 4, 3, 9)
    count = sum(1 in graph_for(plan, i.to_bytes(32, "big")).neighbours(0) for i in range(400))
    assert abs(count / 400 - 0.5) < 0.16


# Floors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("clients", range(2, 131, 3))
def test_the_default_floors_take_the_default_plan(clients: int) -> None:
    Floors().check_plan(plan_for(clients))


@pytest.mark.parametrize("clients", [1000, 3000])
def test_the_default_floors_take_the_default_plan_of_a_crowd(clients: int) -> None:
    Floors().check_plan(plan_for(clients))


@pytest.mark.parametrize("clients", [8, 10, 37, 99, 100])
def test_a_lower_threshold_or_quorum_than_the_default_is_refused(clients: int) -> None:
    plan = plan_for(clients)
    with pytest.raises(FloorError, match=f"threshold of {plan.threshold - 1} with"):
        Floors().check_plan(replace(plan, threshold=plan.threshold - 1))
    with pytest.raises(FloorError, match=f"quorum of {plan.quorum - 1} does not bear"):
        Floors().check_plan(replace(plan, quorum=plan.quorum - 1))


def test_a_lower_threshold_or_quorum_in_a_crowd_is_refused() -> None:
    plan = plan_for(1000)
    with pytest.raises(FloorError, match=r"threshold of 36 with 52 neighbours .* 50 colluding"):
        Floors().check_plan(replace(plan, threshold=36))
    with pytest.raises(FloorError, match=r"quorum of 525 .* 50 colluding clients of 1000"):
        Floors().check_plan(replace(plan, quorum=525))
    Floors().check_plan(replace(plan, quorum=526))


@given(st.integers(2, 60), st.floats(0.0, 0.49), st.data())
@settings(max_examples=200)
def test_a_complete_plan_passes_exactly_when_it_bears_the_colluders(
    clients: int, corrupt: float, data: st.DataObject
) -> None:
    neighbours = clients - 1
    plan = Plan(
        clients,
        neighbours,
        data.draw(st.integers(neighbours // 2 + 1, neighbours)),
        data.draw(st.integers(clients // 2 + 1, clients)),
    )
    colluding = math.floor(corrupt * (clients - 1) + 1e-9)
    is_safe = (
        plan.threshold > (neighbours + colluding) / 2 and plan.quorum > (clients + colluding) / 2
    )
    floors = Floors(corrupt_share=corrupt)
    if is_safe:
        floors.check_plan(plan)
    else:
        with pytest.raises(FloorError, match="does not bear"):
            floors.check_plan(plan)


def test_thirds_are_counted_whole_in_spite_of_doubles() -> None:
    for clients in range(4, 500, 3):
        colluding = (clients - 1) // 3
        quorum = (clients + colluding) // 2 + 1
        unsafe = Plan(clients, clients - 1, (clients - 1 + colluding) // 2, quorum)
        with pytest.raises(FloorError, match=f"does not bear {colluding} colluding"):
            Floors().check_plan(unsafe)


@pytest.mark.parametrize("colluding", range(2, 50))
def test_hundredths_are_counted_whole_in_spite_of_doubles(colluding: int) -> None:
    # 0.29 x 100 is 28.999999999999996 in doubles.
    quorum = (101 + colluding) // 2 + 1
    unsafe = Plan(101, 100, (100 + colluding) // 2, quorum)
    floors = Floors(corrupt_share=colluding / 100)
    with pytest.raises(FloorError, match=f"does not bear {colluding} colluding"):
        floors.check_plan(unsafe)
    floors.check_plan(replace(unsafe, threshold=unsafe.threshold + 1))


def test_a_sparse_graph_of_few_clients_is_refused_unless_nobody_colludes() -> None:
    plan = Plan(100, 98, 98, 100)
    with pytest.raises(FloorError, match=r"connects 100 clients with 98 .* insists on all"):
        Floors().check_plan(plan)
    Floors(sparse_corrupt_share=0.0).check_plan(plan)
    Floors().check_plan(Plan(101, 98, 98, 101))


def test_the_floor_of_the_sparse_graph_is_at_two_to_the_minus_forty() -> None:
    for threshold in range(27, 53):
        plan = Plan(1000, 52, threshold, 600)
        if oracle_breach(1000, 52, threshold, 0.05) < 2.0**-SIGMA:
            Floors().check_plan(plan)
        else:
            with pytest.raises(FloorError, match=f"threshold of {threshold}"):
                Floors().check_plan(plan)


def test_a_higher_share_of_colluders_needs_a_higher_threshold() -> None:
    with pytest.raises(FloorError, match="100 colluding"):
        Floors(sparse_corrupt_share=0.1).check_plan(plan_for(1000))
    Floors(sparse_corrupt_share=0.1).check_plan(plan_for(1000, corrupt=0.1))


def test_the_floor_of_clients_is_the_quorum() -> None:
    plan = plan_for(10)
    assert plan.quorum == 7
    Floors(min_clients=7).check_plan(plan)
    with pytest.raises(FloorError, match="a sum of 7 clients, this client insists on 8"):
        Floors(min_clients=8).check_plan(plan)


def test_the_floor_of_clients_holds_for_the_settings() -> None:
    Floors(min_clients=10).check_settings(SETTINGS)
    with pytest.raises(FloorError, match="plans for 10 clients, this client insists on 11"):
        Floors(min_clients=11).check_settings(SETTINGS)


def test_the_floor_of_bits() -> None:
    # 10 clients take 4 of 16 bits.
    sixteen = replace(SETTINGS, ring_bits=16)
    Floors(min_bits=12).check_settings(sixteen)
    with pytest.raises(FloorError, match="asks for 12 bits, this client for 13"):
        Floors(min_bits=13).check_settings(sixteen)
    Floors(min_bits=28).check_settings(SETTINGS)
    with pytest.raises(FloorError, match="28 bits, this client for 29"):
        Floors(min_bits=29).check_settings(SETTINGS)


def test_the_floor_of_the_clip_norm() -> None:
    Floors(max_clip_norm=1.0).check_settings(SETTINGS)
    with pytest.raises(FloorError, match=r"clip norm is 1, this client allows 0.5"):
        Floors(max_clip_norm=0.5).check_settings(SETTINGS)
    with pytest.raises(FloorError, match="clip norm"):
        Floors(max_clip_norm=1.0).check_settings(
            replace(SETTINGS, clip_norm=math.nextafter(1.0, 2.0))
        )


@pytest.mark.parametrize(
    "change",
    [
        {"clip_norm": math.inf},
        {"clip_norm": math.nan},
        {"clip_norm": 0.0},
        {"clip_norm": -1.0},
        {"max_weight": 0.0},
        {"max_weight": math.nan},
        {"ring_bits": 64},
        {"dimension": 2**40},
        {"max_clients": 0},
        {"max_clients": 2**32 - 1},
    ],
)
def test_settings_that_no_encoding_has_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(EncodingError):
        Floors().check_settings(replace(SETTINGS, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bounds",
    [
        {"min_clients": 1},
        {"min_clients": -3},
        {"corrupt_share": 0.5},
        {"corrupt_share": -0.1},
        {"sparse_corrupt_share": 0.5},
        {"sparse_corrupt_share": math.nan},
    ],
)
def test_floors_that_make_no_sense_are_refused(bounds: dict[str, float]) -> None:
    with pytest.raises(FloorError, match=next(iter(bounds))):
        Floors(**bounds)  # type: ignore[arg-type]


def test_floors_at_the_edges_pass() -> None:
    Floors(min_clients=2, corrupt_share=0.0, sparse_corrupt_share=math.nextafter(0.5, 0.0))


@pytest.mark.parametrize("clients", [300, 1000, 10_000])
def test_a_ring_so_thin_that_an_arc_could_be_cut_off_is_refused(clients: int) -> None:
    """With t = k no client is unsafe by itself, and still two gaps are too likely."""
    neighbours = 10
    plan = Plan(clients, neighbours, neighbours, clients)
    assert breach_bound(clients, neighbours, neighbours, 0.05) < 1
    with pytest.raises(SecAggError, match="can be cut off"):
        side_floor(clients, neighbours, neighbours, 0.05)
    with pytest.raises(FloorError):
        Floors().side_floor(plan)


@pytest.mark.parametrize("clients", [101, 300, 1000])
def test_no_drops_expected_still_gives_a_ring_that_holds_together(clients: int) -> None:
    plan = plan_for(clients, dropped=0.0)
    Floors().check_plan(plan)
    assert Floors().side_floor(plan) <= plan.neighbours // 2
