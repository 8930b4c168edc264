import subprocess
import sys
import traceback
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from fedveil.vault.errors import KekError, KeyFileMissingError
from fedveil.vault.kek import registry
from fedveil.vault.kek.interface import WrappedKey
from fedveil.vault.kek.registry import SPECS_HELP, open_kek, provider_names
from fedveil.vault.keyfile import create_key

SECRET = bytes(range(32))


class Own:
    """What another package could bring."""

    name = "own"

    def __init__(self, rest: str) -> None:
        self.key_id = rest

    key_id = ""

    def wrap(self, secret: bytes, context: bytes) -> WrappedKey:
        return WrappedKey(self.name, self.key_id, secret, {})

    def unwrap(self, wrapped: WrappedKey, context: bytes) -> bytes:
        return wrapped.blob

    def rewrap(self, wrapped: WrappedKey, context: bytes) -> WrappedKey:
        return wrapped


class WithoutRewrap:
    name = "own"
    key_id = ""
    wrap = unwrap = Own.wrap

    def __init__(self, rest: str) -> None:
        pass


class OfAnotherName(Own):
    name = "other"


def failing(rest: str) -> Own:
    raise RuntimeError(f"secret {rest}")


def refusing(rest: str) -> Own:
    raise KekError("not this one")


no_function = 5


def install(monkeypatch: pytest.MonkeyPatch, *entries: tuple[str, str]) -> None:
    found = EntryPoints(EntryPoint(name, value, registry.GROUP) for name, value in entries)
    monkeypatch.setattr(registry, "entry_points", lambda **query: found.select(**query))


def test_the_built_in_providers_are_installed() -> None:
    assert {"aws", "file", "passphrase", "vault"} <= set(provider_names())
    for name in ("aws", "file", "passphrase", "vault"):
        assert f"{name}:" in SPECS_HELP


def test_a_key_file_and_a_passphrase_are_opened(tmp_path: Path) -> None:
    create_key(tmp_path / "key")
    phrase = tmp_path / "phrase"
    phrase.write_text("correct horse battery\n")
    phrase.chmod(0o600)
    for spec in (f"file:{tmp_path / 'key'}", f"passphrase:{phrase}"):
        kek = open_kek(spec)
        wrapped = kek.wrap(SECRET, b"context")
        assert wrapped.provider == kek.name == spec.partition(":")[0]
        assert kek.unwrap(wrapped, b"context") == SECRET


def test_the_services_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_ADDR", "https://vault.example.org")
    monkeypatch.setenv("VAULT_TOKEN", "token")
    monkeypatch.delenv("VAULT_NAMESPACE", raising=False)
    arn = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd"
    assert open_kek("vault:team/fedveil").key_id == "team/fedveil"
    assert open_kek(f"aws:{arn}").key_id == arn


def test_errors_of_a_provider_are_its_own(tmp_path: Path) -> None:
    with pytest.raises(KeyFileMissingError, match="no key file at"):
        open_kek(f"file:{tmp_path / 'none'}")


def test_looking_for_providers_imports_none() -> None:
    program = (
        "import sys; from fedveil.vault.kek.registry import provider_names, open_kek; "
        "provider_names(); heavy = {'hvac', 'boto3', 'requests'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    "spec",
    ["", ":", "/etc/key", "correct horse battery", "File:x", "file:a\nb", "file:\0", "x" * 40],
)
def test_what_names_no_provider_is_refused_and_not_shown(spec: str) -> None:
    with pytest.raises(KekError, match="is named by its provider: file:PATH") as caught:
        open_kek(spec)
    assert len(spec) < 5 or spec not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_provider_is_named() -> None:
    with pytest.raises(KekError, match="no KEK provider 'gcp'; installed are: aws, file, passph"):
        open_kek("gcp:key")


def test_a_provider_of_another_package_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ("own", f"{__name__}:Own"))
    kek = open_kek("own:a:b")
    assert isinstance(kek, Own)
    assert kek.key_id == "a:b"


def test_two_packages_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ("own", f"{__name__}:Own"), ("own", "elsewhere:Own"))
    with pytest.raises(KekError, match=r"'own' is installed twice \(elsewhere:Own, "):
        open_kek("own:")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("no_such_module_here:x", "cannot be imported: ModuleNotFoundError: No module named"),
        (f"{__name__}:nothing", "cannot be imported: AttributeError"),
        (f"{__name__}:no_function", "is broken: it is no function"),
        (f"{__name__}:failing", "is broken: it failed with RuntimeError"),
        (f"{__name__}:WithoutRewrap", "is broken: WithoutRewrap is no KekProvider"),
        (f"{__name__}:OfAnotherName", "is broken: OfAnotherName is no KekProvider of the name"),
        ("builtins:str", "is broken: str is no KekProvider"),
    ],
)
def test_a_broken_plugin_is_one_line(
    monkeypatch: pytest.MonkeyPatch, target: str, said: str
) -> None:
    install(monkeypatch, ("own", target))
    with pytest.raises(KekError, match=said) as caught:
        open_kek("own:hunter2")
    assert "\n" not in str(caught.value)
    assert "secret hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_plugins_own_refusal_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ("own", f"{__name__}:refusing"))
    with pytest.raises(KekError, match=r"^not this one$"):
        open_kek("own:")


@pytest.mark.parametrize(
    ("spec", "package", "module", "extra"),
    [
        ("vault:k", "hvac", "hashicorp", "vault"),
        ("vault:k", "requests", "hashicorp", "vault"),
        ("aws:k", "boto3", "aws", "aws"),
    ],
)
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, spec: str, package: str, module: str, extra: str
) -> None:
    monkeypatch.delitem(sys.modules, f"fedveil.vault.kek.{module}", raising=False)
    for loaded in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)

    class Missing:
        def find_spec(self, name: str, *_: object) -> None:
            if name == package:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(KekError, match=rf"needs {package}: pip install 'fedveil\[{extra}\]'$"):
        open_kek(spec)
