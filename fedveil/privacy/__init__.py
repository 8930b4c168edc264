"""Differential privacy: noise, sampling, accounting, the journal of releases, the report.

Modules
-------
randomness
    A cryptographic generator of uniform, Bernoulli and Gaussian variates.
accounting
    `Release` values, their epsilon by PLD and RDP, and calibration of the noise.
journal
    The append-only record of what a run released, written before it is released.
preflight
    Checks that refuse what would make a claim false.
audit
    The mathematics of an audit: from guesses about canaries to a lower bound on epsilon.
report
    The privacy report as data; `report_html` draws it, `composition` puts several together.

Nothing here knows Flower. torch is imported by `preflight` alone.
"""
