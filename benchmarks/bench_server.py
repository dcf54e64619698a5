"""A server under load: many clients that upload, ask, cancel, fetch results and send garbage, all at once.

Command: python benchmarks/bench_server.py [--clients N] [--seconds S] [--kill]
    (about two minutes on 2 cores with the defaults; `--kill` ends the server with SIGKILL in the middle and starts it
    again)
Target: no answer of status 500 or above, no lost job, bounded memory. "Lost" is a job that was accepted and that, at
the end, is not known any more; none may wait for ever either. Answers of 429 (queue or rate) are what a client has to
expect and are counted. With `--latency` only the time of one question after another on an encoded radiograph and CT is
measured.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from dicom_files import write_radiograph
from server_process import ServerProcess, nifti, png

PHRASES = ("nodule", "pleural effusion", "no pneumothorax", "consolidation", "cardiomegaly", "emphysema")
WARM = 0.8  # share of the questions to studies that were encoded before the clock starts
LIMITS = ("--rate", "5000", "--burst", "20000", "--max-studies", "5000", "--max-queue", "2000", "--cache-mb", "512")


class Load:
    """What all clients share: what was accepted, and what came back.

    Args:
        url: of the server; it stays the same over a restart.
        seed: of the clients' choices.
    """

    def __init__(self, url: str, seed: int) -> None:
        self.url = url
        self.random = random.Random(seed)
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self.statuses: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self.warm: list[str] = []
        self.studies: list[str] = []
        self.jobs: dict[str, str] = {}
        self.deleted: set[str] = set()
        self.unreached = 0
        with tempfile.TemporaryDirectory() as folder:
            pixels = (np.arange(64 * 64).reshape(64, 64) % 4000).astype(np.uint16)
            dicom = write_radiograph(Path(folder, "x.dcm"), pixels).read_bytes()
        self.images = [("a.png", png()), ("b.png", png(128, 1)), ("c.dcm", dicom), ("d.nii", nifti((20, 18, 3)))]

    async def client(self, until_s: float) -> None:
        """One client, one request after another."""
        async with httpx.AsyncClient(base_url=self.url, timeout=120, trust_env=False) as http:
            while time.monotonic() < until_s:
                kind = self.random.choices(("upload", "ask", "cancel", "result", "garbage", "delete"),
                                           (10, 50, 10, 12, 16, 2))[0]  # fmt: skip
                try:
                    await getattr(self, f"_{kind}")(http)
                except httpx.TransportError:
                    self.unreached += 1
                    await asyncio.sleep(0.5)

    async def _timed(self, kind: str, request: Any) -> httpx.Response:
        began = time.monotonic()
        answer = await request
        self.seconds[kind].append(time.monotonic() - began)
        self.statuses[kind][answer.status_code] += 1
        return answer

    async def _upload(self, http: httpx.AsyncClient) -> None:
        answer = await self._timed(
            "upload", http.post("/api/v1/studies", files={"file": self.random.choice(self.images)})
        )
        if answer.status_code == 202:
            self.studies.append(answer.json()["id"])

    async def _job(self, http: httpx.AsyncClient, kind: str, wait_s: int) -> dict[str, Any] | None:
        is_warm, is_known = (self.random.random() < share for share in (WARM, 0.7))
        study_id = self.random.choice(self.warm if is_warm or not self.studies else self.studies)
        query = self.random.choice(PHRASES) if is_known else f"mass of {self.random.randrange(999)} mm"
        body = {"study_id": study_id, "queries": [query]}
        answer = await self._timed(kind, http.post(f"/api/v1/jobs?wait_s={wait_s}", json=body))
        if answer.status_code != 202:
            return None
        job = answer.json()
        self.jobs[job["id"]] = study_id
        return job

    async def _ask(self, http: httpx.AsyncClient) -> None:
        await self._job(http, "ask", 30)

    async def _cancel(self, http: httpx.AsyncClient) -> None:
        job = await self._job(http, "ask without waiting", 0)
        if job is not None:
            await self._timed("cancel", http.post(f"/api/v1/jobs/{job['id']}/cancel"))

    async def _result(self, http: httpx.AsyncClient) -> None:
        if self.jobs:
            job_id = self.random.choice(list(self.jobs)[-200:])
            await self._timed("result", http.get(f"/api/v1/jobs/{job_id}/findings/0/probability.nii.gz"))

    async def _delete(self, http: httpx.AsyncClient) -> None:
        if len(self.studies) > 20:
            study_id = self.studies.pop(self.random.randrange(len(self.studies)))
            self.deleted.add(study_id)
            await self._timed("delete", http.delete(f"/api/v1/studies/{study_id}"))

    async def _garbage(self, http: httpx.AsyncClient) -> None:
        noise = self.random.randbytes(self.random.randrange(1, 4000))
        json_type = {"content-type": "application/json"}
        form_type = {"content-type": "multipart/form-data; boundary=x"}
        request = self.random.choice((
            lambda: http.post("/api/v1/studies", files={"file": ("x", noise)}),
            lambda: http.post("/api/v1/studies", files={"file": ("x.png", png()[: len(noise)])}),
            lambda: http.post("/api/v1/jobs", content=noise, headers=json_type),
            lambda: http.post("/api/v1/jobs", json={"study_id": "0" * 24, "queries": ["nodule"]}),
            lambda: http.get("/api/v1/jobs/..%2f..%2fetc%2fpasswd/report.json"),
            lambda: http.get(f"/api/v1/studies/{noise[:12].hex()}/volume.nii.gz"),
            lambda: http.post("/infer/nano", content=noise, headers=form_type),
            lambda: http.request("PATCH", "/health", content=noise),
        ))  # fmt: skip
        await self._timed("garbage", request())

    async def lost(self, wait_s: float) -> tuple[list[str], Counter[str]]:
        """Jobs that the server does not know any more, and what became of the others."""
        ended: Counter[str] = Counter()
        lost = []
        deadline = time.monotonic() + wait_s
        async with httpx.AsyncClient(base_url=self.url, timeout=120, trust_env=False) as http:
            for job_id, study_id in self.jobs.items():
                state = "queued"
                while state in ("queued", "running"):
                    left = deadline - time.monotonic()
                    answer = await http.get(f"/api/v1/jobs/{job_id}", params={"wait_s": min(10, max(0, left))})
                    state = answer.json().get("state", "unknown")
                    if left <= 0:
                        break
                if state == "unknown" and study_id in self.deleted:
                    state = "deleted with its study"
                elif state == "unknown":
                    lost.append(job_id)
                ended[state] += 1
        return lost, ended


def main() -> None:
    """Run the load and print the tables."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="radglint-load-") as folder:
        server = ServerProcess(Path(folder), *LIMITS)
        try:
            if options.latency:
                return _latency(server, options.ct)
            server = asyncio.run(_run(server, Path(folder), options))
        finally:
            server.kill()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill", action="store_true", help="SIGKILL the server in mid-load")
    parser.add_argument("--wait-s", type=float, default=300, help="for what still waits at the end")
    parser.add_argument("--latency", action="store_true", help="only the time of one question")
    parser.add_argument("--ct", type=Path, help="a CT for --latency; a small made-up one by default")
    return parser.parse_args()


async def _run(server: ServerProcess, folder: Path, options: argparse.Namespace) -> ServerProcess:
    load = Load(server.url, options.seed)
    load.warm = [(await asyncio.to_thread(server.upload, image))["id"] for image in load.images]
    print(f"{len(load.warm)} studies are encoded", flush=True)
    watch = asyncio.create_task(_memory(lambda: server.process.pid))
    until = time.monotonic() + options.seconds
    clients = [asyncio.create_task(load.client(until)) for _ in range(options.clients)]
    if options.kill:
        await asyncio.sleep(options.seconds / 2)
        began, at_kill = time.monotonic(), len(load.jobs)
        server.kill()
        port = server.url.rpartition(":")[2]
        server = await asyncio.to_thread(ServerProcess, folder, *LIMITS, "--port", port)
        print(f"killed with {at_kill} jobs accepted; answered again after {time.monotonic() - began:.1f} s")
    await asyncio.gather(*clients)
    lost, ended = await load.lost(options.wait_s)
    watch.cancel()
    _print(load, lost, ended, options)
    print(f"peak memory: server {PEAK['server'] / 1e6:.0f} MB, model process {PEAK['model'] / 1e6:.0f} MB")
    crashes = [line for line in server.lines if "Traceback" in line or "internal error" in line]
    print(f"lines of internal errors in the log: {len(crashes)}", *crashes[:3], sep="\n")
    return server


PEAK = {"server": 0, "model": 0}


async def _memory(pid_of: Any) -> None:
    """Keep the highest resident memory of the server and of its children."""
    while True:
        try:
            process = psutil.Process(pid_of())
            PEAK["server"] = max(PEAK["server"], process.memory_info().rss)
            PEAK["model"] = max(PEAK["model"], *(child.memory_info().rss for child in process.children()), 0)
        except psutil.Error:
            pass
        await asyncio.sleep(0.5)


def _print(load: Load, lost: list[str], ended: Counter[str], options: argparse.Namespace) -> None:
    print(f"{options.clients} clients, {options.seconds:.0f} s, {sum(map(len, load.seconds.values()))} requests")
    print(f"{'kind':<22}{'number':>8}{'p50 ms':>9}{'p95 ms':>9}  statuses")
    for kind, seconds in sorted(load.seconds.items()):
        middle, high = statistics.median(seconds), sorted(seconds)[int(0.95 * (len(seconds) - 1))]
        statuses = dict(sorted(load.statuses[kind].items()))
        print(f"{kind:<22}{len(seconds):8}{1000 * middle:9.0f}{1000 * high:9.0f}  {statuses}")
    errors = sum(n for counts in load.statuses.values() for status, n in counts.items() if status >= 500)
    print(f"5xx: {errors}; not reached: {load.unreached}; jobs accepted: {len(load.jobs)}, ended: {dict(ended)}")
    waiting = ended["queued"] + ended["running"]
    print(f"lost jobs: {len(lost)}, still waiting: {waiting}", *lost[:5])
    print("target met" if not errors and not lost and not waiting else "TARGET MISSED")


def _latency(server: ServerProcess, ct: Path | None) -> None:
    """Time of one question over HTTP, for phrases that the model has heard in its life and for new ones."""
    content = nifti() if ct is None else ct.read_bytes()
    for name, file in (("radiograph", png(512)), ("CT", content)):
        began = time.perf_counter()
        study = server.upload((name, file))
        print(f"{name} {study['image']['shape']}: ready after {time.perf_counter() - began:.1f} s")
        server.ask(study["id"], "nodule")
        process = psutil.Process(server.process.pid)
        for kind, phrases in (
            ("known phrase", ["nodule"] * 20),
            ("new phrase", [f"mass of {k} mm" for k in range(20)]),
        ):
            cpu, seconds = _cpu_s(process), []
            for phrase in phrases:
                began = time.perf_counter()
                body = {"study_id": study["id"], "queries": [phrase]}
                job = server.client.post("/api/v1/jobs?wait_s=30", json=body).json()
                if job["state"] != "done":
                    raise SystemExit(f"a question ended as {job['state']}: {job['problem']}")
                seconds.append(time.perf_counter() - began)
            spent = (_cpu_s(process) - cpu) / len(phrases)
            times = (1000 * value for value in (statistics.median(seconds), max(seconds), spent))
            print("  {}: median {:.0f} ms, most {:.0f} ms, CPU {:.0f} ms".format(kind, *times))


def _cpu_s(process: psutil.Process) -> float:
    times = [p.cpu_times() for p in (process, *process.children())]
    return sum(t.user + t.system for t in times)


if __name__ == "__main__":
    main()
