"""The deployed apps on one machine.

Modules
-------
grid
    A Flower `Grid` whose nodes run in this process.
guards
    Simulated data owners: one policy for all, and a ledger for each.
scenarios
    The built-in scenarios and how settings are overridden.
simulate
    One simulated run.
"""
