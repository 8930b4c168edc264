"""The deployed apps on one machine.

Modules
-------
clients
    The clients of a simulation, as any process can make them.
cohort
    Many clients trained in one vectorised call.
engines
    Who runs the clients: one after another, together, or in several processes.
grid
    A Flower `Grid` without a network.
guards
    Simulated data owners: one policy for all, and a ledger for each.
scenarios
    The built-in scenarios and how settings are overridden.
simulate
    One simulated run.
"""
