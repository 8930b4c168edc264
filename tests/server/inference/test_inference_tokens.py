"""Tokens: kept as hashes, good for their scopes, revoked at once, and fail closed."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import NoReturn

import pytest

from fedveil.server.inference import tokens as room
from fedveil.server.inference.errors import ForbiddenError, TokenError, UnauthenticatedError
from fedveil.server.inference.tokens import TokenFile, add_token, read_tokens, remove_token


@pytest.fixture(autouse=True)
def _look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_LOOK_SECONDS", 0.0)


def test_a_token_is_good_for_its_scopes_and_nowhere_written(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    secret = add_token(path, "shop", ("infer",))
    other = add_token(path, "probe", ("metadata", "admin"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert secret not in path.read_text()
    assert len(secret) > 40
    held = TokenFile(path)
    assert held.find(f"Bearer {secret}").name == "shop"
    assert held.find(f"bearer {other}").name == "probe"
    with pytest.raises(ForbiddenError, match="the token of shop is not good for metadata"):
        held.find(f"Bearer {secret}").check("metadata")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic x", "Bearer x", "\udcff"])
def test_whoever_has_no_token_is_refused_without_saying_more(
    header: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "tokens.json"
    add_token(path, "shop", ("infer",))
    with pytest.raises(UnauthenticatedError) as caught:
        TokenFile(path).find(header)
    assert "shop" not in str(caught.value)


def test_a_running_service_sees_what_is_made_and_revoked(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    first = add_token(path, "first", ("infer",))
    held = TokenFile(path)
    second = add_token(path, "second", ("infer",))
    assert held.find(f"Bearer {second}").name == "second"
    remove_token(path, "first")
    with pytest.raises(UnauthenticatedError):
        held.find(f"Bearer {first}")
    path.write_text("{")
    with pytest.raises(UnauthenticatedError):
        held.find(f"Bearer {second}")
    path.unlink()
    with pytest.raises(UnauthenticatedError):
        held.find(f"Bearer {second}")


def test_a_file_that_cannot_be_read_for_a_moment_locks_nobody_out_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A flood of connections may use up the files that may be open, just when a token is made."""
    path = tmp_path / "tokens.json"
    first = add_token(path, "first", ("infer",))
    held = TokenFile(path)
    add_token(path, "second", ("infer",))

    def fails(_: Path) -> NoReturn:
        raise TokenError("too many open files")

    with monkeypatch.context() as moment:
        moment.setattr(room, "read_tokens", fails)
        for _ in range(3):
            with pytest.raises(UnauthenticatedError):
                held.find(f"Bearer {first}")
    assert caplog.text.count("too many open files") == 1
    assert held.find(f"Bearer {first}").name == "first"


def test_a_file_that_others_may_use_from_now_on_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    first = add_token(path, "first", ("infer",))
    held = TokenFile(path)
    path.chmod(0o666)
    with pytest.raises(UnauthenticatedError):
        held.find(f"Bearer {first}")


def test_a_file_that_others_may_use_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    add_token(path, "shop", ("infer",))
    path.chmod(0o640)
    with pytest.raises(TokenError, match="0640"):
        read_tokens(path)


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    with pytest.raises(TokenError, match="fedveil tokens new NAME"):
        TokenFile(path)
    add_token(path, "shop", ("infer",))
    with pytest.raises(TokenError, match="has a token named shop already"):
        add_token(path, "shop", ("infer",))
    with pytest.raises(TokenError, match="is no name of a token"):
        add_token(path, "a b", ("infer",))
    with pytest.raises(TokenError, match="has no token named bank; it has: shop"):
        remove_token(path, "bank")
    with pytest.raises(TokenError, match=r"there is no folder .*none; make it, or correct"):
        add_token(tmp_path / "none" / "tokens.json", "shop", ("infer",))
    assert not (tmp_path / "none").exists()
