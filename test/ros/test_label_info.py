"""The latched class names, where vision_msgs is installed; a word in the log where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rclpy.qos import QoSDurabilityPolicy

from pebal_core.model_file import read_info
from pebal_ros import label_info

from .harness import Rig, qos, wait_until

INSTALLED = vars(label_info)["LabelInfo"] is not None


@pytest.mark.skipif(not INSTALLED, reason="vision_msgs is not installed, or has no LabelInfo")
def test_whoever_comes_late_learns_the_classes(rig: Rig, tiny_model: Path) -> None:
    from vision_msgs.msg import LabelInfo

    rig.client.status("model", lambda status: status.hardware_id)  # it is configured, so it has published
    latched = qos("reliable")
    latched.durability = QoSDurabilityPolicy.TRANSIENT_LOCAL
    expected = {
        "label_info": {**dict(enumerate(read_info(tiny_model).class_names)), 255: "unlabelled"},
        "mask_info": {0: "known", 255: "anomaly"},
    }
    for topic, classes in expected.items():
        received: list[Any] = []
        subscription = rig.client.node.create_subscription(LabelInfo, topic, received.append, latched)
        (message,) = wait_until(lambda received=received: tuple(received))  # type: ignore[misc]
        rig.client.node.destroy_subscription(subscription)
        assert {item.class_id: item.class_name for item in message.class_map} == classes


@pytest.mark.skipif(INSTALLED, reason="vision_msgs is installed")
def test_without_vision_msgs_the_log_says_so_once(rig: Rig) -> None:
    rig.client.status("model", lambda status: status.hardware_id)
    said = "label_info and mask_info are not published, because vision_msgs 4.1 or later is not installed."
    assert rig.process.output().count(said) == 1
    assert rig.client.node.count_publishers("/rig/label_info") == 0
