"""What is being worked on right now, and who wants to hear of it. Lost at a restart, and nothing is missed then."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Live = dict[str, Any]


class Hub:
    """States and progress of studies and jobs in work; set from any thread, heard in the event loop."""

    def __init__(self) -> None:
        self._live: dict[str, Live] = {}
        self._lock = threading.Lock()
        self._listeners: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.is_closing = False

    def open(self) -> None:
        """Bind to the running event loop."""
        self._loop = asyncio.get_running_loop()

    def live(self, item_id: str) -> Live:
        """State and progress of something in work; empty if it is not."""
        with self._lock:
            return dict(self._live.get(item_id, {}))

    def publish(self, item_id: str, **what: Any) -> None:
        """Something in work has changed."""
        with self._lock:
            self._live.setdefault(item_id, {}).update(what)
        self._wake(item_id)

    def settle(self, item_id: str) -> None:
        """Something is not in work any more; its state is in the data base."""
        with self._lock:
            self._live.pop(item_id, None)
        self._wake(item_id)

    def close(self) -> None:
        """Everybody who listens stops; called in the event loop or in a signal handler of its thread."""
        self.is_closing = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._notify_all)

    @contextmanager
    def listening(self, item_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever something changes; the listener clears it."""
        changed = asyncio.Event()
        self._listeners[item_id].add(changed)
        try:
            yield changed
        finally:
            self._listeners[item_id].discard(changed)
            if not self._listeners[item_id]:
                del self._listeners[item_id]

    def _wake(self, item_id: str) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._notify, item_id)

    def _notify(self, item_id: str) -> None:
        for changed in self._listeners.get(item_id, ()):
            changed.set()

    def _notify_all(self) -> None:
        for listeners in self._listeners.values():
            for changed in listeners:
                changed.set()
