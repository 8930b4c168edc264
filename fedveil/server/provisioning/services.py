"""The same commands under systemd, compose and Kubernetes."""

from __future__ import annotations

import os
import pwd
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import tomli_w

from fedveil.server.provisioning.errors import KitError
from fedveil.server.provisioning.kit_file import (
    AnyKit,
    ClientKit,
    CoordinatorKit,
    InferenceKit,
)
from fedveil.server.provisioning.layout import CA, CONNECTION, DEPLOY

__all__ = ["container_files", "flower_config", "systemd_unit"]

_UNIT = """\
# sudo cp this file to /etc/systemd/system, then: sudo systemctl enable --now {unit}
[Unit]
Description=Fedveil {party} {name} of {federation}
Wants=network-online.target
After=network-online.target

[Service]
Type=exec
User={user}
Environment={path}
ExecStart={start}
Restart=on-failure
RestartSec=5
TimeoutStopSec=60
UMask=0077
LimitCORE=1
MemorySwapMax=0
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ReadWritePaths={kit}

[Install]
WantedBy=multi-user.target
"""

# The network of the machine itself: addresses mean the same in and out of the container.
_COMPOSE = """\
# FEDVEIL_UID=$(id -u) FEDVEIL_GID=$(id -g) docker compose -f {deploy}/compose.yaml up -d
# The keys belong to the user who made the kit, and no other user may read them.
services:
  {name}:
    image: "{image}"
    command: [{command}]
    user: "${{FEDVEIL_UID:?set it to the owner of the kit}}:${{FEDVEIL_GID:?}}"
    network_mode: host
    restart: unless-stopped
    read_only: true
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    ulimits: {{core: 1}}
    environment: {{HOME: /tmp}}
    tmpfs: [/tmp]
    volumes: ["..:/kit"]
"""

_KUBERNETES = """\
# The kit travels as a secret; it is unpacked into the volume, where what changes stays, too:
#   tar -C KIT -cf kit.tar --exclude=./runs --exclude=./marks --exclude=./ledger.db* .
#   kubectl create secret generic {name}-kit --from-file=kit.tar
#   kubectl apply -f {deploy}/kubernetes.yaml
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {name}-kit
spec:
  accessModes: [ReadWriteOnce]
  resources:
    requests:
      storage: 10Gi
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {name}
spec:
  replicas: 1
  strategy:
    type: Recreate
  selector:
    matchLabels: {{app: {name}}}
  template:
    metadata:
      labels: {{app: {name}}}
    spec:
      automountServiceAccountToken: false
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        fsGroup: 10001
        fsGroupChangePolicy: OnRootMismatch
        seccompProfile: {{type: RuntimeDefault}}
      initContainers:
        - name: unpack
          image: "{image}"
          command:
            - sh
            - -euc
            - |
              umask 077
              mkdir -p /volume/kit
              rm -rf /volume/kit/supernodes
              tar -C /volume/kit --no-same-owner -xpf /secret/kit.tar
              fedveil kit settle /volume/kit
              fedveil kit check /volume/kit
          securityContext: &hardened
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {{drop: [ALL]}}
          env: &env
            - {{name: HOME, value: /tmp}}
          volumeMounts:
            - {{name: secret, mountPath: /secret, readOnly: true}}
            - {{name: volume, mountPath: /volume}}
            - {{name: tmp, mountPath: /tmp}}
      containers:
        - name: {name}
          image: "{image}"
          command: [{command}]
          securityContext: *hardened
          env: *env
{ports}          volumeMounts:
            - {{name: volume, mountPath: /volume}}
            - {{name: tmp, mountPath: /tmp}}
      volumes:
        - name: secret
          secret: {{secretName: {name}-kit}}
        - name: volume
          persistentVolumeClaim: {{claimName: {name}-kit}}
        - name: tmp
          emptyDir: {{medium: Memory}}
"""

_SERVICE = """\
---
apiVersion: v1
kind: Service
metadata:
  name: {name}
spec:
  selector: {{app: {name}}}
  ports:
{ports}
"""


@dataclass(frozen=True)
class _Place:
    """Where a kit lies and who starts it."""

    kit: Path
    programs: Path
    user: str

    @classmethod
    def here(cls, folder: Path) -> _Place:
        try:
            user = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            # Containers run under numbers that have no name.
            user = str(os.geteuid())
        return cls(folder.resolve(), Path(sys.executable).parent, user)


def systemd_unit(kit: AnyKit, folder: Path, unit: str) -> bytes:
    """Return the unit that starts the kit where it lies now, as the user who asks.

    Raises
    ------
    KitError
        If the path cannot stand in a unit.
    """
    here = _Place.here(folder)
    for path in (here.kit, here.programs):
        if not str(path).isprintable():
            raise KitError(f"{str(path)!r}: cannot stand in a systemd unit; move the kit elsewhere")
    text = _UNIT.format(
        unit=PurePosixPath(unit).name,
        party=kit.party,
        name=kit.name,
        federation=kit.federation,
        user=here.user,
        path=_unit_word(f"PATH={here.programs}:/usr/local/bin:/usr/bin:/bin"),
        start=_unit_word(f"{here.kit}/bin/start"),
        kit=_unit_word(str(here.kit)),
    )
    return text.encode()


def flower_config(kit: CoordinatorKit, folder: Path) -> bytes:
    """Return what `flwr` is told of the SuperLink; it wants the certificate's path absolute."""
    tree = {
        "superlink": {
            "default": CONNECTION,
            CONNECTION: {
                "address": kit.superlink_address,
                "root-certificates": str(folder.resolve() / CA),
            },
        }
    }
    return tomli_w.dumps(tree).encode()


def container_files(kit: AnyKit, image: str) -> dict[str, bytes]:
    """Return the compose file and the Kubernetes manifests, by path in the kit."""
    name = f"{kit.federation}-{kit.name}"
    ports = _ports(kit)
    kubernetes = _KUBERNETES.format(
        name=name,
        image=image,
        deploy=DEPLOY,
        command=_command("/volume/kit"),
        ports=_container_ports(ports),
    )
    if ports:
        listed = "\n".join(f"    - {{name: {what}, port: {port}}}" for what, port in ports)
        kubernetes += _SERVICE.format(name=name, ports=listed)
    compose = _COMPOSE.format(name=kit.name, image=image, deploy=DEPLOY, command=_command("/kit"))
    return {
        f"{DEPLOY}/compose.yaml": compose.encode(),
        f"{DEPLOY}/kubernetes.yaml": kubernetes.encode(),
    }


def _command(kit: str) -> str:
    return f'"{kit}/bin/start"'


def _container_ports(ports: list[tuple[str, int]]) -> str:
    lines = [f"            - {{name: {what}, containerPort: {port}}}\n" for what, port in ports]
    return "".join(["          ports:\n", *lines]) if lines else ""


def _ports(kit: AnyKit) -> list[tuple[str, int]]:
    if isinstance(kit, CoordinatorKit):
        return [("superlink", kit.port)]
    if isinstance(kit, InferenceKit):
        grpc = [] if kit.grpc_port is None else [("grpc", kit.grpc_port)]
        return [("https", kit.port), *grpc]
    assert isinstance(kit, ClientKit)  # noqa: S101  # narrows the type
    return []


def _unit_word(text: str) -> str:
    """Return a word as systemd.syntax(7) wants it; variables count in later words only."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
