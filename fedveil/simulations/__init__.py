"""The deployed apps on one machine.

Modules
-------
grid
    A Flower `Grid` whose nodes run in this process.
scenarios
    The built-in scenarios and how settings are overridden.
simulate
    One simulated run.
"""
