from __future__ import annotations

import ast
import builtins
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from secagg_party import CONTENT, Party, Stage, simple_contributions

import fedveil.secagg
from fedveil.secagg.client_memory import (
    HeldShares,
    Memory,
    Opening,
    Openings,
    Pending,
    SlotSecrets,
)
from fedveil.secagg.errors import ProtocolError
from fedveil.secagg.identity import Identity
from fedveil.secagg.masking import Mask, pair_mask, self_mask
from fedveil.secagg.messages import Share, UnmaskReply
from fedveil.secagg.transcript import kdf

ROOM = Path(fedveil.secagg.__file__).parent
MODULES = sorted(path for path in ROOM.glob("*.py") if path.stem != "__init__")
EVERY = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)

ALLOWED = {
    "__future__",
    "collections",
    "collections.abc",
    "contextlib",
    "cryptography",
    "dataclasses",
    "fedveil.errors",
    "functools",
    "hashlib",
    "hmac",
    "io.BytesIO",
    "itertools",
    "math",
    "numpy",
    "numpy.typing",
    "secrets",
    "struct",
    "types",
    "typing",
}
"""What a module may import beside its own room: nothing with a disk, a net, a clock or dice."""

EFFECTS = {"print", "open", "input", "exec", "eval", "compile", "__import__", "breakpoint"}


def imports_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            # Of io only what stays in memory, so it is named with what is taken from it.
            yield from (
                (f"io.{alias.name}" for alias in node.names)
                if node.module == "io"
                else [str(node.module)]
            )


def without_typing(tree: ast.Module) -> ast.Module:
    """Drop what stands under `if TYPE_CHECKING`, which is imported by nobody."""
    body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return ast.Module(body=body, type_ignores=[])


@EVERY
def test_a_module_imports_nothing_that_acts_on_the_world(path: Path) -> None:
    for name in imports_of(ast.parse(path.read_text())):
        if name.startswith(("fedveil.secagg.", "cryptography.")):
            continue
        assert name in ALLOWED, f"{path.stem} imports {name}"


@EVERY
def test_a_module_prints_opens_and_draws_nothing(path: Path) -> None:
    assert all(hasattr(builtins, name) for name in EFFECTS)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            assert node.id not in EFFECTS, f"{path.stem} uses {node.id}"
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"random", "default_rng", "RandomState", "tofile", "memmap"}
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            assert not names & {"random", "default_rng"}, f"{path.stem} draws from numpy"


def test_primitives_come_from_one_library_and_secrets_from_the_operating_system() -> None:
    drawing = set()
    for path in MODULES:
        tree = ast.parse(path.read_text())
        if "secrets" not in imports_of(tree):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "secrets":
                assert node.attr in {"token_bytes", "randbelow"}
                drawing.add(path.stem)
    assert drawing == {"shamir", "masking", "parcels", "client_session", "server_session"}


def test_the_room_needs_neither_flower_nor_torch() -> None:
    names = ", ".join(f"fedveil.secagg.{path.stem}" for path in MODULES)
    program = (
        "import sys, fedveil.secagg; "
        "assert not {'numpy', 'cryptography'} & set(sys.modules), 'the package imports'; "
        f"import {names}; "
        "heavy = {'torch', 'flwr', 'opacus', 'scipy', 'sklearn', 'pydantic'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_imports_follow_the_table_of_the_room() -> None:
    table = [line for line in (fedveil.secagg.__doc__ or "").splitlines() if line.startswith("`")]
    order = [line.split("`")[1] for line in table]
    assert set(order) == {path.stem for path in MODULES}
    assert len(order) == len(MODULES)
    for path in MODULES:
        for name in imports_of(without_typing(ast.parse(path.read_text()))):
            if name.startswith("fedveil.secagg."):
                used = name.removeprefix("fedveil.secagg.")
                assert order.index(used) < order.index(path.stem), f"{path.stem} imports {used}"


# Secrets are forgotten -----------------------------------------------------------------------


class Watched(dict[str, bytes]):
    """A client's store, that keeps every secret it ever held, by the slot that it is for."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets: dict[str, set[bytes]] = {}

    def __setitem__(self, name: str, value: bytes) -> None:
        super().__setitem__(name, value)
        kind, _, slot = name.partition("-")
        found: tuple[bytes, ...] = ()
        if kind == "pending":
            found = (Pending.decode(value).channel_secret,)
        elif kind == "openings":
            found = tuple(opening.key for opening in Openings.decode(value).keys)
        elif kind == "slot":
            own = SlotSecrets.decode(value)
            found = own.mask_secret, own.seed
        elif kind == "held":
            held = HeldShares.decode(value)
            found = tuple(share.value for share in (*held.seeds, *held.keys))
        else:
            assert kind in {"setup", "used", "round"}, f"{name}: secret or not?"
        self.secrets.setdefault(slot or kind, set()).update(found)

    def remaining(self, of: str) -> int:
        """Return how many of the secrets of a slot, or of this kind, are still somewhere in it."""
        everything = b"\0\xff".join(self.values())
        return sum(secret in everything for secret in self.secrets[of])


def watched_party(clients: int, slots: int) -> tuple[Party, dict[str, Watched]]:
    party = Party(clients, slots=slots)
    stores = {name: Watched() for name in party.names}
    party.stores = stores  # type: ignore[assignment]  # a dict is invariant
    return party.set_up(), stores


@pytest.mark.parametrize("gone", [{}, {"c004": Stage.INPUT}, {"c004": Stage.CONFIRM}])
def test_after_the_only_round_no_secret_is_left(gone: dict[str, Stage]) -> None:
    party, stores = watched_party(5, 1)
    for store in stores.values():
        assert not store.remaining("pending"), "the channel's secret outlives the set-up"
        assert store.remaining("openings") == 4
        assert store.remaining("1") == 2
    party.play(simple_contributions(party), gone)
    for name in set(party.names) - set(gone):
        store = stores[name]
        # Its own two, and of each of four neighbours a share of both.
        assert len(store.secrets["1"]) == 2 + 2 * 4
        assert not any(store.remaining(of) for of in ("pending", "openings", "1"))
        assert set(store) == {"setup", "used"}


def test_after_a_round_the_secrets_of_the_next_are_left_alone() -> None:
    party, stores = watched_party(4, 3)
    for slot in (1, 2, 3):
        party.play(simple_contributions(party), round_=slot)
        for store in stores.values():
            assert not store.remaining("pending")
            assert not store.remaining("openings")
            for other in (1, 2, 3):
                assert store.remaining(str(other)) == (2 + 2 * 3 if other > slot else 0)


def test_the_secrets_of_a_slot_that_was_skipped_are_forgotten() -> None:
    party, stores = watched_party(5, 4)
    contributions = simple_contributions(party)
    store = stores["c000"]
    party.play(contributions, {"c000": Stage.INPUT}, round_=1)
    assert store.remaining("1") == 2
    party.play(contributions, round_=2)
    # The parcels came in round 2, so that shares for round 1 were never kept.
    assert (len(store.secrets["1"]), store.remaining("1"), store.remaining("2")) == (2, 0, 0)
    party.play(contributions, {"c000": Stage.INPUT}, round_=3)
    assert store.remaining("3") == 10
    party.play(contributions, round_=4)
    assert (store.remaining("3"), store.remaining("4")) == (0, 0)


def test_the_secrets_of_several_skipped_slots_are_forgotten_at_once() -> None:
    party, stores = watched_party(5, 5)
    contributions = simple_contributions(party)
    store = stores["c000"]
    party.play(contributions, round_=1)
    for round_ in (2, 3, 4):
        party.play(contributions, {"c000": Stage.INPUT}, round_=round_)
    assert [store.remaining(slot) for slot in "12345"] == [0, 10, 10, 10, 10]
    party.open(5).input(contributions)
    assert [store.remaining(slot) for slot in "12345"] == [0, 0, 0, 0, 10]


@pytest.mark.parametrize("stage", [Stage.CONFIRM, Stage.UNMASK])
def test_the_secrets_of_a_round_that_was_left_are_forgotten_with_the_next(stage: Stage) -> None:
    party, stores = watched_party(5, 2)
    party.play(simple_contributions(party), {"c000": stage})
    assert stores["c000"].remaining("1") == 10
    play = party.open(2)
    play.input(simple_contributions(party))
    assert stores["c000"].remaining("1") == 0
    assert stores["c000"].remaining("2") == 10


def test_a_new_set_up_forgets_all_of_the_old_one() -> None:
    party, stores = watched_party(4, 2)
    party.play(simple_contributions(party), {"c000": Stage.CONFIRM})
    store = stores["c000"]
    old = {secret for secrets in store.secrets.values() for secret in secrets}
    assert sum(store.remaining(of) for of in store.secrets) == 16
    other = Party(4)
    party.client("c000").advertise(other.server.request())
    everything = b"".join(store.values())
    assert not any(secret in everything for secret in old)
    assert set(store) == {"pending", "slot-1"}


def test_a_slot_used_without_an_answer_is_not_used_again() -> None:
    party, stores = watched_party(4, 2)
    request = party.open().server.requests()["c000"]
    party.client("c000").begin(request, bytes(32))
    assert Memory(stores["c000"]).used == 1
    with pytest.raises(ProtocolError, match="slot 1 of 2 was used already"):
        party.client("c000").begin(request, bytes(32))


# Secrets are not shown -----------------------------------------------------------------------

SECRET = bytes(range(100, 132))
LONG = b"\0" + SECRET


def holders_of_a_secret() -> list[object]:
    settings = Party(2).settings
    share = Share(3, LONG)
    return [
        Identity("alice", SECRET),
        Pending(settings, bytes(32), b"public", SECRET),
        SlotSecrets(SECRET, SECRET),
        Opening(1, SECRET),
        Openings((Opening(1, SECRET),)),
        share,
        HeldShares((share,), (share,)),
        UnmaskReply(bytes(32), SECRET, (share,), (share,)),
        Mask(SECRET, 1),
    ]


@pytest.mark.parametrize("holder", holders_of_a_secret(), ids=lambda holder: type(holder).__name__)
def test_what_holds_a_secret_does_not_show_it(holder: object) -> None:
    for text in (repr(holder), str(holder), f"{[holder]}", f"{holder!a}"):
        assert SECRET.hex() not in text
        assert repr(SECRET)[2:-1] not in text
        assert str(int.from_bytes(SECRET, "big")) not in text
    assert type(holder).__name__ in repr(holder)


def test_the_masks_of_a_round_show_no_key() -> None:
    for mask in (self_mask(SECRET, bytes(32), 1, 1), pair_mask(SECRET, bytes(32), 1, 2)):
        assert mask.key.hex() not in repr(mask)
        assert repr(mask.key) not in repr(mask)
    assert self_mask(SECRET, bytes(32), 1, 1).key == kdf(
        SECRET, "self", bytes(32), (1).to_bytes(4, "big")
    )


def test_the_parts_of_a_session_show_no_secret() -> None:
    party, stores = watched_party(4, 2)
    play = party.open()
    request = play.server.requests()["c000"]
    client = party.client("c000")
    round_ = client.begin(request, bytes(32))
    shown = repr([client, round_, party.server, play.server, Memory(stores["c000"])])
    for secrets in stores["c000"].secrets.values():
        assert not any(secret.hex() in shown or repr(secret)[2:-1] in shown for secret in secrets)


def test_a_session_says_nothing(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(0)
    party = Party(4, slots=2).set_up()
    party.play(simple_contributions(party), {"c001": Stage.CONFIRM})
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_how_a_client_rounds_is_known_to_itself_alone() -> None:
    """Else the server could tell apart what clients add to a coordinate smaller than a word."""
    keys = set()
    for _ in range(2):
        party = Party(3).set_up()
        begun = party.client("c000").begin(party.open().server.requests()["c000"], CONTENT)
        keys.add(begun._rounding_key())
        assert begun._rounding_key() in keys, "a run that is repeated rounds alike"
    assert len(keys) == 2, "the name, the round and the content are the same; the secret is not"
