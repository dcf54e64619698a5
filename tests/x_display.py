"""An X server without a screen (Xvfb) for one test run, so that a real viewer with OpenGL can be opened."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

STARTED_WITHIN_S = 30


@contextmanager
def x_display() -> Iterator[str]:
    """Start Xvfb on a free display number; it ends with the block, also after a failure."""
    program = shutil.which("Xvfb")
    assert program is not None, "Xvfb is missing: install it (on Debian: apt-get install xvfb) and run the tests again"
    read_end, write_end = os.pipe()
    command = [program, "-displayfd", str(write_end), "-screen", "0", "1400x1000x24", "-nolisten", "tcp", "-noreset"]
    server = subprocess.Popen(command, pass_fds=[write_end], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(write_end)
    try:
        with os.fdopen(read_end) as numbers:  # the number comes when the server is ready; end of file when it gave up
            number = numbers.readline().strip()
        assert number, f"Xvfb ended with {server.wait(STARTED_WITHIN_S)}; start it by hand to see why"
        yield f":{number}"
    finally:
        server.terminate()
        server.wait(STARTED_WITHIN_S)
