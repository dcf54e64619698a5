"""Is the service up? `healthcheck.py URL [STATUS]`: ends with 0 if the answer has status 200, or the one given."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

TIMEOUT_S = 8


def status_of(url: str) -> int:
    """The HTTP status of an answer, an error or not; 0 where nothing answers."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


if __name__ == "__main__":
    url, wanted = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200
    came = status_of(url)
    print(f"{url}: {came or 'no answer'}")
    sys.exit(came != wanted)
