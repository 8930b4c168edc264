"""Who runs the clients of a simulation.

interface    what an engine is
answering    one message answered by the app in this process
cohort       all that train together, in one vectorised call
"""
