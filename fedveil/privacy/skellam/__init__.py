"""The distributed Skellam mechanism: sums of integer vectors under noise that nobody adds alone.

Modules
-------
errors
    What is refused.
sampler
    Skellam variates from a cryptographic keystream.
rotation
    A public random rotation that spreads a vector over its coordinates.
rounding
    From real vectors to integer ones, with a bound on what that costs.
scale
    How fine the integers must be for rounding to cost little.
tails
    Bounds of how far noise and rotated sums reach.
near_gaussian
    How near the noise is to rounded Gaussian noise, for the accounting.
mechanism
    `SkellamMechanism`: the public constants of a sum, encoding and decoding.

After Agarwal, Kairouz & Liu 2021, "The Skellam mechanism for differentially private federated
learning". The arguments stand in docs/decisions/0009-skellam.md. Nothing here imports torch.
"""
