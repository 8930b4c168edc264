"""Differential privacy: noise, sampling, accounting, policy and ledger, the report.

Modules
-------
randomness
    A cryptographic generator of uniform, Bernoulli and discrete Gaussian variates.
gaussian
    Noise on a grid that one party adds: tables, sampler, and the mechanism made of them.
thresholds
    Laws on the integers to 127 bits, for `gaussian` and `skellam`.
accounting
    `Release` values, and their epsilon by PLD and RDP.
calibration
    The least noise that meets a budget.
renyi
    Rényi divergences of integer noise, for `accounting`.
clipping
    A clip norm that follows a quantile of the norms of updates.
skellam
    Distributed integer noise: sampler, rotation, rounding, and the mechanism made of them.
journal
    The append-only record of what a run released, written before it is released.
ledger, ledger_entries, ledger_file
    The data owner's own record over all runs: a chain of charges, each written before its release.
policy, policy_check, policy_words
    What a data owner allows, what of a request that refuses, and the same in plain words.
budget
    What a ledger comes to, by data set and run, and its plot.
preflight
    Checks that refuse what would make a claim false.
audit
    The mathematics of an audit: from guesses about canaries to a lower bound on epsilon.
report
    The privacy report as data; `report_html` draws it, `composition` puts several together.

Nothing here knows Flower. torch is imported by `preflight` alone.
"""
