"""What a data owner runs.

Modules
-------
app
    The Flower `ClientApp`: joins, trains and evaluates on request.
local_training
    Training without privacy, and what both ways of training share.
dp_training
    DP-SGD with per-record clipping and cryptographic noise, on Opacus.

torch and opacus are imported when a message asks for them, not when the app is.
"""
