"""`fedveil new`: the app directory of a deployed federation, configuration only."""

from __future__ import annotations

import re
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import tomli_w

from fedveil import __version__
from fedveil.config import Config
from fedveil.errors import FedveilError

__all__ = ["NewAppError", "app_files", "write_app"]


class NewAppError(FedveilError):
    """The app directory cannot be written."""


_README = """\
# A Fedveil federation

Configuration only: the code is the installed package `fedveil`. Settings stand in
`pyproject.toml` under `[tool.flwr.app.config]`; `docs/quickstart.md` of Fedveil explains them.

{identities}Start the coordinator, then one SuperNode a client, then the run. Without TLS, as here,
only on one machine:

    export FLWR_TELEMETRY_ENABLED=0
    fedveil server --insecure --port 9000

{nodes}

Name the coordinator in `~/.flwr/config.toml`:

    [superlink.local]
    address = "127.0.0.1:9000"
    insecure = true

and run:

    flwr run {directory} local --stream

The run folder lies on the coordinator's machine, under `$FEDVEIL_HOME/runs` unless
`--run-config 'run.out="PATH"'` names another place.
"""

_IDENTITIES = """\
Secure aggregation is on: every client needs an identity, and a roster of the others that never
comes from the server. On its own machine, each data owner says

    fedveil keys new-identity NAME

which prints a line `fedveil roster add NAME KEY`. Every other data owner runs that line, having
got it by a way that both trust; the files lie in `$FEDVEIL_HOME`. Here, with all clients on one
machine, each has files of its own:

    for i in {numbers}; do
      fedveil keys new-identity client-$i --out client-$i/identity.json
    done
    for i in {numbers}; do for j in {numbers}; do
      [ $i = $j ] || $(fedveil keys show-identity --identity client-$j/identity.json) \\
        --roster client-$i/roster.toml
    done; done

"""


def write_app(directory: Path, config: Config) -> None:
    """Write a Flower app directory that runs Fedveil's installed apps.

    Parameters
    ----------
    directory : Path
        To be made; must not exist, or be empty.
    config : Config
        The settings.

    Raises
    ------
    NewAppError
        If the directory is taken or cannot be written.
    """
    name = re.sub(r"[^a-z0-9]+", "-", directory.resolve().name.lower()).strip("-") or "federation"
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise NewAppError(f"{directory}: is there already and not empty; choose another")
        directory.mkdir(parents=True, exist_ok=True)
        for file, content in app_files(name, config).items():
            (directory / file).write_bytes(content)
        (directory / "README.md").write_text(_readme(directory, config), encoding="utf-8")
    except OSError as error:
        raise NewAppError(f"{directory}: cannot be written ({error.strerror})") from None


def app_files(name: str, config: Config) -> dict[str, bytes]:
    """Return the files of a Flower app that runs Fedveil's installed apps, by name.

    Parameters
    ----------
    name : str
        Of the app: lower-case letters, digits and dashes.
    config : Config
        The settings.
    """
    project = {
        "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
        "project": {
            "name": name,
            "version": "1.0.0",
            "description": f"A Fedveil federation: {config.task.name}",
            "license": {"file": "LICENSE"},
            # Flower wants itself named; the version is the one that Fedveil is tested with.
            "dependencies": [f"flwr>={version('flwr')}", f"fedveil=={__version__}"],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "fedveil",
                    "fab-format-version": 1,
                    "flwr-version-target": version("flwr"),
                    "components": {
                        "serverapp": "fedveil.server.app:app",
                        "clientapp": "fedveil.client.app:app",
                    },
                    # Flower lets a run override only what stands here already.
                    "config": {
                        **config.model_dump(exclude_none=True),
                        "run": {
                            "out": "",
                            "kek": "",
                            "data-dir": "",
                            "roster": "",
                            "resume": "",
                        },
                    },
                }
            }
        },
    }
    licence = files("fedveil.server").joinpath("app_license.txt").read_bytes()
    return {"pyproject.toml": tomli_w.dumps(project).encode(), "LICENSE": licence}


def _readme(directory: Path, config: Config) -> str:
    clients = config.federation.clients
    secagg = config.secagg.enabled
    nodes = "\n".join(
        f"    flower-supernode --insecure --superlink 127.0.0.1:9000 --port {9101 + index} \\\n"
        f"      --node-config '{_node_config(index, clients, is_secure=secagg)}'"
        for index in range(min(clients, 3))
    )
    if clients > 3:
        nodes += f"\n    # ... and so on, up to partition-id={clients - 1}"
    numbers = f"$(seq 0 {clients - 1})"
    return _README.format(
        identities=_IDENTITIES.format(numbers=numbers) if secagg else "",
        nodes=nodes,
        directory=directory.name,
    )


def _node_config(index: int, clients: int, *, is_secure: bool) -> str:
    files = "".join(
        f" {key}=\"'$PWD'/client-{index}/{name}\""
        for key, name in (("identity", "identity.json"), ("roster", "roster.toml"))
    )
    own = files if is_secure else ' secagg="off"'
    return f"partition-id={index} num-partitions={clients}{own}"
