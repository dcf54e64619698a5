"""The OpenAPI document: schemathesis finds nothing, and every route has an example and its errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server_process import KEY, ServerProcess

EXAMPLES = 3


@pytest.mark.slow
def test_schemathesis_finds_nothing(server: ServerProcess, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("st")
    command = [
        program, "run", f"{server.url}/api/v1/openapi.json", "-H", f"X-API-Key: {KEY}", "-n", str(EXAMPLES),
        "--phases", "examples,coverage,fuzzing", "--generation-deterministic", "--no-shrink", "--seed", "1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_every_route_declares_its_errors(server: ServerProcess) -> None:
    document = server.client.get("/api/v1/openapi.json").json()
    assert document["info"]["title"] == "radglint"
    assert "research only" in document["info"]["description"]
    assert "APIKeyHeader" in document["components"]["securitySchemes"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation.get("summary"), (method, path)
            assert operation.get("description"), (method, path)
            assert {"401", "422", "429"} <= set(operation["responses"]), (method, path)
    for name in ("Study", "Job", "JobRequest", "DicomwebRequest", "ProblemDocument"):
        assert "example" in document["components"]["schemas"][name], name
