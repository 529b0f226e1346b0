"""A mailbox with one slot per camera, in which a new frame replaces an older one that is still waiting."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A slot for one item. At any time ``received == taken + dropped + waiting``.

    Args:
        ready: condition that is notified when an item arrives; several mailboxes may share one, so that a thread can
            wait for all of them.

    Examples:
        >>> mailbox = Mailbox()
        >>> mailbox.put("old"), mailbox.put("new"), mailbox.take(), mailbox.counts()
        (False, True, 'new', (2, 1, 1))
    """

    def __init__(self, ready: threading.Condition | None = None) -> None:
        self.ready = ready or threading.Condition()
        self._slot: T | None = None
        self._received = self._taken = self._dropped = 0

    def put(self, item: T) -> bool:
        """Place an item; returns whether it replaced a waiting one."""
        with self.ready:
            replaced = self._slot is not None
            self._slot = item
            self._received += 1
            self._dropped += replaced
            self.ready.notify_all()
            return replaced

    def take(self) -> T | None:
        """Take the waiting item; None if there is none."""
        with self.ready:
            item, self._slot = self._slot, None
            self._taken += item is not None
            return item

    def discard(self) -> None:
        """Drop the waiting item, which counts like a replaced one."""
        with self.ready:
            self._dropped += self._slot is not None
            self._slot = None

    @property
    def waiting(self) -> bool:
        """Whether an item can be taken."""
        return self._slot is not None

    def counts(self) -> tuple[int, int, int]:
        """Consistent counts (received, taken, dropped)."""
        with self.ready:
            return self._received, self._taken, self._dropped
