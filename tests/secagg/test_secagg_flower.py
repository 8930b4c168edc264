"""What works against Flower's own SecAgg+ (its installed client mod) and fails here, side by side.

Each attack is run by a server that sends Flower's mod only what the mod's own checks let through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import cast

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod.secure_aggregation.secaggplus_mod import SecAggPlusState, secaggplus_mod
from flwr.common import (
    Code,
    FitRes,
    Status,
    bytes_to_ndarray,
    ndarrays_to_parameters,
)
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import (
    decrypt,
    encrypt,
    generate_shared_key,
)
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import (
    RECORD_KEY_CONFIGS,
    RECORD_KEY_STATE,
    Key,
    Stage,
)
from flwr.common.secure_aggregation.secaggplus_utils import (
    pseudo_rand_gen,
    share_keys_plaintext_concat,
    share_keys_plaintext_separate,
)
from flwr.compat.common import recorddict_compat as compat
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    public_key_to_bytes,
)
from numpy.typing import NDArray
from secagg_attacker import advertise, confirm, put_under, shown, sign_again, unmask
from secagg_party import Party, Play, plan_of, simple_contributions

from fedveil.flower import set_identity
from fedveil.secagg.errors import FloorError, ProtocolError
from fedveil.secagg.identity import Identity
from fedveil.secagg.masking import Keystream, pair_mask, self_mask
from fedveil.secagg.messages import InputReply, UnmaskRequest

MOD, TARGET_RANGE, CLIP, MOST_EXAMPLES, EXAMPLES = 2**32, 2**22, 8.0, 1000.0, 500
SECRET_UPDATE = np.linspace(-3.0, 5.0, 20)
VICTIM = 4
Words = list[NDArray[np.int64]]


@pytest.fixture(autouse=True)
def _identity() -> None:
    set_identity(run_id=1, node_id=1)


class FlowerParty:
    """Clients under Flower's `secaggplus_mod`, and a server that does what it likes."""

    def __init__(self, clients: int, threshold: int) -> None:
        self.nodes = range(1, clients + 1)
        self.contexts = {n: Context(1, n, {}, RecordDict(), {}) for n in self.nodes}
        self.keys: dict[int, list[bytes]] = {}
        self.replies: dict[int, RecordDict] = {}
        numbers = {
            Key.SAMPLE_NUMBER: clients,
            Key.SHARE_NUMBER: clients,
            Key.THRESHOLD: threshold,
            Key.CLIPPING_RANGE: CLIP,
            Key.TARGET_RANGE: TARGET_RANGE,
            Key.MOD_RANGE: MOD,
            Key.MAX_WEIGHT: MOST_EXAMPLES,
        }
        for node in self.nodes:
            reply = self.ask(node, Stage.SETUP, numbers)
            self.keys[node] = [reply[Key.PUBLIC_KEY_1], reply[Key.PUBLIC_KEY_2]]

    def ask(self, node: int, stage: str, configs: Mapping[str, object]) -> ConfigRecord:
        """Send a client a message through the mod, and return the protocol's part of the reply."""
        record = ConfigRecord({Key.STAGE: stage, **configs})  # type: ignore[dict-item]
        message = Message(
            RecordDict({RECORD_KEY_CONFIGS: record}), dst_node_id=node, message_type="train"
        )
        reply = secaggplus_mod(message, self.contexts[node], _train)
        self.replies[node] = reply.content
        return reply.content.config_records[RECORD_KEY_CONFIGS]

    def share(self) -> dict[int, dict[int, bytes]]:
        """Play the second stage honestly; return the ciphertexts by receiver and sender."""
        forwarded: dict[int, dict[int, bytes]] = {n: {} for n in self.nodes}
        for node in self.nodes:
            reply = self.ask(node, Stage.SHARE_KEYS, {str(n): self.keys[n] for n in self.nodes})
            for to, sealed in zip(
                reply[Key.DESTINATION_LIST], reply[Key.CIPHERTEXT_LIST], strict=True
            ):
                forwarded[to][node] = sealed
        return forwarded

    def collect(self, node: int, sealed: Mapping[int, bytes]) -> Words:
        """Let a client train, and return its masked vector."""
        lists = {Key.CIPHERTEXT_LIST: list(sealed.values()), Key.SOURCE_LIST: list(sealed)}
        reply = self.ask(node, Stage.COLLECT_MASKED_VECTORS, lists)
        return [bytes_to_ndarray(array) for array in reply[Key.MASKED_PARAMETERS]]

    def until_unmasking(self) -> Words:
        """Play all stages but the last honestly; return the victim's masked vector."""
        forwarded = self.share()
        return {n: self.collect(n, forwarded[n]) for n in self.nodes}[VICTIM]

    def unmask(self, node: int, active: Sequence[int], dead: Sequence[int]) -> list[bytes]:
        """Ask for shares, and return those of the victim."""
        lists = {Key.ACTIVE_NODE_ID_LIST: list(active), Key.DEAD_NODE_ID_LIST: list(dead)}
        reply = self.ask(node, Stage.UNMASK, lists)
        pairs = zip(reply[Key.NODE_ID_LIST], reply[Key.SHARE_LIST], strict=True)
        return [share for owner, share in pairs if owner == VICTIM]

    def state(self, node: int) -> SecAggPlusState:
        """Return a client's own memory, to compare with."""
        return SecAggPlusState(**self.contexts[node].state.config_records[RECORD_KEY_STATE])


def _train(_: Message, context: Context) -> Message:
    parameters = ndarrays_to_parameters([SECRET_UPDATE * context.node_id / VICTIM])
    result = FitRes(Status(Code.OK, ""), parameters, EXAMPLES, {"loss": 0.25})
    content = compat.fitres_to_recorddict(result, keep_input=False)
    return cast(Message, _Reply(content))


class _Reply:
    def __init__(self, content: RecordDict) -> None:
        self.content = content


def _read(masked: Words, seed: bytes, keys: Mapping[int, bytes]) -> tuple[float, np.ndarray]:  # type: ignore[type-arg]
    """Take the private mask off, and those of the shared keys; return weight and update."""
    shapes = [array.shape for array in masked]
    words = [w - m for w, m in zip(masked, pseudo_rand_gen(seed, MOD, shapes), strict=True)]
    for other, key in keys.items():
        sign = -1 if other < VICTIM else 1
        mask = pseudo_rand_gen(key, MOD, shapes)
        words = [w + sign * m for w, m in zip(words, mask, strict=True)]
    ratio, update = (word % MOD for word in words)
    weight = float(ratio[0]) / TARGET_RANGE
    return weight * MOST_EXAMPLES, dequantize([update], CLIP, TARGET_RANGE)[0] / weight


def _is_read(weight: float, update: np.ndarray) -> None:  # type: ignore[type-arg]
    assert weight == EXAMPLES
    np.testing.assert_allclose(update, SECRET_UPDATE, rtol=0, atol=2e-5)


def _shared_keys(flower: FlowerParty, secret: bytes) -> dict[int, bytes]:
    private = bytes_to_private_key(secret)
    return {
        n: generate_shared_key(private, bytes_to_public_key(flower.keys[n][0]))
        for n in flower.nodes
        if n != VICTIM
    }


def begun(clients: int, **options: object) -> Play:
    party = Party(clients, **options).set_up()  # type: ignore[arg-type]
    play = party.open()
    play.input(simple_contributions(party))
    return play


def test_flower_gives_both_kinds_of_one_client_in_one_answer() -> None:
    flower = FlowerParty(5, threshold=3)
    masked = flower.until_unmasking()
    # One request: everybody lives, and the victim is dead as well.
    answers = [flower.unmask(n, flower.nodes, [VICTIM]) for n in (1, 2, 3)]
    seed, secret = (combine_shares(list(kind)) for kind in zip(*answers, strict=True))
    _is_read(*_read(masked, seed, _shared_keys(flower, secret)))


def test_fedveil_cannot_be_asked_for_both_kinds() -> None:
    assert [field.name for field in fields(UnmaskRequest)] == ["sid", "signatures"]
    play = begun(5)
    party, sid = play.party, play.server.header.sid
    told = ((0, 1, 2, 3, 4), (0, 1, 2, 3))
    signed = [confirm(party, name, sid, told[0]) for name in party.names]
    for name in party.names[:4]:
        with pytest.raises(ProtocolError, match="survivors of this round are confirmed already"):
            confirm(party, name, sid, told[1])
    unmask(party, "c000", sid, signed)


def test_flower_takes_the_servers_own_keys_for_everybody_elses() -> None:
    flower = FlowerParty(5, threshold=3)
    mine = {n: (generate_key_pairs(), generate_key_pairs()) for n in flower.nodes if n != VICTIM}
    lies = {
        str(n): [public_key_to_bytes(one[1]), public_key_to_bytes(two[1])]
        for n, (one, two) in mine.items()
    }
    reply = flower.ask(VICTIM, Stage.SHARE_KEYS, {**lies, str(VICTIM): flower.keys[VICTIM]})
    channel = bytes_to_public_key(flower.keys[VICTIM][1])
    sealing = {n: generate_shared_key(two[0], channel) for n, (_, two) in mine.items()}
    # The victim seals its seed's shares for the server itself, and masks with the server's keys.
    sealed = dict(zip(reply[Key.DESTINATION_LIST], reply[Key.CIPHERTEXT_LIST], strict=True))
    shares = [share_keys_plaintext_separate(decrypt(sealing[n], sealed[n]))[2] for n in mine]
    seed = combine_shares(shares[:3])
    false = {
        n: encrypt(k, share_keys_plaintext_concat(n, VICTIM, b"", b"")) for n, k in sealing.items()
    }
    masked = flower.collect(VICTIM, false)
    mask_key = bytes_to_public_key(flower.keys[VICTIM][0])
    keys = {n: generate_shared_key(one[0], mask_key) for n, (one, _) in mine.items()}
    _is_read(*_read(masked, seed, keys))


def test_fedveil_refuses_the_servers_own_keys() -> None:
    party = Party(5)
    keys = advertise(party)["c004"]
    mallory = Identity.generate("mallory")
    lies = []
    for name in party.names[:4]:
        fresh = Identity.generate("x").public_key, (Identity.generate("y").public_key,)
        lie = replace(shown(keys, name), channel_key=fresh[0], mask_keys=fresh[1])
        lies.append(sign_again(lie, mallory))
    with pytest.raises(ProtocolError, match="the signature over the keys of c000 is wrong"):
        party.client("c004").share(put_under(keys, *lies))
    assert "setup" not in party.stores["c004"]


def _seed32(seed: bytes) -> int:
    words = np.frombuffer(seed, "<u4")
    return int(np.bitwise_xor.reduce(words))


def test_flower_folds_every_seed_to_32_bits_and_those_of_pairs_to_28() -> None:
    rng = np.random.default_rng(1)
    one = rng.bytes(32)
    # Any change that the fold does not see.
    twist = rng.bytes(4) + bytes(8)
    two = bytes(a ^ b for a, b in zip(one, (twist + twist).ljust(32, b"\0"), strict=True))
    assert one != two
    assert _seed32(one) == _seed32(two)
    masks = [pseudo_rand_gen(seed, MOD, [(1000,)])[0] for seed in (one, two)]
    np.testing.assert_array_equal(*masks)
    # Keys of pairs are base64 text, of which no byte has its top bit.
    private = [generate_key_pairs() for _ in range(24)]
    folded = [_seed32(generate_shared_key(a[0], b[1])) for a in private for b in private]
    assert np.bitwise_or.reduce(folded) == 0x7F7F7F7F
    assert np.bitwise_or.reduce([~f & 0x7F7F7F7F for f in folded]) == 0x7F7F7F7F


def test_flowers_masks_can_be_searched() -> None:
    # The attacker is told 12 of the 28 bits; without them it would take 4096 times as long.
    shared = generate_shared_key(generate_key_pairs()[0], generate_key_pairs()[1])
    update = np.arange(4) * 1000
    masked = (update + pseudo_rand_gen(shared, MOD, [(4,)])[0]) % MOD
    known = _seed32(shared) & ~0xFFFF
    found = []
    generator = np.random.RandomState()
    for low in range(2**16):
        generator.seed(known | low)
        guess = generator.randint(0, MOD - 1, 4, dtype=np.int64)
        # An update's words are small; under a wrong guess they are anywhere in 2^32.
        if ((masked - guess) % MOD < TARGET_RANGE).all():
            found.append((masked - guess) % MOD)
    assert len(found) == 1
    np.testing.assert_array_equal(found[0], update)


def test_fedveils_masks_hang_on_every_bit_of_256() -> None:
    secret, sid = Identity.generate("x").secret, bytes(32)
    # The same twist that Flower's fold does not see.
    twisted = bytes(a ^ b for a, b in zip(secret, bytes([1, 0, 0, 0] * 2) + bytes(24), strict=True))
    assert _seed32(secret) == _seed32(twisted)
    for make in (lambda s: self_mask(s, sid, 0, 1), lambda s: pair_mask(s, sid, 0, 1)):
        keys = [make(s).key for s in (secret, twisted)]
        assert [len(key) for key in keys] == [32, 32]
        streams = []
        for key in keys:
            buffer = bytearray(80)
            Keystream(key).fill(memoryview(buffer), 64)
            streams.append(np.frombuffer(buffer, "u1", 64))
        assert (streams[0] == streams[1]).sum() < 16


def test_flower_tells_different_clients_different_survivors_and_they_all_answer() -> None:
    flower = FlowerParty(4, threshold=2)
    masked = flower.until_unmasking()
    # To two clients the victim lives, to the third and to itself it is dead.
    seeds = [flower.unmask(n, flower.nodes, []) for n in (1, 2)]
    secrets = [flower.unmask(n, [1, 2, 3], [VICTIM]) for n in (3, VICTIM)]
    seed, secret = (combine_shares([s for (s,) in kind]) for kind in (seeds, secrets))
    assert seed == flower.state(VICTIM).rd_seed
    _is_read(*_read(masked, seed, _shared_keys(flower, secret)))


def test_fedveil_clients_that_are_told_different_survivors_find_out() -> None:
    play = begun(5)
    party, sid = play.party, play.server.header.sid
    told = {True: (0, 1, 2, 4), False: (0, 1, 2, 3, 4)}
    signed = [confirm(party, party.names[i], sid, told[i > 1]) for i in (0, 1, 2, 4)]
    for name in ("c000", "c001", "c002", "c004"):
        with pytest.raises(ProtocolError, match="the server tells clients different things"):
            unmask(party, name, sid, signed)


def test_flowers_client_gives_its_own_key_when_it_is_called_dead() -> None:
    flower = FlowerParty(4, threshold=3)
    flower.until_unmasking()
    share = flower.unmask(VICTIM, [1, 2, 3], [VICTIM])
    assert share == [flower.state(VICTIM).sk1_share_dict[VICTIM]]


def test_fedveils_client_does_not_answer_when_it_is_called_dead() -> None:
    play = begun(4)
    with pytest.raises(ProtocolError, match="does not count this client among the survivors"):
        confirm(play.party, "c003", play.server.header.sid, (0, 1, 2))


def test_flower_leaves_weight_and_figures_in_clear() -> None:
    flower = FlowerParty(4, threshold=3)
    flower.until_unmasking()
    seen = compat.recorddict_to_fitres(flower.replies[VICTIM], keep_input=True)
    assert seen.num_examples == EXAMPLES
    assert seen.metrics == {"loss": 0.25}


def test_fedveil_masks_weight_and_figures_too() -> None:
    assert [field.name for field in fields(InputReply)] == ["sid", "figures", "bad_parcels"]
    party = Party(4, max_weight=1000.0).set_up()
    play = party.open()
    contributions = {
        name: replace(one, weight=500.0, figures={"loss": 0.25})
        for name, one in simple_contributions(party).items()
    }
    play.input(contributions)
    for vector in play.vectors.values():
        _, tail = party.settings.encoding().views(vector)
        clear = {500 << 20, 1, 0, 1 << 18}
        assert clear.isdisjoint(int(word) for word in tail)
    play.confirm()
    play.unmask()
    summed = play.finish()
    assert (summed.weight, summed.figures) == (2000.0, {"loss": 1.0})


def test_flower_takes_any_threshold() -> None:
    # Two of seven clients, and the server needs nobody else.
    flower = FlowerParty(7, threshold=2)
    masked = flower.until_unmasking()
    answers = [flower.unmask(n, flower.nodes, [VICTIM]) for n in (1, 2)]
    seed, secret = (combine_shares(list(kind)) for kind in zip(*answers, strict=True))
    _is_read(*_read(masked, seed, _shared_keys(flower, secret)))


def test_fedveil_refuses_a_threshold_that_bears_too_few() -> None:
    party = Party(7, plan=plan_of(6, 4, 5))
    keys = advertise(party)["c003"]
    with pytest.raises(FloorError, match="threshold of 4 with 6 neighbours does not bear 2"):
        party.client("c003").share(keys)
