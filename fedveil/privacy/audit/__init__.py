"""The mathematics of a privacy audit: guesses in, a lower bound on epsilon out.

Modules
-------
guesses
    How well an attacker guessed the coins that put canaries in or left them out.
tradeoff
    Trade-off functions of composed releases.
bounds
    Lower bounds on epsilon from guesses.
result
    An audit as data.

A module imports only from those above it.
"""
