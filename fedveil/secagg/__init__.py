"""Secure aggregation: the server learns a sum, and nothing else about anybody.

The room is pure: bytes in, bytes out. It knows no Flower, no torch, no disk and no clock, and
takes randomness for secrets from the operating system alone. Importing this package imports
nothing else, so name the module that you need:

=================  ==============================================================================
`errors`           What can go wrong, each in one line.
`wire`             Canonical bytes of messages.
`shamir`           Secret sharing.
`transcript`       Hashes, keys and commitments, all bound to the session.
`parameters`       How many neighbours, which threshold, which quorum.
`graph`            Who is whose neighbour.
`masking`          Keystreams added to words.
`encoding`         Updates to words and back.
`integers`         Integers to words and back, as they are.
`identity`         Long-term keys and rosters.
`messages`         The messages.
`floors`           What a client insists on.
`parcels`          How shares are sealed.
`client_memory`    What a client keeps between two messages.
`client_round`     One round on a client.
`client_session`   `ClientSession`: a client's side.
`server_round`     One round on the server.
`server_session`   `ServerSession`: the server's side.
=================  ==============================================================================

A module imports only from modules above it in that table. ``docs/secagg.md`` has the threat
model, the messages and the argument.
"""

__all__: list[str] = []
