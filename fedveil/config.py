"""Every setting of a federation, parsed and checked in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedveil.settings import ConfigError

__all__ = [
    "AdaptiveClipConfig",
    "Config",
    "DpConfig",
    "FederationConfig",
    "Mode",
    "PartitionConfig",
    "SecAggConfig",
    "ServerOptimizerConfig",
    "TaskConfig",
    "TrainingConfig",
    "first_complaint",
    "parse_config",
]

Scalar = str | int | float | bool

Mode = Literal["record/local", "record/distributed", "client/distributed", "client/central", "none"]
"""Whom the guarantee holds for and who adds the noise; ``none`` is no guarantee."""


class _Section(BaseModel):
    # Strict: "8" is no number and 1 is no truth value; a typo must not pass as a setting.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TaskConfig(_Section):
    """What is trained.

    Parameters
    ----------
    name : str
        A task of the entry-point group ``fedveil.tasks``.
    options : dict
        Options of that task.
    """

    name: str = Field(min_length=1)
    options: dict[str, Scalar] = {}


class PartitionConfig(_Section):
    """How one data set is divided among simulated clients.

    Parameters
    ----------
    scheme : {"iid", "dirichlet", "shards", "natural"}
        ``natural`` follows the data's own groups (hospital, writer, role).
    alpha : float
        Concentration of the Dirichlet scheme; small is far from IID.
    shards_per_client : int
        Shards of the scheme by sorted label.
    """

    scheme: Literal["iid", "dirichlet", "shards", "natural"] = "iid"
    alpha: Annotated[float, Field(gt=0)] = 0.5
    shards_per_client: Annotated[int, Field(ge=1)] = 2


class FederationConfig(_Section):
    """Who takes part, and for how long.

    Parameters
    ----------
    clients : int
        Number of clients that the data is divided among.
    rounds : int
        Number of rounds.
    fraction : float
        Share of the clients in each round's cohort, in (0, 1].
    min_clients : int
        Least number of clients that a round needs.
    join_timeout : float
        Seconds to wait for all clients at the start, after that `min_clients` are enough; and that
        a client has to answer when it is asked whether it takes part.
    round_timeout : float
        Seconds to wait for the replies of one exchange.
    """

    clients: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_clients: Annotated[int, Field(ge=1)] = 2
    join_timeout: Annotated[float, Field(gt=0)] = 60.0
    round_timeout: Annotated[float, Field(gt=0)] = 3600.0

    @model_validator(mode="after")
    def _enough_clients(self) -> Self:
        if self.min_clients > self.clients:
            raise ValueError(
                f"min_clients = {self.min_clients} must not exceed clients = {self.clients}; take "
                "more clients"
            )
        return self

    @property
    def cohort(self) -> int:
        """How many clients a round is planned with."""
        return min(self.clients, max(self.min_clients, round(self.fraction * self.clients)))


class TrainingConfig(_Section):
    """Local training on a client.

    Parameters
    ----------
    sampling : {"poisson", "shuffle"}
        Poisson sampling takes each record with probability `sampling_rate`, on its own;
        ``shuffle`` walks through a permutation in batches of `batch_size`.
    sampling_rate : float
        Probability of a record to be in a Poisson batch, in (0, 1].
    batch_size : int
        Records in a shuffled batch.
    local_steps : int
        Optimiser steps of a client in a round; 1 in the mode record/distributed, in which a round
        is one step on all clients' records.
    optimizer : str
        Name of an optimiser of `torch.optim`, in any case.
    learning_rate : float
        Learning rate of that optimiser.
    optimizer_options : dict
        Further arguments of that optimiser, such as ``momentum``.
    nominal_records : int, optional
        Public constant: the number of training records a client is taken to have. It scales
        the noisy sums. By default the task's published size divided by `clients`.
    max_physical_batch : int
        Records in memory at once; larger batches are accumulated.
    device : str
        ``auto`` takes CUDA where there is one; else ``cpu``, ``cuda`` or ``cuda:N``.
    engine : {"auto", "opacus", "fast"}
        What computes the clipped gradients under privacy: Opacus' hooks, or norms first and one
        clipped product a layer. ``auto`` takes the fast one wherever it can; the results are
        the same.
    precision : {"fp32", "bf16"}
        ``bf16`` computes the passes through the model in bfloat16 where PyTorch's autocast does.
        Norms, clipping, sums, noise and weights stay in float32.
    """

    sampling: Literal["poisson", "shuffle"] = "poisson"
    sampling_rate: Annotated[float, Field(gt=0, le=1)] = 0.25
    batch_size: Annotated[int, Field(ge=1)] = 32
    local_steps: Annotated[int, Field(ge=1)] = 4
    optimizer: str = "sgd"
    learning_rate: Annotated[float, Field(gt=0)] = 1.0
    optimizer_options: dict[str, Scalar] = {}
    nominal_records: Annotated[int, Field(ge=1)] | None = None
    max_physical_batch: Annotated[int, Field(ge=1)] = 512
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    engine: Literal["auto", "opacus", "fast"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"


class ServerOptimizerConfig(_Section):
    """How the server turns the mean update into the next model.

    Parameters
    ----------
    name : {"fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox"}
        The strategy.
    learning_rate : float
        Server learning rate (all but ``fedavg`` and ``fedprox``).
    momentum : float
        Momentum of ``fedavgm``.
    beta_1, beta_2, tau : float
        Parameters of ``fedadam`` and ``fedyogi`` (`tau` also of ``fedadagrad``), Reddi et al.
        2021, Algorithm 2.
    proximal_mu : float
        Weight of the proximal term of ``fedprox``, Li et al. 2020, Algorithm 2.
    """

    name: Literal["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox"] = "fedavg"
    learning_rate: Annotated[float, Field(gt=0)] = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta_1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta_2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: Annotated[float, Field(gt=0)] = 1e-3
    proximal_mu: Annotated[float, Field(ge=0)] = 0.01


class SecAggConfig(_Section):
    """Secure aggregation: the server learns sums over clients, and nobody's update.

    Parameters
    ----------
    enabled : bool
        Whether the clients' updates and figures are masked. Without it the server sees each one.
    clip_norm : float
        L2 bound of a client's update in a round, which fixes the range that is encoded. Larger
        updates are scaled down to it, and the run says how many were.
    ring_bits : {16, 32}
        Bits for each parameter on the wire.
    setup_rounds : int
        Rounds that one exchange of keys serves, where all clients take part in every round; a
        sampled cohort exchanges keys anew.
    retries : int
        Further attempts at a round when too few clients are left; each is charged in full.
    stage_timeout : float
        Seconds to wait for the replies of a stage in which nobody trains.
    corrupt_share, dropped_share : float
        Shares of the clients that are taken to collude with the server, and to drop out, above
        100 clients. Up to 100 a third may collude.
    """

    enabled: bool = True
    clip_norm: Annotated[float, Field(gt=0)] = 100.0
    ring_bits: Literal[16, 32] = 32
    setup_rounds: Annotated[int, Field(ge=1, le=100)] = 10
    retries: Annotated[int, Field(ge=0, le=100)] = 2
    stage_timeout: Annotated[float, Field(gt=0)] = 60.0
    corrupt_share: Annotated[float, Field(ge=0, lt=0.5)] = 0.05
    dropped_share: Annotated[float, Field(ge=0, lt=0.5)] = 0.05


class AdaptiveClipConfig(_Section):
    """A clip norm that follows a quantile of the updates' norms, Andrew et al. 2021, Algorithm 1.

    ``dp.clip_norm`` is the first round's. Each client also says, in one bit under noise of its
    own, whether its update was within the clip norm.

    Parameters
    ----------
    target_quantile : float
        Share of the updates that are to be within the clip norm, in (0, 1).
    learning_rate : float
        Rate of the geometric update: the clip norm changes by at most this factor's exponential
        in a round, but for the noise.
    bit_noise : float, optional
        Standard deviation of the noise on the sum of the bits, in clients. By default a twentieth
        of the planned cohort (section 3.1), or the noise multiplier where that is larger.
    """

    target_quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.2
    bit_noise: Annotated[float, Field(gt=0)] | None = None


class DpConfig(_Section):
    """Differential privacy.

    Parameters
    ----------
    unit : {"record", "client", "none"}
        Whom the guarantee holds for: one record, or all that one client holds. ``none`` switches
        privacy off and claims nothing.
    noise : {"local", "distributed", "central"}
        Who adds the noise. ``local``: each client, all of it, so that the guarantee holds against
        everybody. ``distributed``: each client a share, under secure aggregation, so that it holds
        for the sum, which is all that anybody sees. ``central``: the server, which is trusted to.
    clip_norm : float
        L2 bound of one record's gradient, or of one client's update; 1e-12 to 1e12.
    noise_multiplier : float, optional
        Standard deviation of the noise in a sum over its L2 sensitivity, at least 0.1. Give this or
        `target_epsilon`.
    target_epsilon : float, optional
        Epsilon that the whole run may reach, at most 100; the noise multiplier is calibrated
        to it.
    delta : float
        Delta of the guarantee.
    colluding : int, optional
        With distributed noise: how many clients of a sum are taken to collude with the server, so
        that their shares of the noise protect nobody. By default as many as secure aggregation
        bears.
    min_survivors : int, optional
        With distributed noise: the least number of clients in a sum. With fewer it is not unmasked,
        and the honest ones among them bring the whole noise. By default secure aggregation's
        quorum.
    adaptive : AdaptiveClipConfig, optional
        Lets the clip norm follow a quantile; with the unit ``client`` only.
    metrics : {"off", "noisy", "clear"}, optional
        What clients release of their own test records: nothing, counts with accounted noise,
        or exact figures (the report says so). By default ``off`` under privacy and ``clear``
        without it.
    metrics_noise_multiplier : float
        Standard deviation of the noise on the counts of ``noisy``, in units of sqrt(2), the
        L2 distance that one record can move (correct, total).
    insecure_seed : int, optional
        Makes noise and sampling reproducible, and with that worthless: the report then claims
        nothing.
    """

    unit: Literal["record", "client", "none"] = "record"
    noise: Literal["local", "distributed", "central"] = "local"
    # Within these bounds single precision clips as it should, whatever the records are.
    clip_norm: Annotated[float, Field(ge=1e-12, le=1e12)] = 1.0
    noise_multiplier: Annotated[float, Field(ge=0.1)] | None = None
    target_epsilon: Annotated[float, Field(gt=0, le=100)] | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    colluding: Annotated[int, Field(ge=0)] | None = None
    min_survivors: Annotated[int, Field(ge=2)] | None = None
    adaptive: AdaptiveClipConfig | None = None
    metrics: Literal["off", "noisy", "clear"] | None = None
    metrics_noise_multiplier: Annotated[float, Field(gt=0)] = 20.0
    insecure_seed: int | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.metrics == "noisy" and self.unit != "record":
            raise ValueError(
                f'metrics = "noisy" protects records, and unit is "{self.unit}"; use "off" or '
                '"clear"'
            )
        if not self.is_private:
            return self
        if (self.noise_multiplier is None) == (self.target_epsilon is None):
            raise ValueError("give one of noise_multiplier and target_epsilon, not both or neither")
        return self

    @model_validator(mode="after")
    def _is_a_mode(self) -> Self:
        if self.is_private and f"{self.unit}/{self.noise}" not in get_args(Mode):
            known = [mode for mode in get_args(Mode) if mode.startswith(f"{self.unit}/")]
            raise ValueError(
                f'unit = "{self.unit}" with noise = "{self.noise}" is no mode; with this unit '
                f"there are {' and '.join(known)}"
            )
        return self

    @model_validator(mode="after")
    def _shares_make_sense(self) -> Self:
        given = {"colluding": self.colluding, "min_survivors": self.min_survivors}
        for name, value in given.items():
            if self.is_private and self.noise != "distributed" and value is not None:
                raise ValueError(
                    f'{name} = {value} is of noise = "distributed", and noise is "{self.noise}"; '
                    "leave it out"
                )
        if None not in given.values() and (self.min_survivors or 0) <= (self.colluding or 0):
            raise ValueError(
                f"min_survivors = {self.min_survivors} with colluding = {self.colluding} leaves no "
                "honest client to add the noise; raise the one or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _adaptive_makes_sense(self) -> Self:
        if self.adaptive is None or not self.is_private:
            return self
        if self.unit != "client":
            raise ValueError(
                "adaptive clipping follows the norms of clients' updates, and unit is "
                f'"{self.unit}"; leave dp.adaptive out, or set unit = "client"'
            )
        bits, noise = self.adaptive.bit_noise, self.noise_multiplier
        if bits is not None and noise is not None and 2.0 * bits <= noise:
            raise ValueError(
                f"adaptive.bit_noise = {bits:g} spends more than the whole budget on the bits: it "
                f"must exceed half of noise_multiplier = {noise:g}"
            )
        return self

    @property
    def is_private(self) -> bool:
        """Whether any guarantee is asked for."""
        return self.unit != "none"

    @property
    def mode(self) -> Mode:
        """Unit and noise together, as ``record/local``; ``none`` without privacy."""
        wanted = f"{self.unit}/{self.noise}"
        return next((m for m in get_args(Mode) if m == wanted), "none")

    @property
    def client_metrics(self) -> Literal["off", "noisy", "clear"]:
        """What clients release of their own test records, defaults resolved."""
        if self.metrics is not None:
            return self.metrics
        return "off" if self.is_private else "clear"


class Config(_Section):
    """One federation, whole.

    Parameters
    ----------
    seed : int
        Seed of the model's first weights, the partition and the cohorts, and, without
        privacy, of the batches. Never of noise.
    """

    task: TaskConfig
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    partition: PartitionConfig = PartitionConfig()
    federation: FederationConfig = FederationConfig()
    training: TrainingConfig = TrainingConfig()
    server_optimizer: ServerOptimizerConfig = ServerOptimizerConfig()
    secagg: SecAggConfig = SecAggConfig()
    dp: DpConfig

    @model_validator(mode="after")
    def _sampling_matches_privacy(self) -> Self:
        if self.dp.unit == "record" and self.training.sampling != "poisson":
            raise ValueError(
                f'training.sampling = "{self.training.sampling}" cannot be accounted as Poisson '
                'sampling; under dp.unit = "record" use "poisson"'
            )
        return self

    @model_validator(mode="after")
    def _one_step_on_all_records(self) -> Self:
        """Refuse, in record/distributed, what only local training could do."""
        if self.dp.mode != "record/distributed":
            return self
        training, wrong = self.training, ""
        if training.local_steps != 1:
            wrong = (
                f"training.local_steps = {training.local_steps} does not fit; set it to 1, and "
                "federation.rounds higher"
            )
        elif training.optimizer.lower() != "sgd" or training.optimizer_options:
            wrong = (
                f'training.optimizer = "{training.optimizer}" and training.optimizer_options would '
                'not be used; take "sgd" without options, and server_optimizer for more'
            )
        elif self.server_optimizer.name == "fedprox":
            wrong = 'server_optimizer.name = "fedprox" has no local steps to hold back'
        if wrong:
            raise ValueError(
                "in mode record/distributed a round is one step, which the server takes with the "
                f"clients' summed gradients: {wrong}"
            )
        return self

    @model_validator(mode="after")
    def _shared_noise_is_hidden(self) -> Self:
        dp, cohort = self.dp, self.federation.cohort
        if not dp.is_private or dp.noise != "distributed":
            return self
        if not self.secagg.enabled:
            raise ValueError(
                f"in mode {dp.mode} each client adds a share of the noise only, which protects "
                'nobody in the clear; set secagg.enabled = true, or dp.noise = "'
                f'{"local" if dp.unit == "record" else "central"}"'
            )
        if dp.min_survivors is not None and dp.min_survivors > cohort:
            raise ValueError(
                f"dp.min_survivors = {dp.min_survivors} is more than the {cohort} clients that a "
                "round is planned with; lower it"
            )
        return self

    @model_validator(mode="after")
    def _clip_norm_fits_the_encoding(self) -> Self:
        dp, secagg = self.dp, self.secagg
        if dp.mode != "client/central" or dp.adaptive is None or not secagg.enabled:
            return self
        if dp.clip_norm > secagg.clip_norm:
            raise ValueError(
                f"dp.clip_norm = {dp.clip_norm:g} is above secagg.clip_norm = "
                f"{secagg.clip_norm:g}, up to which an adaptive clip norm may rise; lower the one "
                "or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _enough_clients_to_hide_among(self) -> Self:
        if self.secagg.enabled and self.federation.min_clients < 2:
            raise ValueError(
                f"federation.min_clients = {self.federation.min_clients} leaves nobody to hide "
                "among: secure aggregation needs at least 2; raise it, or set secagg.enabled = "
                "false"
            )
        return self

    def to_toml(self) -> str:
        """Return this configuration as TOML that `parse_config` reads back to an equal one."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))


def parse_config(tree: Mapping[str, object], source: str) -> Config:
    """Check a tree of settings.

    Parameters
    ----------
    tree : Mapping
        Nested settings, as `tomllib` returns them.
    source : str
        Where they come from, for the error.

    Raises
    ------
    ConfigError
        If a setting is missing, unknown, of the wrong type or contradicts another.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {first_complaint(error, Config)}") from None


def first_complaint(error: ValidationError, settings: type[BaseModel]) -> str:
    """Return in one line what is wrong with settings, and how many more complaints there are.

    Parameters
    ----------
    error : ValidationError
        What pydantic found.
    settings : type
        What was to be read, for the names that are known.
    """
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    known = _known_keys(first["loc"], settings) if first["type"] == "extra_forbidden" else ""
    if first["type"] == "extra_forbidden":
        return f"unknown setting {where}; {known}"
    if first["type"] == "missing":
        return f"setting {where} is missing"
    given = first.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    rest = len(error.errors()) - 1
    more = f" (and {rest} more)" if rest else ""
    return f"{where + ': ' if where else ''}{message[:1].lower()}{message[1:]}{shown}{more}"


def _known_keys(location: tuple[int | str, ...], settings: type[BaseModel]) -> str:
    section = settings
    parts = iter(location[:-1])
    for part in parts:
        annotation = section.model_fields[str(part)].annotation
        if get_origin(annotation) is dict:
            # Sections by a name that the user chose: what is known lies below it.
            annotation = get_args(annotation)[1]
            next(parts, None)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        section = annotation
    return "known here: " + ", ".join(section.model_fields)
