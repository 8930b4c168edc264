"""A chain of lines is whole, or says where it is not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from audit_place import Place
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedveil.audit_log.chain import ChainFile, read_head
from fedveil.audit_log.errors import AuditError
from fedveil.audit_log.verify import verify_audit


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_done_to_a_log_is_found_and_named(data: st.DataObject, place: Place) -> None:
    if not place.log.exists():
        place.write(*range(8))
        place.log.with_suffix(".copy").write_bytes(place.log.read_bytes())
    whole = place.log.with_suffix(".copy").read_bytes().splitlines(keepends=True)
    head = hashlib.sha256(whole[-1].rstrip(b"\n")).hexdigest()
    lines = list(whole)
    attack = data.draw(st.sampled_from(["edit", "remove", "swap", "repeat", "insert", "cut"]))
    at = data.draw(st.integers(0, len(lines) - 1))
    last = at == len(lines) - 1
    match attack:
        case "edit":
            spot = data.draw(st.integers(0, len(lines[at]) - 2))
            new = data.draw(st.integers(32, 126).filter(lambda c: c != lines[at][spot]))
            lines[at] = lines[at][:spot] + bytes([new]) + lines[at][spot + 1 :]
        case "remove":
            del lines[at]
        case "swap":
            other = data.draw(st.integers(0, len(lines) - 1).filter(lambda n: n != at))
            lines[at], lines[other] = lines[other], lines[at]
            last = False
        case "repeat" | "insert":
            lines.insert(at, lines[at] if attack == "repeat" else lines[at].replace(b"x", b"y"))
            last = False
        case "cut":
            del lines[at:]
            last = True
    place.put(lines)
    # What is done at the end alone takes a head to find, whichever is at hand.
    for given_head, kept in ((head, None), (None, read_head(place.head))):
        with pytest.raises(AuditError):
            verify_audit([place.log], given_head, kept)
    if last and attack in ("remove", "cut") and lines:
        assert verify_audit([place.log]).last == len(lines)
    elif not last:
        with pytest.raises(AuditError, match=r"audit\.log, line \d+: "):
            verify_audit([place.log])


def test_the_line_that_was_touched_is_named(place: Place) -> None:
    place.write(*range(6))
    whole = place.lines()
    for damage, named in (
        ([*whole[:2], whole[2].replace(b'"value":2', b'"value":9'), *whole[3:]], "line 3: was cha"),
        ([*whole[:2], *whole[4:]], "line 3: has number 5 where 3 is due: 2 lines before it were r"),
        ([*whole[:2], whole[3], whole[2], *whole[4:]], "line 3: has number 4 where 3 is due: 1"),
        ([*whole[:3], whole[1], *whole[3:]], "line 4: has number 2 where 4 is due: lines were mo"),
        ([*whole[:3], b"{}\n", *whole[3:]], "line 4: is no line of an audit log"),
        ([*whole[:2], whole[2].replace(b'er":3', b'er":4'), *whole[3:]], "line 3: was changed: it"),
    ):
        place.put(damage)
        with pytest.raises(AuditError, match=named):
            verify_audit([place.log])
    place.put([*whole[:5], whole[5].replace(b'"value":5', b'"value":9')])
    assert verify_audit([place.log]).last == 6
    with pytest.raises(AuditError, match="line 6: was changed: it is not line 6 as it was noted"):
        verify_audit([place.log], kept=read_head(place.head))
    place.put(whole[:4])
    with pytest.raises(AuditError, match="line 6 was noted: 2 were cut off at the end"):
        verify_audit([place.log], kept=read_head(place.head))


def test_a_head_noted_before_proves_what_was_up_to_it(place: Place) -> None:
    noted = place.write(1, 2, 3)
    place.write(4, 5)
    assert verify_audit([place.log], noted).given == 3
    place.put(place.lines()[:4])
    assert verify_audit([place.log], noted).given == 3
    place.put(place.lines()[:2])
    with pytest.raises(AuditError, match="no line has the hash"):
        verify_audit([place.log], noted)


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "not-noted"])
def test_a_torn_line_is_taken_out_and_kept(place: Place, noted: bool) -> None:
    place.write(1, 2)
    if not noted:
        # A crash after the lines and before the head: it still names line 2.
        before = place.head.read_bytes()
        place.write(3)
        place.head.write_bytes(before)
    with place.log.open("ab") as file:
        file.write(b'{"number":4,"time":"')
    place.write(9)
    events = [json.loads(line) for line in place.lines()]
    assert events[-2]["event"] == "torn"
    assert (events[-2]["bytes"], events[-2]["piece"]) == (20, '{"number":4,"time":"')
    found = verify_audit([place.log], kept=read_head(place.head))
    assert (found.last, found.torn) == (4 if noted else 5, 1)


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_log_that_others_may_write_is_refused(mode: int, place: Place) -> None:
    """A line that somebody adds behind the last one goes on with the chain."""
    place.log.touch()
    place.log.chmod(mode)
    with pytest.raises(AuditError, match=f"has mode {mode:04o}.*chmod 600"):
        ChainFile(place.log, place.head).append([{"event": "start"}])


@pytest.mark.parametrize("is_moved", [False, True], ids=["at-hand", "moved-away"])
def test_a_torn_line_is_told_apart_from_a_cut_one(place: Place, is_moved: bool) -> None:
    place.write(1, 2, 3)
    kept, whole, log = read_head(place.head), place.lines(), place.log
    # A crash: the piece stands behind everything that was noted.
    with log.open("ab") as file:
        file.write(b'{"number":4,"ti')
    files = [log]
    if is_moved:
        files = [log.rename(log.with_name("audit.1")), log]
        place.write(4)
    found = verify_audit(files, kept=read_head(place.head))
    assert (found.last, found.unfinished) == (4 if is_moved else 3, 15)
    # An attack: the piece stands in the place of what was noted.
    for cut in ([*whole[:2], whole[2][:-9]], [*whole[:2], whole[2][:-1]], [*whole[:1], b"{"]):
        log.write_bytes(b"".join(cut))
        with pytest.raises(AuditError, match=r"line 3 was noted: \d were cut off at the end"):
            verify_audit([log], kept=kept)
    head = hashlib.sha256(whole[2].rstrip()).hexdigest()
    with pytest.raises(AuditError, match="no line has the hash"):
        verify_audit([log], head)


def test_a_line_that_is_too_long_does_not_spoil_the_log(place: Place) -> None:
    place.write(1)
    with pytest.raises(AuditError, match="65536 are too many"):
        place.chain.append([{"event": "x", "detail": "a" * 65_536}])
    place.chain.append([{"event": "x", "detail": "a" * 65_000}])
    place.write(2)
    assert verify_audit([place.log], kept=read_head(place.head)).last == 3
