"""What a coordinator runs.

Modules
-------
app
    The Flower `ServerApp`.
federation
    One run from joining to report, with resume.
training
    The rounds of a run, within its budget.
observer
    Who watches a run.
budget
    What the rounds to come may release, within the budget.
policy_preview
    Whether a data owner's policy would accept a run, and what that would cost.
joining
    Which nodes serve the run, and as which client.
evaluation
    The global model on the public test set and by the clients.
run_folder
    What a run leaves on disk, and how it is committed.
reporting
    The privacy report of a run folder.
new_app
    `fedveil new`: the app directory of a deployed federation.
provisioning
    `fedveil provision`: the kits that a federation's parties start from; a room of its own.
flower_cli, superlink, superlink_service
    `fedveil server KIT`: Flower's SuperLink, and who may join it while it runs.
reachable
    Whether somebody listens at an address.
run_watch, run_metrics
    `fedveil run KIT` and `fedveil status KIT`: what a run does, for people and for Prometheus.
inference
    `fedveil serve`: the model over the Open Inference Protocol; a room with a table of its own.
"""
