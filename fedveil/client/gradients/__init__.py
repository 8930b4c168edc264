"""Clipped sums of per-record gradients, and the engines that compute them.

engine          which engine computes them
interface       what an engine is
opacus_hooks    Opacus' hooks: every record's gradient in memory
bookkeeping     the fast engine: norms first, then one clipped product a layer
taps            what flows into each layer, and the gradient of what flows out
layers          from a layer and its flows to what its records contribute
factors         what flows in and out of a layer
outer_products  contributions of linear layers that each record passes once
products        contributions of other linear and convolutional layers
sparse_rows     contributions of embeddings
per_record      contributions with every record's gradient in memory
clipping        from norms to the factor of each record
"""
