"""Generate the Python side of agent.proto, which is committed: `python -m pipeline.agent.build_protos`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROTO = "pipeline/agent/agent.proto"
GENERATED = ("agent_pb2.py", "agent_pb2.pyi", "agent_pb2_grpc.py")


def generate(out: Path) -> None:
    """Write the generated files under `out`, in the folders of the package.

    In a process of its own: protoc's libprotobuf and TensorFlow's crash each other.
    """
    arguments = [f"--{kind}={out}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT}", *arguments, PROTO], check=True)


if __name__ == "__main__":
    generate(ROOT)
