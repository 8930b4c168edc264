"""Places: whatever is added and revoked, nobody moves and no two share one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedveil.server.provisioning.federation_file import (
    ClientEntry,
    CoordinatorEntry,
    FederationFile,
)
from fedveil.server.provisioning.parties import Party
from fedveil.server.provisioning.plan import make_plan

NAMES = [f"ward-{letter}" for letter in "abcdef"]


def federation(names: list[str]) -> FederationFile:
    return FederationFile(
        format="fedveil-federation-1",
        name="wards",
        coordinator=CoordinatorEntry(hosts=("localhost",)),
        clients={name: ClientEntry() for name in names},
    )


@given(st.lists(st.permutations(NAMES).flatmap(lambda p: st.integers(1, 6).map(lambda n: p[:n]))))
def test_a_place_stays_and_is_never_shared_or_taken_again(history: list[list[str]]) -> None:
    parties: dict[str, Party] = {}
    for wanted in history:
        names = [n for n in wanted if n not in parties or parties[n].revoked is None]
        if not names:
            continue
        gone = [n for n, p in parties.items() if p.revoked is None and n not in names]
        plan = make_plan(federation(names), parties, revoke=gone)

        assert list(plan.places) == names
        assert set(plan.revoked) == set(gone)
        assert plan.partitions == max(plan.places.values()) + 1
        for name, place in plan.places.items():
            party = parties.get(name)
            assert party is None or party.place == place
            others = {p.place for n, p in parties.items() if n != name}
            assert place not in others

        for name in gone:
            parties[name] = parties[name].model_copy(update={"revoked": "2026-11-30"})
        for name, place in plan.places.items():
            parties.setdefault(name, Party(name=name, kind="client", place=place))
