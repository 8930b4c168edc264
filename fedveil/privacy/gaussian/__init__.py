"""The discrete Gaussian mechanism: sums rounded to a grid, under noise on the same grid.

Modules
-------
tables
    The law as blocks of integers, which 16 random bits are looked up in.
sampler
    Variates from cryptographic keystreams: a block, an offset, and what blocks leave.
mechanism
    `GaussianMechanism`: how wide the grid is, and noise added to values.

The arguments stand in docs/decisions/0011-gaussian-noise-on-a-grid.md. Nothing here imports torch.
"""
