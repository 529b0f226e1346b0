"""The moment in which a camera shows: two subscriptions listen, and every frame must come through exactly once."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from builtin_interfaces.msg import Time
from sensor_msgs.msg import Image

from pebal_ros.camera_input import CameraInput
from pebal_ros.messages import to_message

from .harness import Client, picture, wait_until


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client("/inputs")
    yield client
    client.close()


@pytest.mark.parametrize("seconds", [[3600, 5, 6, 7], [0, 0, 0]], ids=["time goes back", "no stamps at all"])
def test_two_subscriptions_deliver_each_frame_once(client: Client, seconds: list[int]) -> None:
    delivered: list[tuple[int, int]] = []
    topic = client.node.resolve_topic_name("image")
    camera_input = CameraInput(
        client.node, Image, topic, "auto", lambda message, lost: delivered.append((message.header.stamp.sec, lost))
    )
    camera_input.watch()  # nobody publishes yet
    assert sorted(camera_input.asked) == ["best_effort", "reliable"]
    camera = client.camera()
    wait_until(lambda: camera.publisher.get_subscription_count() == 2)
    for second in seconds:
        before = len(delivered)
        message = to_message(picture(), "rgb8", client.header())
        message.header.stamp = Time(sec=second)
        camera.send_message(message)
        wait_until(lambda before=before: len(delivered) > before)  # type: ignore[misc]
    camera_input.watch()
    assert camera_input.asked == ["reliable"]
    camera.send(picture())
    wait_until(lambda: len(delivered) > len(seconds))
    time.sleep(0.2)  # for what would come twice
    assert [second for second, _ in delivered[:-1]] == seconds and len(delivered) == len(seconds) + 1
    camera_input.close()
    camera.close()
