#!/usr/bin/env bash
# Starts TF-Serving for a policy that gets a new version every minute. Further arguments are appended: a later flag
# replaces an earlier one. MODELS holds the model folders and the models.config that the controller writes; CONFIG
# holds this folder.
set -euo pipefail
MODELS=${MODELS:-/models}
CONFIG=${CONFIG:-/config}

# glibc's allocator keeps the memory of unloaded versions; jemalloc gives it back.
jemalloc=$(ls /usr/lib/*/libjemalloc.so.2 2>/dev/null | head -n 1 || true)
if [[ -n $jemalloc ]]; then export LD_PRELOAD=$jemalloc; fi

flags=(
  # gRPC, for agents and the controller. It opens once every model has a version, so an open port means ready.
  --port=8500
  # HTTP, for Prometheus only.
  --rest_api_port=8501
  --monitoring_config_file="$CONFIG/monitoring.config"
  # Which versions of which models; re-read every second, so that a publish or a rollback takes a second.
  --model_config_file="$MODELS/models.config"
  --model_config_file_poll_wait_seconds=1
  # How often the model folders are listed. 0 would list them once and never see a new version.
  --file_system_poll_wait_seconds=1
  # Loads and unloads get threads of their own; with 0 the manager's thread does them and decides nothing meanwhile.
  # Two, because a failed load sleeps in its thread until its retry, and the next version must not wait behind it.
  --num_load_threads=2
  --num_unload_threads=1
  # A version that cannot be loaded is known as bad after five seconds. The defaults, five retries a minute apart,
  # would show LOADING for five minutes.
  --max_num_load_retries=1
  --load_retry_interval_micros=5000000
  # Run assets.extra/tf_serving_warmup_requests through a version before it is served, three times each: the first
  # runs of a graph are tens of times slower than later ones.
  --enable_model_warmup=true
  --num_request_iterations_for_warmup=3
  # grpc.health.v1, for probes.
  --enable_grpc_healthcheck_service=true
  # The profiler service would let any client start a trace.
  --enable_profiler=false
)
exec "${TENSORFLOW_MODEL_SERVER:-tensorflow_model_server}" "${flags[@]}" "$@"
