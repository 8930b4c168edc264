"""The local training of many clients in one vectorised call; pure torch, no Flower.

Modules
-------
batchable
    Which settings can be trained so, and which not, for what reason.
memory
    What a client takes in memory, and so how many are trained at once.
training
    Jobs in, trained models out.
private
    DP-SGD of many clients.
plain
    Training of many clients without privacy.
stack
    One model whose layers hold the weights of many clients.
layers
    What each kind of layer computes with them.
sums
    Clipped sums of gradients, one for each client.
rows
    The clients' records in one place, and rows of a pass picked from them.
"""
