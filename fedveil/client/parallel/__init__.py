"""One client's training under privacy on several devices of its own machine, a process each.

devices    which devices the client's owner gave it
link       what goes between the processes, of a step
member     what every process but the first does
together   the first process: the client's, which alone draws batches and noise

Each process takes its share of a batch's records and sums their clipped gradients; the sums are
added up in the first, which adds the noise and takes the step.
"""
