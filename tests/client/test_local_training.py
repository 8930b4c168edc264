"""Seeds of torch: what they draw, and what they leave behind."""

from __future__ import annotations

import torch

from fedveil.client.local_training import seed_torch, torch_seeded
from fedveil.privacy.randomness import SecureGenerator


def test_a_seed_draws_what_torch_would_draw() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2**40 + 3)
        expected = torch.rand(5)
        seed_torch(2**40 + 3)
        assert torch.equal(torch.rand(5), expected)


def test_a_client_is_seeded_without_a_trace() -> None:
    generator = SecureGenerator.from_seed("seeds")
    queued = len(torch.cuda._queued_calls)
    before = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with torch_seeded(generator):
            drawn.append(torch.rand(3))
    assert not torch.equal(*drawn)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(torch.cuda._queued_calls) == queued
