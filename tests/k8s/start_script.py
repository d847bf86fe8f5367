"""The flags that serving_config/tensorflow_model_server.sh starts TF-Serving with."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

_SCRIPT = Path(__file__).resolve().parents[2] / "serving_config" / "tensorflow_model_server.sh"


@functools.cache
def start_script() -> tuple[str, ...]:
    environment = {"PATH": "/usr/bin:/bin", "TENSORFLOW_MODEL_SERVER": "/bin/echo"}
    done = subprocess.run([str(_SCRIPT)], env=environment, capture_output=True, text=True, check=True)
    return tuple(done.stdout.split())
