"""Who runs the clients of a simulation.

interface    what an engine is
choose       which one, and why
answering    one message answered by the app in this process
sequential   one client after another
cohort       all that train together, in one vectorised call
processes    several at a time, each in a process of its own
ray          several at a time, on the machines of a Ray cluster
hosting      clients in a process of either
errors       what is wrong with a choice, or with an engine
"""
