"""A real `radglint serve` in a process of its own, on a free port, that is always ended; and small images to send."""

from __future__ import annotations

import io
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

KEY = "a-key-for-tests-0123456789"
START_S = 300.0
_ADDRESS = re.compile(r"at (http://\S+)")
_COMMAND = [sys.executable, "-c", "from radglint.cli import entry; entry()", "serve", "--port", "0", "--device", "cpu"]


class ServerProcess:
    """One life of a server.

    Args:
        data: its folder.
        arguments: more of the command line.
        key: sent by `client`; None sends none.
    """

    def __init__(self, data: Path, *arguments: str, key: str | None = None, **environment: str) -> None:
        self.key = key
        self.lines: list[str] = []
        self._said: queue.Queue[str] = queue.Queue()
        env = os.environ | {"OMP_NUM_THREADS": "1", **environment}
        self.process = subprocess.Popen(
            [*_COMMAND, "--data", str(data), *arguments], stderr=subprocess.PIPE, text=True, env=env
        )
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()
        self.client = httpx.Client(headers={"X-API-Key": key} if key else {}, timeout=90, trust_env=False)
        try:
            self.url = self._wait_for_address()
            self.client.base_url = self.url
        except BaseException:
            self.kill()
            raise

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            self._said.put(line)
        self._said.put("")

    def _wait_for_address(self) -> str:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            line = self._said.get(timeout=START_S)
            if found := _ADDRESS.search(line):
                return found[1]
            if not line:
                break
        raise AssertionError(f"the server did not start: {''.join(self.lines)}")

    def kill(self) -> None:
        """SIGKILL, as a power cut."""
        self.process.kill()
        self.process.wait(10)
        self.client.close()
        self._reader.join(10)
        if self.process.stderr is not None:
            self.process.stderr.close()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        finally:
            self.kill()

    def upload(self, *files: tuple[str, bytes]) -> dict[str, Any]:
        """Upload files as one study and wait until it is ready or failed."""
        answer = self.client.post("/api/v1/studies", files=[("file", file) for file in files])
        assert answer.status_code == 202, answer.text
        return self.wait(f"/api/v1/studies/{answer.json()['id']}", ("ready", "failed"))

    def ask(self, study_id: str, *queries: str, **more: Any) -> dict[str, Any]:
        """Ask and wait for the answer."""
        asked = {"study_id": study_id, "queries": list(queries), **more}
        answer = self.client.post("/api/v1/jobs?wait_s=30", json=asked)
        assert answer.status_code == 202, answer.text
        return self.wait(f"/api/v1/jobs/{answer.json()['id']}", ("done", "failed", "cancelled"))

    def wait(self, path: str, states: tuple[str, ...]) -> dict[str, Any]:
        """Poll until one of the states is there."""
        for _ in range(10):
            document = self.client.get(path, params={"wait_s": 30}).json()
            if document["state"] in states:
                return document
        raise AssertionError(f"still {document['state']} after five minutes")


def png(side: int = 96, seed: int = 0) -> bytes:
    """A picture that is bright in the middle, with some noise."""
    rows, columns = np.mgrid[:side, :side] / side - 0.5
    values = 200 * np.exp(-6 * (rows**2 + columns**2)) + np.random.default_rng(seed).integers(0, 40, (side, side))
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def nifti(shape: tuple[int, int, int] = (40, 36, 6), seed: int = 0) -> bytes:
    """A small oblique CT as .nii.gz: a body of soft tissue with two lungs."""
    import nibabel as nib

    x, y, _ = np.indices(shape)
    values = np.full(shape, -1000, dtype=np.int16)
    values[(x - 20) ** 2 / 340 + (y - 18) ** 2 / 230 < 1] = 40
    for centre in (12, 28):
        values[(x - centre) ** 2 / 36 + (y - 18) ** 2 / 90 < 1] = -850
    values += np.random.default_rng(seed).integers(-20, 20, shape, dtype=np.int16)
    affine = np.array([[-8.0, 0, 0, 150], [0, 8.0, 0.6, -140], [0, -0.6, 8.0, -20], [0, 0, 0, 1]])
    return nib.Nifti1Image(values, affine).to_bytes()
