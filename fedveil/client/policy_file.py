"""The data owner's policy as a file, and the server's settings as a policy sees them."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from fedveil.client.shared_noise import training_release
from fedveil.config import Config, first_complaint
from fedveil.errors import FedveilError
from fedveil.privacy.policy import Policy
from fedveil.privacy.policy_check import Request
from fedveil.vault.errors import VaultError
from fedveil.vault.files import open_private, read_small

__all__ = ["PolicyFileError", "new_policy", "parse_policy", "read_policy", "request_of"]

_MOST_BYTES = 1 << 20

_TEMPLATE = """\
# What this client allows. Whatever is not allowed here is refused, before a record is read.
# In plain words: fedveil policy check FILE
format = "fedveil-policy-1"
secure_aggregation = true   # false: the server may ask for this client's update by itself
min_cohort = {min_cohort}              # least number of clients in a sum, this one included
# expires = 2027-12-31      # last day, in UTC
# tell_figures = true       # let a refusal tell the server these figures, and what is spent

[datasets.{dataset}]
tasks = [{tasks}]
modes = [{modes}]   # all of one unit; in client/central the server is trusted with the noise
epsilon = {epsilon!r}               # over all runs together; what is spent never comes back
delta = {delta!r}             # below 1 / number of {units}
# epsilon_per_run = 1.0
# min_noise_multiplier = 1.0
# max_clip_norm = 1.0
# max_sampling_rate = 0.1
# max_local_steps = 10
# max_rounds = 100
"""


class PolicyFileError(FedveilError):
    """The policy cannot be read, or is no policy; nothing is allowed then."""


def read_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises
    ------
    PolicyFileError
        If there is none, it is malformed or contradicts itself, or somebody else could have
        written it.
    """
    try:
        with open_private(path) as (descriptor, status):
            _check_status(path, status)
            content = read_small(descriptor, _MOST_BYTES)
    except FileNotFoundError:
        raise PolicyFileError(
            f"there is no policy at {path}; make one with `fedveil policy init`"
        ) from None
    except OSError as error:
        raise PolicyFileError(f"{path}: cannot be read ({error.strerror})") from None
    except VaultError as error:
        raise PolicyFileError(f"policy refused: {error}") from None
    return parse_policy(content, str(path))


def new_policy(
    tasks: Sequence[str],
    epsilon: float,
    delta: float,
    dataset: str,
    min_cohort: int,
    modes: Sequence[str] = ("record/local",),
) -> bytes:
    """Return a policy to start from, as a file: one data set with a budget, all else refused.

    Raises
    ------
    PolicyFileError
        If that makes no policy.
    """
    content = _TEMPLATE.format(
        min_cohort=min_cohort,
        dataset=dataset,
        tasks=", ".join(f'"{name}"' for name in tasks),
        modes=", ".join(f'"{name}"' for name in modes),
        units="clients" if modes[0].startswith("client/") else "records",
        epsilon=epsilon,
        delta=delta,
    ).encode()
    parse_policy(content, "the policy")
    return content


def parse_policy(content: bytes, source: str) -> Policy:
    """Read a policy.

    Parameters
    ----------
    content : bytes
        TOML.
    source : str
        Where it is from, for the error.

    Raises
    ------
    PolicyFileError
        If it is malformed or contradicts itself.
    """
    if len(content) > _MOST_BYTES:
        raise PolicyFileError(f"{source}: has more than {_MOST_BYTES} bytes; a policy is short")
    try:
        return Policy.model_validate(tomllib.loads(content.decode("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PolicyFileError(f"{source}: is not TOML ({error})") from None
    except ValidationError as error:
        raise PolicyFileError(f"{source}: {first_complaint(error, Policy)}") from None


def request_of(
    config: Config, dimension: int | None = None, clip_norm: float | None = None
) -> Request:
    """Return what a policy looks at of a run's settings.

    Parameters
    ----------
    config : Config
        The run's settings.
    dimension : int, optional
        Of the model; None before there is one.
    clip_norm : float, optional
        Of this round, where it adapts.

    Raises
    ------
    FedveilError
        If the settings make no mechanism.
    """
    dp, federation, training = config.dp, config.federation, config.training
    # Noise that can be repeated can be subtracted.
    is_private = dp.is_private and dp.insecure_seed is None
    noise = dp.noise_multiplier if is_private else None
    # Only with distributed noise does the cost depend, a little, on how many numbers are rounded.
    size = 0 if dp.noise != "distributed" else dimension
    return Request(
        task=config.task.name,
        mode=dp.mode if is_private else "none",
        metrics=dp.client_metrics,
        secure_aggregation=config.secagg.enabled,
        cohort=federation.cohort,
        rounds=federation.rounds,
        local_steps=training.local_steps,
        sampling_rate=training.sampling_rate,
        clip_norm=dp.clip_norm if clip_norm is None else clip_norm,
        noise_multiplier=noise,
        training=None if noise is None or size is None else training_release(config, noise, size),
        metrics_noise_multiplier=dp.metrics_noise_multiplier,
    )


def _check_status(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (os.geteuid(), 0):
        raise PolicyFileError(
            f"{path}: belongs to user {status.st_uid}, neither to you ({os.geteuid()}) nor to root"
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o022:
        raise PolicyFileError(
            f"{path}: has mode {mode:04o}, so that others may change it; if it says what you want, "
            f"run: chmod go-w {path}"
        )
