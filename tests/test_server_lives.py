"""A server that is killed, whose model process dies, and that is stopped in good order: no accepted job is lost."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from server_process import ServerProcess, nifti, png


def model_process(server: ServerProcess) -> psutil.Process:
    """The child that holds the model, not the helper that multiprocessing starts beside it."""
    alive = [p for p in psutil.Process(server.process.pid).children() if p.status() != psutil.STATUS_ZOMBIE]
    found = [p for p in alive if "spawn_main" in " ".join(p.cmdline())]
    assert len(found) == 1
    return found[0]


def end_model_process(server: ServerProcess) -> None:
    """Kill it, and wait until the server has seen it."""
    before = restarts(server)
    os.kill(model_process(server).pid, signal.SIGKILL)
    for _ in range(1200):
        if restarts(server) > before:
            return
        time.sleep(0.05)
    raise AssertionError("the death of the model process was not noticed")


def restarts(server: ServerProcess) -> float:
    text = server.client.get("/metrics").text
    return float(re.findall(r"^radglint_model_restarts_total ([\d.]+)$", text, re.MULTILINE)[0])


@pytest.mark.slow
def test_a_killed_server_loses_nothing_and_keeps_its_answers(tmp_path: Path) -> None:
    first = ServerProcess(tmp_path / "data")
    try:
        ready = first.upload(("a.png", png()))
        before = first.ask(ready["id"], "consolidation", threshold=0.01)
        mask = first.client.get(before["findings"][0]["links"]["mask_nifti"]).content
        waiting = first.client.post("/api/v1/studies", files={"file": ("ct.nii", nifti())}).json()["id"]
        asked = {"queries": ["nodule", "emphysema"]}
        ids = [first.client.post("/api/v1/jobs", json={"study_id": waiting, **asked}).json()["id"] for _ in range(3)]
        child = model_process(first)
    finally:
        first.kill()
    child.wait(20)  # it ends with its server
    assert not list((tmp_path / "data" / "studies" / ready["id"]).rglob("probability.nii.gz"))
    second = ServerProcess(tmp_path / "data")
    try:
        ended = [second.wait(f"/api/v1/jobs/{job_id}", ("done", "failed", "cancelled")) for job_id in ids]
        assert [job["state"] for job in ended] == ["done"] * 3
        assert second.client.get(f"/api/v1/jobs/{before['id']}").json() == before
        assert second.client.get(before["findings"][0]["links"]["mask_nifti"]).content == mask
        likely = second.client.get(before["findings"][0]["links"]["probability"])  # from the features on disk
        assert likely.status_code == 200
        assert (
            second.ask(ready["id"], "consolidation", threshold=0.01)["findings"][0]["boxes"]
            == (before["findings"][0]["boxes"])
        )
        the_model_process_may_die(second, ready["id"])
        the_second_death_is_the_end(second)
        assert second.stop() == 0
    finally:
        second.kill()
    assert "Traceback" not in "".join(second.lines)


def the_model_process_may_die(server: ServerProcess, study_id: str) -> None:
    """What is at the model process when it dies is answered by the next one."""
    child = model_process(server)
    os.kill(child.pid, signal.SIGSTOP)  # it takes the job and does nothing
    job_id = server.client.post("/api/v1/jobs", json={"study_id": study_id, "queries": ["mass"]}).json()["id"]
    time.sleep(0.5)
    end_model_process(server)
    assert server.client.get("/api/v1/studies").status_code == 200  # the server itself is there all the time
    assert server.wait(f"/api/v1/jobs/{job_id}", ("done", "failed"))["state"] == "done"
    assert restarts(server) == 1


def the_second_death_is_the_end(server: ServerProcess) -> None:
    """A study over which the model process dies twice is given up; those beside it are not."""
    content = nifti((60, 60, 60), seed=5)
    bad = server.client.post("/api/v1/studies", files={"file": ("bad.nii", content)}).json()["id"]
    good = server.client.post("/api/v1/studies", files={"file": ("good.png", png(seed=9))}).json()["id"]
    for _ in range(2):
        for _ in range(6000):
            if server.client.get(f"/api/v1/studies/{bad}").json()["state"] == "encoding":
                break
            time.sleep(0.05)
        end_model_process(server)
    failed = server.wait(f"/api/v1/studies/{bad}", ("ready", "failed"))
    assert failed["state"] == "failed"
    assert "twice" in failed["problem"]
    assert server.wait(f"/api/v1/studies/{good}", ("ready", "failed"))["state"] == "ready"
