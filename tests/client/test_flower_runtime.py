from __future__ import annotations

import importlib.metadata

import pytest

from fedveil.client.flower_runtime import FlowerVersionError, check_flower_version


def test_the_installed_flower_is_the_tested_one() -> None:
    check_flower_version()


@pytest.mark.parametrize("version", ["1.40.3", "1.42.0", "2.41.0", "1.4", "1.410.0"])
def test_another_flower_is_refused_with_the_range(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    with pytest.raises(FlowerVersionError, match=f"Flower {version} is installed") as caught:
        check_flower_version()
    assert "pip install 'flwr>=1.41,<1.42'" in str(caught.value)


def test_the_range_is_the_one_that_the_package_asks_for() -> None:
    wanted = [r for r in importlib.metadata.requires("fedveil") or [] if r.startswith("flwr")]
    assert wanted == ["flwr<1.42,>=1.41"]
