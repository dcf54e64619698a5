"""A server with little room: studies and their results count against it, and deleting makes room again."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from radglint.server.folders import size_bytes
from server_process import ServerProcess, png

STORED_MB = 1.5


def is_full(answer: httpx.Response) -> bool:
    if answer.status_code != 409:
        return False
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()["type"] == "urn:radglint:store-full"


def stored_bytes(server: ServerProcess) -> float:
    text = server.client.get("/metrics").text
    return float(re.findall(r"^radglint_stored_bytes ([\d.e+]+)$", text, re.MULTILINE)[0])


@pytest.mark.slow
def test_results_fill_the_store_and_deleting_makes_room(tmp_path: Path) -> None:
    studies = tmp_path / "data" / "studies"
    server = ServerProcess(tmp_path / "data", "--max-stored-gb", str(STORED_MB / 1024))
    ask = {"queries": ["nodule", "consolidation", "pleural effusion"], "threshold": 0.01}
    try:
        study = server.upload(("a.png", png()))
        assert stored_bytes(server) == size_bytes(studies)
        jobs = []
        for _ in range(400):
            answer = server.client.post("/api/v1/jobs?wait_s=30", json={"study_id": study["id"], **ask})
            if is_full(answer):
                break
            jobs.append(answer.json())
            served = server.client.get(jobs[-1]["findings"][0]["links"]["overlay"])
            assert served.status_code == 200 or is_full(served)
        assert is_full(answer)
        assert stored_bytes(server) == size_bytes(studies) >= STORED_MB * 2**20

        assert server.client.get(jobs[0]["findings"][0]["links"]["overlay"]).status_code == 200  # is there already
        assert is_full(server.client.get(jobs[0]["findings"][1]["links"]["overlay"]))  # would be new
        assert is_full(server.client.get(f"/api/v1/jobs/{jobs[0]['id']}/all.zip"))
        assert is_full(server.client.post("/api/v1/studies", files={"file": ("b.png", png(seed=1))}))
        assert server.client.get(f"/api/v1/jobs/{jobs[0]['id']}").json() == jobs[0]

        for job in jobs[1:]:
            assert server.client.delete(f"/api/v1/jobs/{job['id']}").status_code == 204
        assert stored_bytes(server) == size_bytes(studies) < STORED_MB * 2**20
        assert server.client.get(jobs[0]["findings"][1]["links"]["overlay"]).status_code == 200
        assert server.client.delete(f"/api/v1/studies/{study['id']}").status_code == 204
        assert stored_bytes(server) == size_bytes(studies) == 0
    finally:
        assert server.stop() == 0
