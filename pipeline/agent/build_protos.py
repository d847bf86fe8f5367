"""Generate the Python side of agent.proto, which is committed: `python -m pipeline.agent.build_protos`."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROTO = "pipeline/agent/agent.proto"
GENERATED = ("agent_pb2.py", "agent_pb2.pyi", "agent_pb2_grpc.py")


def generate(out: Path) -> None:
    """Write the generated files under `out`, in the folders of the package."""
    from grpc_tools import protoc  # a tool of developers, not installed with the package

    arguments = [f"--{kind}={out}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    code = protoc.main(["protoc", f"--proto_path={ROOT}", *arguments, PROTO])
    if code != 0:
        msg = f"protoc: expected exit code 0 for {PROTO}, found {code}"
        raise SystemExit(msg)


if __name__ == "__main__":
    generate(ROOT)
