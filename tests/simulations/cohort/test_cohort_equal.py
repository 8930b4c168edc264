"""Many clients at once against one after another: the same weights, with and without noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from cohort_jobs import QUIET, CaseTask, Cohort, assert_same, weights
from gradient_models import Case, built_in, cases, images
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedveil.client.trainer import TrainingResult
from fedveil.config import DpConfig, TrainingConfig
from fedveil.simulations.cohort.batchable import why_alone
from fedveil.tasks.base import Examples
from fedveil.tasks.models import linear, tanh_mlp

RECORDS = 40
COUNTS = (9, 0, 1, 40, 16, 3, 25)
TRAINING = TrainingConfig(
    sampling_rate=0.5, local_steps=4, learning_rate=0.3, nominal_records=20, batch_size=4
)
MODES: dict[str, tuple[DpConfig | None, Literal["poisson", "shuffle"]]] = {
    "DP": (QUIET, "poisson"),
    "plain, Poisson": (None, "poisson"),
    "plain, shuffled": (None, "shuffle"),
}
BUILT_IN: dict[str, Callable[[], Case]] = {
    **built_in(RECORDS),
    "digits, linear": lambda: images(linear(64, 10, 5 / 16), (1, 8, 8), RECORDS),
}


def cohort_of(case: Case, mode: str = "DP") -> Cohort:
    dp, sampling = MODES[mode]
    training = TRAINING.model_copy(update={"sampling": sampling})
    return Cohort(CaseTask(case), COUNTS, training, dp)


def reason(cohort: Cohort) -> str | None:
    return why_alone(cohort.jobs()[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_model_has_the_same_weights(name: str, mode: str) -> None:
    torch.manual_seed(3)
    case = BUILT_IN[name]()
    cohort, exact = cohort_of(case, mode), cohort_of(case.double(), mode)
    assert reason(cohort) is None
    for mu in (0.0, 0.3):
        # In single precision a maximum of two equals may go to the other one.
        assert_same(cohort.but(mu=mu), 3e-4)
        assert_same(exact.but(mu=mu), 1e-9)


@pytest.mark.parametrize("name", ["digits", "mnist, cnn"])
def test_with_the_generators_of_training_alone_the_noise_is_the_same(name: str) -> None:
    torch.manual_seed(3)
    cohort = cohort_of(BUILT_IN[name]()).but(dp=DpConfig(noise_multiplier=1.0, clip_norm=0.5))
    assert_same(cohort)
    quiet, _ = cohort.but(dp=QUIET).together()
    loud, _ = cohort.together()
    assert all(
        (weights(a) - weights(b)).abs().max() > 0.01 for a, b in zip(quiet, loud, strict=True)
    )


@settings(max_examples=60)
@given(
    cases(),
    st.lists(st.integers(0, 30), min_size=1, max_size=5),
    st.sampled_from(sorted(MODES)),
    st.sampled_from([0.01, 1.0, 100.0]),
    st.sampled_from([0.05, 0.5, 1.0]),
    st.sampled_from([0.0, 0.4]),
    st.sampled_from([16, 512]),
)
def test_any_architecture_has_the_same_weights(
    case: Case,
    counts: list[int],
    mode: str,
    clip: float,
    rate: float,
    mu: float,
    most: int,
) -> None:
    case = case.double()
    dp, sampling = MODES[mode]
    training = TRAINING.model_copy(
        update={
            "sampling": sampling,
            "sampling_rate": rate,
            "learning_rate": 0.05,
            "max_physical_batch": most,
        }
    )
    dp = dp and dp.model_copy(update={"clip_norm": clip})
    cohort = Cohort(CaseTask(case), counts, training, dp, mu)
    # Layers that only functorch knows are trained alone.
    assume(reason(cohort) is None)
    assert_same(cohort, 1e-7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01}),
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        *((name, {}) for name in ("adam", "adamw", "adamax", "nadam", "radam")),
        *((name, {}) for name in ("adagrad", "adadelta", "rmsprop", "rprop", "asgd")),
    ],
)
def test_optimisers_with_a_memory_keep_each_clients_own(
    name: str, options: dict[str, float], mode: str
) -> None:
    torch.manual_seed(4)
    cohort = cohort_of(images(tanh_mlp((64, 8, 10)), (1, 8, 8), RECORDS), mode)
    changes = {
        "optimizer": name,
        "optimizer_options": options,
        "learning_rate": 0.01,
        # Some batches are empty: then a client without privacy takes no step.
        "sampling_rate": 0.1,
        "local_steps": 8,
    }
    cohort = cohort.but(training=cohort.training.model_copy(update=changes))
    assert reason(cohort) is None
    assert_same(cohort, 1e-4)


def test_batches_beyond_one_pass_are_summed_in_several() -> None:
    torch.manual_seed(5)
    cohort = cohort_of(images(tanh_mlp((64, 8, 10)), (1, 8, 8), RECORDS))
    changes = {"sampling_rate": 0.9, "nominal_records": 10}
    large = cohort.but(
        counts=(200, 0, 3, 70, 16, *[12] * 20),
        training=cohort.training.model_copy(update=changes),
    )
    assert_same(large)


@pytest.mark.parametrize("mode", ["plain, Poisson", "plain, shuffled"])
def test_clients_of_very_unlike_size_without_privacy(mode: str) -> None:
    torch.manual_seed(6)
    cohort = cohort_of(images(tanh_mlp((64, 8, 10)), (1, 8, 8), RECORDS), mode)
    large = cohort.training.model_copy(update={"batch_size": 150})
    assert_same(cohort.but(counts=(300, 1, 2, 3, 0, 5, *[4] * 20), training=large))


def test_models_with_shared_layers_and_tied_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            self.middle = nn.Linear(4, 4)
            self.output = nn.Linear(4, 7)
            self.output.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.tanh(self.middle(torch.tanh(self.middle(self.embedding(x)))))
            logits: Tensor = self.output(hidden).mean(dim=1)
            return logits

    torch.manual_seed(7)
    case = Case(Tied(), torch.randint(0, 7, (RECORDS, 6)), torch.randint(0, 7, (RECORDS,)))
    for mode in MODES:
        assert reason(cohort_of(case, mode)) is None
        assert_same(cohort_of(case, mode))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e38])
def test_a_record_that_is_not_finite_adds_nothing_and_bears_on_no_other_client(
    poison: float,
) -> None:
    def spoil(client: int, examples: Examples) -> Examples:
        if client != 3:
            return examples
        x = examples.x.clone()
        x[5] = poison
        return Examples(x, examples.y)

    torch.manual_seed(8)
    clean = cohort_of(images(tanh_mlp((64, 8, 10)), (1, 8, 8), RECORDS))
    clean = clean.but(training=clean.training.model_copy(update={"sampling_rate": 1.0}))
    spoilt = clean.but(change=spoil)
    assert_same(spoilt)
    for client, (one, other) in enumerate(
        zip(spoilt.together()[0], clean.together()[0], strict=True)
    ):
        assert torch.isfinite(weights(one)).all()
        assert torch.equal(weights(one), weights(other)) == (client != 3)


def test_weights_that_are_not_finite_are_refused_for_their_client_alone() -> None:
    torch.manual_seed(9)
    cohort = cohort_of(images(tanh_mlp((64, 8, 10)), (1, 8, 8), RECORDS))

    def spoil(client: int, model: nn.Module) -> None:
        if client == 2:
            with torch.no_grad():
                next(model.parameters())[1, 0] = torch.inf

    cohort = cohort.but(begin=spoil)
    assert_same(cohort)
    _, outcomes = cohort.together()
    assert [isinstance(o, TrainingResult) for o in outcomes] == [i != 2 for i in range(7)]
    assert "training left NaN or infinity in 1.weight" in str(outcomes[2])
