"""One slot per camera: the newest frame waits, an older waiting one gives way and is counted."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A slot for one item. At any moment ``received == taken + dropped + waiting``.

    Args:
        ready: notified when an item arrives; several mailboxes may share one, so that a thread waits for all.
    """

    def __init__(self, ready: threading.Condition | None = None) -> None:
        self.ready = ready or threading.Condition()
        self._slot: T | None = None
        self._received = self._taken = self._dropped = 0

    def put(self, item: T) -> bool:
        """Place an item; True if it took the place of one that nobody had taken."""
        with self.ready:
            replaced = self._slot is not None
            self._slot = item
            self._received += 1
            self._dropped += replaced
            self.ready.notify_all()
            return replaced

    def take(self) -> T | None:
        """The waiting item, or None."""
        with self.ready:
            item, self._slot = self._slot, None
            self._taken += item is not None
            return item

    def discard(self) -> None:
        """Drop the waiting item, counted like one that was replaced."""
        with self.ready:
            self._dropped += self._slot is not None
            self._slot = None

    @property
    def waiting(self) -> bool:
        """Whether an item can be taken."""
        return self._slot is not None

    def counts(self) -> tuple[int, int, int]:
        """(received, taken, dropped) of one moment."""
        with self.ready:
            return self._received, self._taken, self._dropped
