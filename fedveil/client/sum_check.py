"""What a client checks of a sum before it gives a share of its noise, and where the sum turns."""

from __future__ import annotations

from flwr.app import ConfigRecord, RecordDict

from fedveil.client.requests import RequestError
from fedveil.client.shared_noise import noise_shares
from fedveil.config import Config
from fedveil.envelope import ROUND_FACTS
from fedveil.privacy.randomness import SecureGenerator

__all__ = ["check_sum", "rotation_seed"]


def check_sum(content: RecordDict, config: Config) -> None:
    """Refuse a sum in which the noise would not be whole, before any data is touched.

    Each client adds the share that honest survivors need; so they must be as many as the shares
    are reckoned with, whatever the server says.

    Parameters
    ----------
    content : RecordDict
        The request, with the facts that the mod of secure aggregation put there.
    config : Config
        What the server asks for.

    Raises
    ------
    RequestError
        If the request came in clear, or with a quorum or a number of colluding clients that does
        not bear the shares.
    """
    shares, facts = noise_shares(config), content.get(ROUND_FACTS)
    if not isinstance(facts, ConfigRecord):
        raise RequestError(
            f"the server asks in clear for a share of mode {config.dp.mode}, whose noise protects "
            "nobody alone; this client answers under secure aggregation only"
        )
    quorum, colluding = int(str(facts["quorum"])), int(str(facts["colluding"]))
    if quorum < shares.min_survivors:
        raise RequestError(
            f"a sum of {quorum} clients could be unmasked, and the noise is reckoned with at least "
            f"{shares.min_survivors}; lower dp.min_survivors, or let more clients take part"
        )
    if colluding > shares.colluding:
        raise RequestError(
            f"the server takes {shares.colluding} clients of a sum to collude with it, this client "
            f"{colluding}; raise dp.colluding"
        )


def rotation_seed(config: Config, round_: int, attempt: int) -> bytes:
    """Return the public seed of a round's rotation, the same for server and clients.

    A rotation is orthogonal whatever the seed, so that it matters to accuracy alone.
    """
    return SecureGenerator.from_seed("rotation", config.seed, round_, attempt).words(4).tobytes()
