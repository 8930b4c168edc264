"""The figures of one committed round."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["RoundRecord"]


class RoundRecord(BaseModel):
    """The figures of one committed round.

    Parameters
    ----------
    round, attempt : int
        Which round, and which try at it.
    clients, failed : int
        Replies in the model, and clients left out.
    seconds : float
        Wall time of training and aggregation.
    epsilon : float, optional
        Largest epsilon of any client so far; None where nothing is claimed.
    test : dict
        Metrics on the public test set; empty where there is none.
    client_mean, client_weighted : dict
        Metrics on the clients' own test records, averaged over clients and over records; empty
        unless the configuration lets clients tell them.
    train_loss : float, optional
        Weighted mean of the training losses that clients tell, without privacy.
    clip_norm : float, optional
        Clip norm of the round, where it adapts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    round: int
    attempt: int
    clients: int
    failed: int
    seconds: float
    epsilon: float | None
    test: dict[str, float] = {}
    client_mean: dict[str, float] = {}
    client_weighted: dict[str, float] = {}
    train_loss: float | None = None
    clip_norm: float | None = None

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the public test set or, without one, over the clients' records."""
        return self.test.get("accuracy", self.client_weighted.get("accuracy"))

    @property
    def loss(self) -> float | None:
        """Loss, where accuracy is from."""
        return self.test.get("loss", self.client_weighted.get("loss"))

    @property
    def numbers(self) -> dict[str, float]:
        """What rounds can be chosen by: `fedveil models gc --keep-best`."""
        figures = {"accuracy": self.accuracy, "loss": self.loss, "epsilon": self.epsilon}
        return {name: value for name, value in figures.items() if value is not None}
