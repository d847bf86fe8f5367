"""From a page request to a ranked page and its impression. Where to find what:

- the library: agent; on the wire: service (agent.proto, translate, access), client; agent_pb2 and agent_pb2_grpc by
  build_protos
- a page: requests, memory (retries), buckets, then deciding with lookups (item vectors), asking (the model), acting
  (exploration) and fusion; or ranking_deciding; reasons it fell back for
- what is in use: follower (of the pointers), policies (model and parameters, never apart)
- trouble: guarding (breaker, second attempts), examples (of it, for the log)
- what it leaves: impressions (to the log), metering (to the controller)
"""
