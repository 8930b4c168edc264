"""The ledger adds up right, and is refused after whatever was done to it that can be seen."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import DELTA, ledger_at, train_charge

from fedveil.privacy import ledger, ledger_file
from fedveil.privacy.accounting import Release, pld_epsilon
from fedveil.privacy.ledger import Ledger
from fedveil.privacy.ledger_entries import (
    Budget,
    Charge,
    LedgerError,
    OverspendError,
    chain_start,
    entry_hash,
    spend,
)

WIDE = Budget(100.0, DELTA)

RELEASES = st.builds(
    Release,
    sampling_rate=st.sampled_from([0.05, 0.25, 1.0]),
    noise_multiplier=st.sampled_from([1.5, 4.0, 20.0]),
    count=st.integers(1, 4),
)


def independent_epsilon(releases: list[Release]) -> float:
    """Compose the losses of the union by dp-accounting's distributions, without its accountants."""
    counts: Counter[tuple[float, float]] = Counter()
    for release in releases:
        counts[release.sampling_rate, release.noise_multiplier] += release.count
    whole = privacy_loss_distribution.identity(value_discretization_interval=1e-3)
    for (rate, noise), count in counts.items():
        # Without sampling n releases are one with noise less by sqrt(n), and finer on the grid.
        noise, times = (noise / math.sqrt(count), 1) if rate == 1.0 else (noise, count)
        one = privacy_loss_distribution.from_gaussian_mechanism(
            noise, sampling_prob=rate, value_discretization_interval=1e-3
        )
        whole = whole.compose(one.self_compose(times))
    return float(whole.get_epsilon_for_delta(DELTA))


@settings(max_examples=5)
@given(
    charged=st.lists(
        st.tuples(RELEASES, st.sampled_from(["1", "2"]), st.sampled_from(["a", "b"])), max_size=4
    )
)
def test_epsilon_is_that_of_all_releases_of_the_data_set_over_all_runs(
    charged: list[tuple[Release, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    kept = ledger_at(tmp_path_factory.mktemp("ledger"))
    for release, run, dataset in charged:
        kept.charge(train_charge(dataset, run, release=release), WIDE)
    entries = kept.read().entries
    for dataset in ("a", "b"):
        of_it = [r for r, _, d in charged if d == dataset]
        ours = spend(entries, dataset).epsilon(DELTA)
        assert ours == pytest.approx(independent_epsilon(of_it) if of_it else 0.0, abs=1e-6)
        of_run = [r for r, run, d in charged if d == dataset and run == "1"]
        alone = spend(entries, dataset, "1").epsilon(DELTA)
        assert alone == pytest.approx(independent_epsilon(of_run) if of_run else 0.0, abs=1e-6)


def test_a_ledger_outlives_its_process_and_every_run_adds_to_it(tmp_path: Path) -> None:
    for run in ("1", "2", "3"):
        ledger_at(tmp_path).charge(train_charge(run=run), WIDE)
    snapshot = ledger_at(tmp_path).read()
    assert [(e.number, e.run) for e in snapshot.entries] == [(1, "1"), (2, "2"), (3, "3")]
    assert spend(snapshot.entries, "cardio").releases == (Release(0.25, 2.0, 12),)
    assert snapshot.was_known


def test_what_would_overspend_is_refused_and_not_written(tmp_path: Path) -> None:
    kept = ledger_at(tmp_path)
    # The budget bears two charges to the last digit, and no third.
    budget = Budget(pld_epsilon([Release(0.25, 2.0, 8)], DELTA), DELTA)
    kept.charge(train_charge(), budget)
    kept.charge(train_charge(), budget)
    with pytest.raises(OverspendError) as refused:
        kept.charge(train_charge(run="2"), budget)
    spent, would = (pld_epsilon([Release(0.25, 2.0, n)], DELTA) for n in (8, 12))
    for figure in (f"{budget.epsilon:g}", f"{spent:.3f}"[:-1], f"{would:.3f}"[:-1], "cardio"):
        assert figure in str(refused.value)
    assert len(kept.read().entries) == 2
    # Another data set has a budget of its own.
    kept.charge(train_charge("other"), budget)


def test_the_budget_of_one_run_is_held_beside_that_of_all(tmp_path: Path) -> None:
    kept = ledger_at(tmp_path)
    budget = Budget(8.0, DELTA, epsilon_per_run=pld_epsilon([Release(0.25, 2.0, 4)], DELTA))
    kept.charge(train_charge(run="1"), budget)
    with pytest.raises(OverspendError, match="for one run"):
        kept.charge(train_charge(run="1"), budget)
    kept.charge(train_charge(run="2"), budget)


def test_the_same_message_again_is_charged_again(tmp_path: Path) -> None:
    kept = ledger_at(tmp_path)
    for _ in range(2):
        kept.charge(train_charge(round_=5), WIDE)
    assert spend(kept.read().entries, "cardio").releases == (Release(0.25, 2.0, 8),)


def test_after_an_exact_release_no_budget_holds(tmp_path: Path) -> None:
    kept = ledger_at(tmp_path)
    exact = Charge.model_validate(
        {**train_charge().model_dump(), "unit": "none", "neighbours": "none", "releases": ()}
    )
    kept.charge(exact, None)
    assert spend(kept.read().entries, "cardio").epsilon(DELTA) == float("inf")
    with pytest.raises(OverspendError, match="released of it without noise"):
        kept.charge(train_charge(), WIDE)
    with pytest.raises(OverspendError, match="released of it without noise"):
        WIDE.check_left(kept.read().entries, "cardio", "1")


@pytest.mark.parametrize("count", [10**4, 10**12])
def test_a_request_of_any_size_is_refused_at_once(tmp_path: Path, count: int) -> None:
    """As a distribution of privacy losses it would not fit into memory."""
    kept = ledger_at(tmp_path)
    with pytest.raises(OverspendError):
        kept.charge(train_charge(release=Release(1.0, 0.1, count)), WIDE)


def test_nothing_is_made_by_reading(tmp_path: Path) -> None:
    assert ledger_at(tmp_path).read().entries == ()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def _no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_no_umask")
def test_files_are_private_and_every_commit_reaches_the_disk(tmp_path: Path) -> None:
    ledger_at(tmp_path / "made" / "here").charge(train_charge(), WIDE)
    with ledger_file.open_database(tmp_path / "made/here/ledger.db", ledger._SCHEMA) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        found = {path for path in tmp_path.rglob("*") if path.is_file()}
        assert {path.name for path in found} > {"ledger.db", "ledger.db-wal", "ledger.db-shm"}
        assert {path.stat().st_mode & 0o777 for path in found} == {0o600}
        folders = {path for path in tmp_path.rglob("*") if path.is_dir()}
        assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}


def write(path: Path, *statements: str, parameters: tuple[object, ...] = ()) -> None:
    """Do to the database what somebody with SQLite can do, and leave its schema as it was."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        kept = dict(triggers.fetchall())
        for name in kept:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement, parameters)
        for sql in kept.values():
            connection.execute(sql)


def three_entries(folder: Path) -> Ledger:
    kept = ledger_at(folder)
    for round_ in (1, 2, 3):
        kept.charge(train_charge(round_=round_), WIDE)
    return kept


def lighten(path: Path) -> None:
    write(path, """UPDATE entries SET body = replace(body, '"count":4', '"count":1')""")


def forge(path: Path) -> None:
    """Lighten an entry and compute the whole chain anew, as whoever reads the source can."""
    with closing(sqlite3.connect(path)) as connection:
        (name,) = connection.execute("SELECT name FROM ledger").fetchone()
        bodies = [b for (b,) in connection.execute("SELECT body FROM entries ORDER BY number")]
    hash_ = chain_start(name)
    for number, body in enumerate(bodies, start=1):
        lighter = body.replace('"count":4', '"count":1')
        hash_ = entry_hash(hash_, lighter)
        write(
            path,
            "UPDATE entries SET body = ?2, hash = ?3 WHERE number = ?1",
            parameters=(number, lighter, hash_),
        )


def exchange(path: Path) -> None:
    other = three_entries(path.parent / "other")
    shutil.copy(other.path, path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def overwrite(path: Path) -> None:
    content = bytearray(path.read_bytes())
    at = content.index(b'"round":2')
    content[at + 8] = ord("9")
    path.write_bytes(content)


DONE_TO_IT: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed row": (lighten, "broken at entry 1"),
    "a changed byte": (overwrite, "broken at entry 2"),
    "a removed row": (lambda p: write(p, "DELETE FROM entries WHERE number = 2"), "at entry 2"),
    "a removed end": (lambda p: write(p, "DELETE FROM entries WHERE number = 3"), "entry 3 was"),
    "all removed": (lambda p: write(p, "DELETE FROM entries"), "ends with entry 0, but entry 3"),
    "swapped rows": (
        lambda p: write(
            p,
            "UPDATE entries SET number = -1 WHERE number = 1",
            "UPDATE entries SET number = 1 WHERE number = 2",
            "UPDATE entries SET number = 2 WHERE number = -1",
        ),
        "broken at entry 1",
    ),
    "a forged chain": (forge, "entry 3 is not the one that was seen"),
    "another ledger": (exchange, "another ledger than the one that was used here"),
    "no file": (lambda p: p.unlink(), "is gone, and with it 3 entries"),
    "an empty file": (lambda p: p.write_bytes(b""), "is no ledger file"),
    "half a file": (cut, "cannot be used|is no ledger file|broken"),
    "noise": (lambda p: p.write_bytes(os.urandom(20_000)), "cannot be used"),
    "a trigger that undoes": (
        lambda p: write(
            p,
            "CREATE TRIGGER undo AFTER INSERT ON entries BEGIN "
            "UPDATE entries SET body = '' WHERE number = new.number; END",
        ),
        "is no ledger file",
    ),
    "a view in place of the entries": (
        lambda p: write(p, "DROP TABLE entries", "CREATE VIEW entries AS SELECT 1"),
        "is no ledger file|no such|cannot",
    ),
}


@pytest.mark.parametrize("attack", DONE_TO_IT)
def test_a_ledger_that_was_tampered_with_is_refused(tmp_path: Path, attack: str) -> None:
    kept = three_entries(tmp_path)
    do, says = DONE_TO_IT[attack]
    try:
        do(kept.path)
    except sqlite3.OperationalError:
        # A trigger cannot be put back over a view: the schema is another then, too.
        assert "view" in attack
    for use in (kept.read, lambda: kept.charge(train_charge(), WIDE)):
        with pytest.raises(LedgerError, match=says) as refused:
            use()
        assert len(str(refused.value).splitlines()) == 1


def test_an_old_copy_of_the_ledger_is_refused_and_the_newest_is_not(tmp_path: Path) -> None:
    kept = three_entries(tmp_path)
    shutil.copy(kept.path, tmp_path / "old")
    kept.charge(train_charge(), WIDE)
    shutil.copy(kept.path, tmp_path / "new")
    shutil.copy(tmp_path / "old", kept.path)
    with pytest.raises(LedgerError, match="ends with entry 3, but entry 4 was seen"):
        kept.charge(train_charge(), WIDE)
    shutil.copy(tmp_path / "new", kept.path)
    assert kept.charge(train_charge(), WIDE).number == 5


def test_without_its_head_a_cut_end_does_not_show_and_that_is_said(tmp_path: Path) -> None:
    kept = three_entries(tmp_path)
    shutil.rmtree(tmp_path / "apart")
    write(kept.path, "DELETE FROM entries WHERE number = 3")
    assert not kept.read().was_known
    kept.charge(train_charge(), WIDE)
    assert kept.read().was_known


def test_a_head_is_never_lowered(tmp_path: Path) -> None:
    kept = three_entries(tmp_path)
    head = kept.read().head
    older = ledger_file.Head(head.ledger, 1, b"\0" * 32)
    other = ledger_file.Head("another", 9, b"\0" * 32)
    for told in (older, other):
        kept._head.raise_to(told)
        assert kept._head.read() == head


def test_a_link_a_pipe_and_foreign_or_open_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = three_entries(tmp_path)
    link = tmp_path / "link.db"
    link.symlink_to(kept.path)
    linked = Ledger(link, tmp_path / "apart")
    for use in (linked.read, lambda: linked.charge(train_charge(), WIDE)):
        with pytest.raises(LedgerError, match="symbolic link"):
            use()
    dangling = Ledger(tmp_path / "dangling", tmp_path / "apart")
    dangling.path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(LedgerError, match="symbolic link"):
        dangling.charge(train_charge(), WIDE)
    assert not (tmp_path / "nowhere").exists()
    pipe = Ledger(tmp_path / "pipe", tmp_path / "apart")
    os.mkfifo(pipe.path, 0o600)
    with pytest.raises(LedgerError, match="no regular file"):
        pipe.read()
    kept.path.chmod(0o640)
    with pytest.raises(LedgerError, match="mode 0640"):
        kept.read()
    kept.path.chmod(0o600)
    (head,) = (tmp_path / "apart").glob("*.db")
    head.chmod(0o666)
    with pytest.raises(LedgerError, match="mode 0666"):
        kept.read()
    head.chmod(0o600)
    monkeypatch.setattr(ledger_file.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(LedgerError, match="belongs to user"):
        kept.read()


@pytest.mark.parametrize("beside", ["ledger.db-wal", "ledger.db-shm", "ledger.db-journal"])
def test_a_link_in_place_of_a_file_of_sqlites_is_refused(tmp_path: Path, beside: str) -> None:
    kept = three_entries(tmp_path)
    (tmp_path / "elsewhere").touch(0o600)
    (tmp_path / beside).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LedgerError, match="symbolic link"):
        kept.charge(train_charge(), WIDE)


def test_a_clock_that_is_set_back_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = datetime(2027, 6, 30, 12, tzinfo=UTC)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return clock.astimezone(UTC if tz is None else tz)  # type: ignore[arg-type]

    monkeypatch.setattr(ledger, "datetime", Clock)
    kept = ledger_at(tmp_path)
    budget = Budget(pld_epsilon([Release(0.25, 2.0, 8)], DELTA), DELTA)
    late = kept.charge(train_charge(), budget).time
    clock = datetime(2001, 1, 1, tzinfo=UTC)
    assert kept.charge(train_charge(), budget).time == late
    assert kept.read().now() == late
    with pytest.raises(OverspendError):
        kept.charge(train_charge(), budget)


def test_a_ledger_in_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    kept = Ledger(tmp_path / "file" / "ledger.db", tmp_path / "apart")
    for use in (kept.read, lambda: kept.charge(train_charge(), WIDE)):
        with pytest.raises(LedgerError, match="cannot be used"):
            use()


def test_two_ledgers_have_heads_of_their_own(tmp_path: Path) -> None:
    one, two = (Ledger(tmp_path / name, tmp_path / "apart") for name in ("one.db", "two.db"))
    one.charge(train_charge(), WIDE)
    two.charge(train_charge(), WIDE)
    assert one.read().name != two.read().name
    assert (
        one.read().hashes[0]
        == hashlib.sha256(b"fedveil/ledger/1/start\0" + one.read().name.encode()).digest()
    )
