"""The one-slot mailbox: newest wins, every item is accounted for."""

from __future__ import annotations

import threading
import time

from pebal_ros.mailbox import Mailbox


def test_the_newest_item_wins_and_the_older_is_counted() -> None:
    box: Mailbox[str] = Mailbox()
    assert box.take() is None and not box.waiting
    assert box.put("a") is False
    assert box.put("b") is True and box.waiting
    assert box.take() == "b" and box.take() is None
    assert box.counts() == (2, 1, 1)


def test_a_discarded_item_counts_as_dropped() -> None:
    box: Mailbox[str] = Mailbox()
    box.discard()
    box.put("a")
    box.discard()
    assert not box.waiting and box.counts() == (1, 0, 1)


def test_every_item_is_accounted_for_between_threads() -> None:
    ready = threading.Condition()
    boxes: list[Mailbox[int]] = [Mailbox(ready) for _ in range(3)]
    finished = threading.Event()
    taken: list[list[int]] = [[], [], []]

    def consume() -> None:
        while not finished.is_set() or any(box.waiting for box in boxes):
            with ready:
                ready.wait_for(lambda: any(box.waiting for box in boxes), timeout=0.01)
            for box, items in zip(boxes, taken, strict=True):
                item = box.take()
                if item is not None:
                    items.append(item)

    def produce(box: Mailbox[int]) -> None:
        for number in range(2000):
            box.put(number)
            if number % 10 == 0:
                time.sleep(0)  # let the consumer in

    producers = [threading.Thread(target=produce, args=(box,)) for box in boxes]
    consumer = threading.Thread(target=consume)
    for thread in (consumer, *producers):
        thread.start()
    for thread in producers:
        thread.join()
    finished.set()
    consumer.join()
    for box, items in zip(boxes, taken, strict=True):
        received, left, dropped = box.counts()
        assert received == 2000 and left == len(items) and received == left + dropped
        assert items == sorted(set(items)) and items[-1] == 1999, "in order, none twice, the newest last"
