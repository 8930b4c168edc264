"""The start scripts of a kit: Fedveil's own commands, and plain Flower's beside them.

They find the kit by where they lie, so that it can be moved. Names and addresses in them are those
that the federation's file was checked for; nothing needs quoting.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from shlex import quote

from fedveil.server.provisioning.kit_file import ClientKit, CoordinatorKit, InferenceKit
from fedveil.server.provisioning.layout import (
    CA,
    CONNECTION,
    MODEL_KEY,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    SUPERNODE_KEY,
    SUPERNODES,
    TOKENS,
)

__all__ = ["client_scripts", "coordinator_scripts", "inference_scripts"]

# A limit of 1 byte is the one that helpers for core dumps heed (docs/deployment-state.md).
_HEAD = """\
#!/bin/sh
# {about}
set -eu
kit=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd -P)
export FEDVEIL_HOME="$kit" FLWR_HOME="$kit/flwr"
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
umask 077
prlimit --core=1:1 --pid $$ 2>/dev/null || ulimit -c 0
"""

_SUPERLINK = """\
exec flower-superlink --host {listen} --port {port} \\
  --database :flwr-in-memory: --disable-runtime-dependency-installation \\
  --ssl-certfile "$kit/{certificate}" --ssl-keyfile "$kit/{key}" --ssl-ca-certfile "$kit/{ca}" \\
  --enable-supernode-auth "$@"
"""

_REGISTER = """\
fedveil kit settle "$kit" >&2
fedveil kit check "$kit" >&2
failed=0
for key in "$kit"/{supernodes}/*.pub; do
  name=$(basename "$key" .pub)
  flwr supernode register "$key" {connection} --name "$name" || failed=1
done
exit $failed
"""

_SUPERNODE = """\
node_config=$(fedveil kit node-config "$kit")
exec flower-supernode --superlink {superlink} --root-certificates "$kit/{ca}" \\
  --auth-supernode-private-key "$kit/{key}" --host {host} --port {port} \\
  --node-config "$node_config" "$@"
"""


def coordinator_scripts(kit: CoordinatorKit) -> dict[str, bytes]:
    """Return the scripts of the coordinator, by path in the kit."""
    return _scripts(
        {
            "start": (
                "The SuperLink, with all clients registered.",
                'exec fedveil server "$kit" "$@"',
            ),
            "run": ("A run, with its progress.", 'exec fedveil run "$kit" "$@"'),
            "superlink": (
                "The SuperLink by Flower's own command; then run bin/register.",
                _SUPERLINK.format(
                    listen=kit.listen,
                    port=kit.port,
                    certificate=SERVER_CERTIFICATE,
                    key=SERVER_KEY,
                    ca=CA,
                ),
            ),
            "register": (
                "Register all clients with a SuperLink that bin/superlink started.",
                _REGISTER.format(supernodes=SUPERNODES, connection=CONNECTION),
            ),
            "flwr": (
                "Flower's own command with this kit's settings: "
                f"bin/flwr run app {CONNECTION} --stream",
                'fedveil kit settle "$kit" >&2\nexec flwr "$@"',
            ),
        }
    )


def client_scripts(kit: ClientKit) -> dict[str, bytes]:
    """Return the scripts of a client, by path in the kit."""
    return _scripts(
        {
            "start": ("This client, guarded.", 'exec fedveil client "$kit" "$@"'),
            "supernode": (
                "This client by Flower's own command: it runs the app that the server ships.",
                _SUPERNODE.format(
                    superlink=kit.superlink_address,
                    ca=CA,
                    key=SUPERNODE_KEY,
                    host=kit.runtime_host,
                    port=kit.runtime_port,
                ),
            ),
        }
    )


def inference_scripts(kit: InferenceKit) -> dict[str, bytes]:
    """Return the scripts of an inference service, by path in the kit."""
    grpc = "" if kit.grpc_port is None else f" --grpc-port {kit.grpc_port}"
    absolute = PurePosixPath(kit.run).is_absolute()
    run = quote(kit.run) if absolute else f'"$kit"/{quote(kit.run)}'
    command = (
        f'exec fedveil serve {run} --kek "file:$kit/{MODEL_KEY}" --signer {kit.signer} \\\n'
        f"  --host {kit.listen} --port {kit.port}{grpc} \\\n"
        f'  --ssl-certfile "$kit/{SERVER_CERTIFICATE}" --ssl-keyfile "$kit/{SERVER_KEY}" \\\n'
        f'  --tokens "$kit/{TOKENS}" "$@"'
    )
    return _scripts({"start": ("The inference service.", command)})


def _scripts(lines: dict[str, tuple[str, str]]) -> dict[str, bytes]:
    return {
        f"bin/{name}": (_HEAD.format(about=about) + body.rstrip("\n") + "\n").encode()
        for name, (about, body) in lines.items()
    }
