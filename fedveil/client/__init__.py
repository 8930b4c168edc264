"""What a data owner runs.

Modules
-------
app
    The Flower `ClientApp`: joins, trains and evaluates on request.
guard
    Holds each request against the owner's policy, and charges the ledger before a record is read.
policy_file
    The policy as a file, and a run's settings as a policy sees them.
requests
    What a message of the server says.
local_training
    Training without privacy, and what both ways of training share.
dp_training
    DP-SGD with per-record clipping and cryptographic noise, on Opacus.
gradients
    Clipped sums of per-record gradients: Opacus' hooks, or a faster engine with the same results.

torch and opacus are imported when a message asks for them, not when the app is.
"""
