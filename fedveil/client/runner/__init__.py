"""The guarded runner: a SuperNode's messages, answered by the code that its owner installed.

Modules
-------
limits
    How much memory and time one message may take.
channel
    What the runner and its worker tell each other.
worker
    The process that holds the app, the model and the data, warm between messages.
worker_process
    That process as the runner sees it: started, heard, ended.
pace
    How long to wait between two looks.
gpu
    One task at a time per GPU.
runner
    Claims tasks, hands them to the worker, watches it, and answers where it cannot.
outcomes
    What became of a message.
task_trail
    What the audit log says of messages.
supernode
    The process that is the `flower-supernode`.
refusals
    Why a SuperLink did not admit it.
runner_file
    What the owner sets: `runner.toml`.
service
    A SuperNode and a runner that are kept alive together, until told to stop.

No module here unpacks the bundle of code that the server sends along.
"""
