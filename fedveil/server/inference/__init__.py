"""The inference service: rounds of a run over the Open Inference Protocol v2.

Importing this package imports nothing else; name the module that you need:

===============  ================================================================================
`errors`         How a request, or the service, is refused.
`oip`            The protocol's types, tensors, requests and their limits.
`oip_tensors`    From bytes or lists to arrays that fit the model.
`oip_json`       The same over HTTP: JSON and raw tensors.
`model_holder`   What is served now, and what was before: one reference.
`batcher`        One worker, a bounded queue, no timer.
`tls`            Certificates, and what is refused about them.
`tokens`         Bearer tokens with scopes.
`metrics`        Figures for Prometheus.
`source`         The run folder, its encrypted store, its report.
`engine`         The model: loaded from the store, checked, and run.
`watcher`        Looks for new rounds, and lets good ones take over.
`service`        All of these together, behind either protocol.
`http_guard`     What a connection may cost before a request is whole.
`http_app`       The protocol's addresses over HTTP.
`http_server`    uvicorn in a thread.
`oip_pb2`        The protocol's messages; made by ``make proto`` from ``oip.proto``.
`grpc_messages`  The protocol's messages, to and from checked requests.
`grpc_server`    The protocol over gRPC.
===============  ================================================================================

A module imports only from modules above it in that table. ``docs/serving.md`` is the guide.
"""

__all__: list[str] = []
