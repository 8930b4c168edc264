"""The inference service: rounds of a run over the Open Inference Protocol v2.

Importing this package imports nothing else; name the module that you need:

===============  ================================================================================
`errors`         How a request, or the service, is refused.
`listening`      Sockets to listen on.
`workers`        Several processes for one run: started, watched, replaced, ended.
`oip`            The protocol's types, tensors, requests and their limits.
`open_files`     How many connections fit into the files that may be open.
`about`          What people are told: names of classes, and how an input is given.
`hosts`          Requests that a foreign web page sends through a browser.
`page`           The page for people: its files and headers.
`latencies`      How fast requests were answered in the last minutes.
`oip_text`       From strings to rows of codes.
`oip_tensors`    From bytes or lists to arrays that fit the model.
`oip_json`       Requests over HTTP: JSON and raw tensors.
`oip_json_output`  Answers over HTTP.
`model_holder`   What is served now, and what was before: one reference.
`round_statistics`  What each round has computed and answered.
`batcher`        One bounded queue, a worker for each replica, no timer.
`tls`            Certificates, and what is refused about them.
`tokens`         Bearer tokens with scopes.
`callers`        Who sends a request.
`rate`           How fast a caller may ask.
`budget_database`  The database that budgets are kept in.
`budget_file`    How many rows callers have asked for, on the disk.
`query_budget`   How many rows a caller may ask for in all.
`outputs`        What an answer gives away.
`audit_log`      What happened, written down by a thread.
`policy`         These four together, as they are asked for.
`metrics`        Figures for Prometheus.
`gate`           Lets callers in, counts what they ask, has it written down.
`source`         The run folder, its encrypted store, its report.
`buckets`        Sizes that batches are padded to.
`devices`        What the model is run on, and how.
`pooling`        Max pooling that suits the CPU.
`replica`        One copy of the model on one device.
`trial`          What a model must show before anybody may ask it.
`engine`         The model: loaded from the store, checked, and run.
`watcher`        Looks for new rounds, and lets good ones take over.
`model_metadata`  What the protocol tells of a model.
`service`        All of these together, behind either protocol.
`triton`         What Triton's extensions tell of the service.
`http_answer`    What an application over HTTP is given, and gives back.
`http_inference`  One inference over HTTP, from its body to its answer.
`http_app`       The protocol's addresses over HTTP.
`http_desk`      What the connections of one server share.
`http_reader`    Requests of HTTP/1.1 as they come.
`http_connection`  What is answered when over a connection, and what it may cost.
`http_server`    An event loop in a thread.
`oip_pb2`        The protocol's messages; made by ``make proto`` from ``oip.proto``.
`grpc_messages`  The protocol's messages, to and from checked requests.
`grpc_open`      Calls over gRPC: whose they are, how long they stay, what they hold.
`grpc_calls`     The protocol's methods over gRPC.
`grpc_server`    grpcio's server, within limits.
===============  ================================================================================

A module imports only from modules above it in that table. ``docs/serving.md`` is the guide.
"""

__all__: list[str] = []
