"""A stand-in for `tensorflow_model_server`: for laptops and tests, where the real binary is not installed.

It speaks the same gRPC protocol (Predict, GetModelMetadata, GetModelStatus, HandleReloadConfigRequest, health), reads
the same files, takes the same flags, loads and unloads versions by the same rules, runs models in the same TensorFlow
session, and answers errors with the same codes and texts.

What it is not: TF-Serving. It runs in one Python process, so loading a version shares the interpreter's lock with
requests; its latency, above all while versions are swapped, says nothing about the real server. It has no REST API,
no Prometheus metrics, no batching, no TLS, no Classify, Regress or MultiInference. It does not stop a running graph
at the caller's deadline (the caller gets DEADLINE_EXCEEDED all the same). It listens on the loopback interface, not
on all, unless PAGETURN_STANDIN_HOST names another. Whatever depends on speed has to be measured on the real binary.
"""
