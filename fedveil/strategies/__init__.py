"""What turns the clients' replies into the next model.

Modules
-------
factory
    The server optimiser by name, and its state for checkpoints.
cohort
    Who takes part in a round, by the public seed.
exchange
    Messages out, replies in, with a deadline.
replies
    Which replies may be added up.
round_loop
    Rounds, one after another, from any round on.
"""
