"""Malformed messages: skipped, counted, reported by topic and reason, and the node goes on."""

from __future__ import annotations

from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from .conftest import Rig
from .harness import Inbox, TestCamera, picture, values

IMAGE = "/rig/image"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"height": 97}, "46080 bytes of data came with a 160×97 rgb8 image"),
        ({"data": []}, "0 bytes of data came with"),
        ({"step": 479}, "the step is 479 bytes, but a row of 160 pixels of rgb8 takes 480"),
        ({"encoding": "rgb12"}, "the encoding 'rgb12' is not supported"),
        ({"width": 0}, "the image is empty"),
        ({"height": 8, "data": bytes(8 * 480)}, "An image must be at least 16 pixels on both sides"),
    ],
)
def test_a_bad_frame_is_skipped_counted_and_named(
    rig: Rig, camera: TestCamera, labels: Inbox, changes: dict[str, Any], reason: str
) -> None:
    labels.wait_for(camera.send(picture()))
    before = rig.client.counts(IMAGE)
    bad = camera.send(picture(), **changes)
    status = rig.client.status(IMAGE, lambda s: s.level == DiagnosticStatus.ERROR and reason in s.message)
    assert status.message.startswith("A frame on /rig/image was skipped: ")
    assert reason in values(status)["last error"]
    good = camera.send(picture())
    labels.wait_for(good)
    after = rig.client.counts(IMAGE)
    assert after["bad"] == before["bad"] + 1 and after["answered"] == before["answered"] + 1
    assert bad not in labels.stamps() and rig.process.running
