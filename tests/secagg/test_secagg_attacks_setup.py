"""Attacks on the set-up: a server, or a client, that lies about members, keys and numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from secagg_attacker import advertise, agree, put_under, rewrite, shown, sign_again
from secagg_party import (
    ANY_PLAN,
    CONTENT,
    Party,
    plan_of,
    simple_contributions,
)

from fedveil.secagg.client_memory import Memory
from fedveil.secagg.client_session import ClientSession
from fedveil.secagg.errors import (
    BelowThresholdError,
    EncodingError,
    FloorError,
    ProtocolError,
    RosterError,
    SecAggError,
    UnknownSessionError,
    WireError,
)
from fedveil.secagg.floors import Floors
from fedveil.secagg.identity import Identity, Roster
from fedveil.secagg.masking import pair_mask
from fedveil.secagg.messages import (
    MOST_SLOTS,
    UPDATE,
    Advertisement,
    InputRequest,
    KeysRequest,
    Member,
    RoundHeader,
    SetupRequest,
)
from fedveil.secagg.server_session import ServerSession

VICTIM, PEER, OTHER = "c001", "c000", "c002"
SMALL_RING = {"plan": plan_of(4, 3, 7), "floors": ANY_PLAN}
P = 2**255 - 19
_ORDER_8 = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
_POINTS = (0, 1, *_ORDER_8, P - 1, P, P + 1)
LOW_ORDER = [(x + top).to_bytes(32, "little") for x in _POINTS for top in (0, 2**255)]
"""All encodings of points of low order: RFC 7748 ignores the top bit (cr.yp.to/ecdh.html)."""


def refuses(party: Party, keys: bytes, error: type[SecAggError], words: str) -> None:
    """Assert that the victim refuses, and neither deals shares nor takes the set-up on."""
    before = dict(party.stores[VICTIM])
    with pytest.raises(error, match=words):
        party.client(VICTIM).share(keys)
    assert party.stores[VICTIM] == before
    assert "setup" not in before


def test_a_neighbour_that_the_server_invents_is_refused() -> None:
    party = Party(4, max_clients=5)
    party.server = ServerSession(party.settings)
    invented = Identity.generate("zoe")
    roster = Roster({**party.roster.keys, "zoe": invented.public_key})
    request = party.server.request()
    for name in party.names:
        party.server.add_advertisement(party.client(name).advertise(request))
    party.identities["zoe"], party.stores["zoe"] = invented, {}
    real, party.roster = party.roster, roster
    party.server.add_advertisement(party.client("zoe").advertise(request))
    party.roster = real
    keys = party.server.close_advertising()
    refuses(party, keys[VICTIM], RosterError, "'zoe' is not in this client's roster")


@pytest.mark.parametrize("field", ["channel_key", "mask_keys", "nonce"])
def test_keys_that_the_server_puts_under_are_refused(field: str) -> None:
    party = Party(4)
    keys = advertise(party)[VICTIM]
    mallory = Identity.generate("mallory")
    fresh = Identity.generate("x").public_key
    lie = {field: (fresh,) if field == "mask_keys" else fresh}
    true = shown(keys, PEER)
    unsigned = replace(true, **lie)
    refuses(party, put_under(keys, unsigned), ProtocolError, "signature over the keys of c000 is")
    signed = sign_again(true, mallory, **lie)
    refuses(party, put_under(keys, signed), ProtocolError, "signature over the keys of c000 is")
    posing = sign_again(true, mallory, identity_key=mallory.public_key, **lie)
    refuses(party, put_under(keys, posing), RosterError, "'c000' shows another key than")
    ads = tuple(signed if a.name == PEER else a for a in KeysRequest.decode(keys).advertisements)
    only_shown = rewrite(KeysRequest, keys, advertisements=ads)
    refuses(party, only_shown, ProtocolError, "keys of c000 are not those in the list of members")


def test_keys_of_another_member_under_a_members_name_are_refused() -> None:
    party = Party(4)
    keys = advertise(party)[VICTIM]
    posing = replace(shown(keys, OTHER), name=PEER)
    refuses(party, put_under(keys, posing), RosterError, "'c000' shows another key than")


def test_an_advertisement_of_an_earlier_set_up_is_refused() -> None:
    party = Party(4)
    old = shown(advertise(party)[VICTIM], PEER)
    party.server = ServerSession(party.settings)
    keys = advertise(party)[VICTIM]
    refuses(party, put_under(keys, old), ProtocolError, "signature over the keys of c000 is wrong")


def test_a_neighbour_replayed_with_the_servers_nonce_does_not_count_on_a_ring() -> None:
    # The server may repeat its own nonce, so that an old advertisement looks fresh, whose mask
    # keys it was given meanwhile. Whoever seals no parcel in this set-up is not there.
    live = 13
    while live >= 3:
        party = Party(13, **SMALL_RING)
        old = _advertisements(party)
        party.server = ServerSession(party.settings, SMALL_RING["plan"])
        fresh = _advertisements(party)
        for data in fresh[:7] + old[7:]:
            party.server.add_advertisement(data)
        keys = party.server.close_advertising()
        live = sum(i < 7 for i in party.server.graph.neighbours(1))
    for name in party.names[:7]:
        party.server.add_shares(name, party.client(name).share(keys[name]))
    header = party.server.open_round(1, 1, party.server.ready, CONTENT).header
    header = replace(header, participants=tuple(range(13)))
    request = InputRequest(header, party.server.parcels_for(1)).encode()
    with pytest.raises(BelowThresholdError, match=f"{live} neighbours are among the participants"):
        party.client(VICTIM).begin(request, CONTENT)


def _advertisements(party: Party) -> list[bytes]:
    """Let everybody answer the same request, as if the server had never asked before."""
    request = SetupRequest(party.settings, bytes(32))
    party.server._request = request
    return [party.client(name).advertise(request.encode()) for name in party.names]


def _without_victim(request: KeysRequest) -> dict[str, object]:
    return {"members": tuple(m for m in request.members if m.name != VICTIM)}


def _own_digest_wrong(request: KeysRequest) -> dict[str, object]:
    return {
        "members": tuple(
            Member(m.name, bytes(32)) if m.name == VICTIM else m for m in request.members
        )
    }


LIES: dict[str, tuple[Callable[[KeysRequest], dict[str, object]], type[SecAggError], str]] = {
    "left out": (_without_victim, ProtocolError, "leaves this client out of its own set-up"),
    "own digest": (_own_digest_wrong, ProtocolError, "other keys than this client's own"),
    "one twice": (
        lambda r: {"members": (*r.members, r.members[-1])},
        ProtocolError,
        "not sorted, or one is named twice",
    ),
    "unsorted": (
        lambda r: {"members": r.members[::-1]},
        ProtocolError,
        "not sorted, or one is named twice",
    ),
    "other set-up": (
        lambda _: {"setup_id": bytes(32)},
        ProtocolError,
        "keys of another set-up than the one that was advertised for",
    ),
    "neighbour missing": (
        lambda r: {"advertisements": r.advertisements[1:]},
        ProtocolError,
        "choice of neighbours is not the one of the keys",
    ),
    "neighbour twice": (
        lambda r: {"advertisements": (*r.advertisements, r.advertisements[0])},
        ProtocolError,
        "choice of neighbours is not the one of the keys",
    ),
    "alone": (
        lambda r: {"members": tuple(m for m in r.members if m.name == VICTIM)},
        SecAggError,
        "1 clients take part, this client insists on 2",
    ),
    "threshold of nobody": (lambda _: {"threshold": 0}, SecAggError, "threshold must be in"),
    "threshold of all": (lambda _: {"threshold": 4}, SecAggError, "threshold must be in"),
    "too small a quorum": (lambda _: {"quorum": 2}, SecAggError, "quorum must be in 3"),
    "huge numbers": (lambda _: {"neighbours": 2**32 - 1}, SecAggError, "neighbours among 4"),
}


@pytest.mark.parametrize("lie", list(LIES))
def test_a_list_of_members_that_lies_is_refused(lie: str) -> None:
    make, error, words = LIES[lie]
    party = Party(4)
    keys = advertise(party)[VICTIM]
    false = rewrite(KeysRequest, keys, **make(KeysRequest.decode(keys)))
    refuses(party, false, error, words)
    assert party.client(VICTIM).share(keys)


def test_neighbours_other_than_those_that_the_keys_give_are_refused() -> None:
    party = Party(13, **SMALL_RING)
    keys = advertise(party)
    mine = KeysRequest.decode(keys[VICTIM])
    strangers = {
        a.name: a for data in keys.values() for a in KeysRequest.decode(data).advertisements
    }
    for a in mine.advertisements:
        del strangers[a.name]
    del strangers[VICTIM]
    chosen = (*mine.advertisements[1:], next(iter(strangers.values())))
    false = replace(mine, advertisements=tuple(sorted(chosen, key=lambda a: a.name))).encode()
    refuses(party, false, ProtocolError, "choice of neighbours is not the one of the keys")


def test_an_old_set_up_is_over_once_a_new_one_begins() -> None:
    party = Party(4)
    keys = advertise(party)[VICTIM]
    party.client(VICTIM).advertise(party.server.request())
    refuses(party, keys, ProtocolError, "other keys than this client's own")


SETTINGS: dict[str, tuple[dict[str, object], Floors, type[SecAggError], str]] = {
    "bits": ({"ring_bits": 16}, Floors(min_bits=20), FloorError, "for 13 bits, this client for 20"),
    "clip norm": ({"clip_norm": 5.0}, Floors(max_clip_norm=4.0), FloorError, "is 5, this client"),
    "clients": ({"max_clients": 4}, Floors(min_clients=5), FloorError, "for 4 clients, .* on 5"),
    "no slots": ({"slots": 0}, Floors(), ProtocolError, "a set-up for 0 rounds"),
    "many slots": ({"slots": MOST_SLOTS + 1}, Floors(), ProtocolError, "for 1001 rounds"),
    "other ring": ({"ring_bits": 8}, Floors(), EncodingError, "must be 16 or 32, not 8"),
    "no room": ({"max_clients": 2**31}, Floors(), EncodingError, "bits leave"),
    "endless clip": ({"clip_norm": float("inf")}, Floors(), EncodingError, "must be positive"),
    "huge update": ({"dimension": 2**63}, Floors(), EncodingError, "coordinates is impossible"),
}


@pytest.mark.parametrize("which", list(SETTINGS))
def test_settings_below_the_clients_floors_are_refused_before_any_key_is_shown(which: str) -> None:
    changes, floors, error, words = SETTINGS[which]
    party = Party(4, floors=floors)
    settings = replace(party.settings, **changes)
    with pytest.raises(error, match=words):
        party.client(VICTIM).advertise(SetupRequest(settings, bytes(32)).encode())
    assert party.stores[VICTIM] == {}


PLANS: dict[str, tuple[tuple[int, int, int], Floors, str]] = {
    "threshold": ((6, 4, 5), Floors(), "threshold of 4 with 6 neighbours does not bear 2 coll"),
    "quorum": ((6, 5, 4), Floors(), "quorum of 4 does not bear 2 colluding clients of 7"),
    "neighbours": ((4, 4, 5), Floors(), "connects 7 clients with 4 neighbours each"),
    "clients in a sum": ((6, 5, 5), Floors(min_clients=6), "a sum of 5 clients, .* insists on 6"),
    "members": ((6, 5, 5), Floors(min_clients=8), "7 clients take part, this client insists on 8"),
}


@pytest.mark.parametrize("which", list(PLANS))
def test_numbers_below_the_clients_floors_are_refused(which: str) -> None:
    numbers, floors, words = PLANS[which]
    party = Party(7, plan=plan_of(*numbers), floors=floors, max_clients=20)
    refuses(party, advertise(party)[VICTIM], FloorError, words)


def test_more_members_than_the_encoding_has_room_for_are_refused() -> None:
    with pytest.raises(ProtocolError, match="room for 3 clients only"):
        advertise(Party(4, max_clients=3))
    party = Party(4, max_clients=3)
    party.server.settings = replace(party.server.settings, max_clients=4)
    refuses(party, advertise(party)[VICTIM], ProtocolError, "4 clients where .* room for 3")


def test_the_rest_of_the_published_list_is_of_low_order_only_where_the_top_bit_counts() -> None:
    secrets_of_all = set()
    for x in (P + _ORDER_8[0], P + _ORDER_8[1], 2 * P - 1, 2 * P, 2 * P + 1):
        secrets_of_all.add(agree(bytes(range(32)), x.to_bytes(32, "little")))
    assert len(secrets_of_all) == 5


@pytest.mark.parametrize("field", ["channel_key", "mask_keys"])
@pytest.mark.parametrize("key", LOW_ORDER, ids=lambda key: (key[:1] + key[31:]).hex())
def test_keys_of_low_order_are_refused_by_server_and_client(field: str, key: bytes) -> None:
    party = Party(4)
    lie = {field: (key,) if field == "mask_keys" else key}
    request = party.server.request()
    honest = Advertisement.decode(party.client(PEER).advertise(request))
    colluding = sign_again(honest, party.identities[PEER], **lie)
    with pytest.raises(ProtocolError, match="of low order; its sender is not honest"):
        party.server.add_advertisement(colluding.encode())
    keys = put_under(advertise(party)[VICTIM], colluding)
    if field == "channel_key":
        refuses(party, keys, ProtocolError, "of low order; its sender is not honest")
        return
    party.client(VICTIM).share(keys)
    header = _header(KeysRequest.decode(keys))
    round_ = party.client(VICTIM).begin(InputRequest(header, ()).encode(), CONTENT)
    one = simple_contributions(party)[VICTIM]
    with pytest.raises(ProtocolError, match="of low order; its sender is not honest"):
        round_.mask(one.update, [np.zeros(5)], 1.0, {})


def _header(request: KeysRequest) -> RoundHeader:
    everybody = tuple(range(len(request.members)))
    return RoundHeader(request.transcript, 1, 1, 1, UPDATE, "", CONTENT, everybody)


def _with_keys(ad: Advertisement, channel: bytes | None, *masks: bytes) -> dict[str, object]:
    return {
        "channel_key": channel or ad.channel_key,
        "mask_keys": (*masks, *ad.mask_keys[len(masks) :]),
    }


REUSES: dict[str, Callable[[Advertisement, Advertisement], dict[str, object]]] = {
    "channel and mask": lambda own, _: _with_keys(own, None, own.channel_key),
    "two slots": lambda own, _: _with_keys(own, None, own.mask_keys[1]),
    "another's channel": lambda own, other: _with_keys(own, other.channel_key),
    "another's mask": lambda own, other: _with_keys(own, None, other.mask_keys[0]),
    "another's mask as channel": lambda own, other: _with_keys(own, other.mask_keys[1]),
}


@pytest.mark.parametrize("other", [VICTIM, OTHER])
@pytest.mark.parametrize("reuse", list(REUSES))
def test_a_key_used_twice_is_refused_by_server_and_client(reuse: str, other: str) -> None:
    party = Party(4, slots=2)
    request = party.server.request()
    ads = {n: Advertisement.decode(party.client(n).advertise(request)) for n in party.names}
    lie = sign_again(ads[PEER], party.identities[PEER], **REUSES[reuse](ads[PEER], ads[other]))
    party.server.add_advertisement(ads[other].encode())
    with pytest.raises(ProtocolError, match=r"c000 shows (keys of c00|2 different keys, not 3)"):
        party.server.add_advertisement(lie.encode())
    party.server.add_advertisement(ads[PEER].encode())
    for name in set(party.names) - {PEER, other}:
        party.server.add_advertisement(ads[name].encode())
    keys = put_under(party.server.close_advertising()[VICTIM], lie)
    refuses(party, keys, ProtocolError, "a key of c00[02] is used twice")


def test_another_encoding_of_a_neighbours_key_gives_another_mask() -> None:
    # X25519 ignores the top bit, so a thief can show a key that differs and is the same; the
    # masks then hang on the two names alone, and the thief knows neither.
    party = Party(4)
    request = party.server.request()
    ads = {n: Advertisement.decode(party.client(n).advertise(request)) for n in party.names}
    stolen = ads[OTHER].mask_keys[0][:31] + bytes([ads[OTHER].mask_keys[0][31] ^ 0x80])
    secret = Memory(party.stores[VICTIM]).slot(1).mask_secret
    shared = agree(secret, ads[OTHER].mask_keys[0])
    assert agree(secret, stolen) == shared
    masks = {pair_mask(shared, bytes(32), 1, i).key for i in range(4)}
    assert len(masks) == 4


def test_two_clients_with_one_identity_key_or_one_name_are_refused() -> None:
    one = Identity.generate("c000")
    twin = Identity("c009", one.secret)
    with pytest.raises(RosterError, match="c000 and c009 have the same public key"):
        Roster({"c000": one.public_key, "c009": twin.public_key})
    server = ServerSession(Party(4).settings)
    rosters = [Roster({i.name: i.public_key}) for i in (one, twin)]
    first, second = (
        ClientSession(i, roster, Floors(), {})
        for i, roster in zip((one, twin), rosters, strict=True)
    )
    server.add_advertisement(first.advertise(server.request()))
    with pytest.raises(RosterError, match="c009 and c000 have the same name or the same identity"):
        server.add_advertisement(second.advertise(server.request()))
    with pytest.raises(RosterError, match="c000 and c000 have the same name or the same identity"):
        server.add_advertisement(first.advertise(server.request()))


def test_a_client_does_not_begin_as_somebody_that_its_roster_does_not_know() -> None:
    party = Party(4)
    with pytest.raises(RosterError, match="'c001' shows another key than"):
        ClientSession(Identity.generate(VICTIM), party.roster, Floors(), {})


def test_the_server_takes_no_advertisement_that_is_not_rightly_signed_and_in_time() -> None:
    party = Party(4)
    request = party.server.request()
    ads = [Advertisement.decode(party.client(name).advertise(request)) for name in party.names]
    wrong = replace(ads[0], signature=ads[1].signature)
    with pytest.raises(ProtocolError, match="signature over the keys of c000 is wrong"):
        party.server.add_advertisement(wrong.encode())
    posing = sign_again(ads[0], party.identities[OTHER])
    with pytest.raises(ProtocolError, match="signature over the keys of c000 is wrong"):
        party.server.add_advertisement(posing.encode())
    stranger = Identity.generate(PEER)
    other = sign_again(ads[0], stranger, identity_key=stranger.public_key)
    with pytest.raises(RosterError, match="'c000' shows another key than"):
        party.server.add_advertisement(other.encode())
    short = sign_again(ads[0], party.identities[PEER], mask_keys=())
    with pytest.raises(ProtocolError, match="c000 shows 1 different keys, not 2"):
        party.server.add_advertisement(short.encode())
    for ad in ads[1:]:
        party.server.add_advertisement(ad.encode())
    party.server.close_advertising()
    with pytest.raises(ProtocolError, match="keys of c000 come after the set-up was closed"):
        party.server.add_advertisement(ads[0].encode())


def test_shares_are_dealt_once_in_a_set_up() -> None:
    # Twice would give two polynomials, and one key and nonce to two plaintexts.
    party = Party(4)
    keys = advertise(party)[VICTIM]
    shares = party.client(VICTIM).share(keys)
    with pytest.raises(UnknownSessionError, match="does not know the session, or no longer"):
        party.client(VICTIM).share(keys)
    party.server.add_shares(VICTIM, shares)
    with pytest.raises(ProtocolError, match="the shares of c001 come twice, or too late"):
        party.server.add_shares(VICTIM, shares)
    with pytest.raises(ProtocolError, match="the shares of c000 do not fit the set-up"):
        party.server.add_shares(PEER, shares)
    with pytest.raises(ProtocolError, match="zoe is no member of the set-up"):
        party.server.add_shares("zoe", shares)


@pytest.mark.parametrize(
    "field", ["threshold", "neighbours", "quorum"], ids=lambda field: f"{field} of 2^63"
)
def test_a_number_of_64_bits_does_not_fit_the_wire(field: str) -> None:
    keys = advertise(Party(4))[VICTIM]
    with pytest.raises(WireError, match="does not fit"):
        rewrite(KeysRequest, keys, **{field: 2**63})
