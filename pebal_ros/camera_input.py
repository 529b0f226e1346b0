"""Subscribes to one camera's images, for any reliability that it offers and any order of starting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rclpy.node import Node
from rclpy.subscription import Subscription

from .qos import BEST_EFFORT, RELIABLE, keep_last, reliability_name
from .stream_statistics import SequenceGaps

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

# Subscriptions provide the middleware's sequence number of a message only from Jazzy on.
_HAS_MESSAGE_INFO = hasattr(Subscription, "CallbackType")

AWAITED = 16
"""Number of frames of one subscription that are remembered until the other one receives them too."""


@dataclass(frozen=True)
class TopicState:
    """The publishers of a topic according to the ROS graph."""

    publishers: int = 0
    wrong_types: frozenset[str] = frozenset()
    """Message types of publishers on this topic whose messages can never arrive."""
    offered: str | None = None
    """Reliability with which a subscription receives from every publisher; None if there is no publisher."""


class CameraInput:
    """Subscribes to a topic with the reliability that its publishers offer.

    A reliable subscription receives nothing from a best-effort camera, and a best-effort subscription loses images of a
    reliable camera, including the first one. The ROS graph is therefore checked periodically. While there is no
    publisher, there is one subscription of each kind, so that any new publisher finds a matching one.

    Args:
        node: the node.
        message_type: class of the messages.
        topic: name of the topic.
        reliability: "auto", or the reliability to request regardless of the offered one.
        deliver: function that is called in the executor's thread with each message and the number of messages lost
            before it.
    """

    def __init__(
        self,
        node: Node,
        message_type: type,
        topic: str,
        reliability: str,
        deliver: Callable[[Any, int], None],
    ) -> None:
        self.topic = topic
        self.type_name = f"{message_type.__module__.split('.')[0]}/msg/{message_type.__name__}"
        self.state = TopicState()
        self._node = node
        self._message_type = message_type
        self._fixed = None if reliability == "auto" else reliability
        self._deliver = deliver
        self._gaps = SequenceGaps()
        self._subscriptions: dict[str, Subscription[Any]] = {}
        self._awaited: dict[str, deque[tuple[bytes, int | None, int, int]]] = {}
        """Publisher, sequence number and stamp of the frames that only one of two subscriptions has received so far."""

    @property
    def asked(self) -> list[str]:
        """Reliabilities of the subscriptions."""
        return list(self._subscriptions)

    @property
    def incompatible(self) -> bool:
        """Whether a publisher offers less than the requested reliability, so that its frames never arrive."""
        return self.state.offered == BEST_EFFORT and self.asked == [RELIABLE]

    def close(self) -> None:
        """Unsubscribe."""
        for subscription in self._subscriptions.values():
            self._node.destroy_subscription(subscription)
        self._subscriptions = {}
        self._awaited = {}
        self._gaps = SequenceGaps()  # frames sent in the meantime do not count as lost

    def watch(self) -> None:
        """Check the ROS graph and adapt the subscriptions to it; called in the executor's thread."""
        publishers = self._node.get_publishers_info_by_topic(self.topic)
        fitting = [info for info in publishers if info.topic_type == self.type_name]
        offers = {reliability_name(info.qos_profile) for info in fitting}
        offered = (BEST_EFFORT if BEST_EFFORT in offers else RELIABLE) if offers else None
        wrong_types = frozenset(info.topic_type for info in publishers) - {self.type_name}
        self.state = TopicState(len(fitting), wrong_types, offered)
        wanted = self._fixed or offered
        demanded = [wanted] if wanted else [BEST_EFFORT, RELIABLE]
        for reliability in demanded:
            if reliability not in self._subscriptions:
                self._subscriptions[reliability] = self._subscribe(reliability)
                self._awaited = {name: deque(maxlen=AWAITED) for name in demanded}
        for reliability in set(self._subscriptions) - set(demanded):
            self._node.destroy_subscription(self._subscriptions.pop(reliability))

    def _subscribe(self, reliability: str) -> Subscription[Any]:
        # By default rclpy logs that no message will arrive, but `watch` fixes or reports this situation.
        events = SubscriptionEventCallbacks(incompatible_qos=lambda _event: None)

        def with_info(message: Any, info: Any) -> None:
            self._receive(reliability, message, info)

        def without_info(message: Any) -> None:
            self._receive(reliability, message, {})

        callback = with_info if _HAS_MESSAGE_INFO else without_info
        return self._node.create_subscription(
            self._message_type, self.topic, callback, keep_last(reliability), event_callbacks=events
        )

    def _receive(self, reliability: str, message: Any, info: Mapping[str, Any]) -> None:
        stamp, publisher = message.header.stamp, info.get("publisher_gid")
        # Frames are not compared by order, because a camera's stamps may jump back at any time.
        sent = publisher["data"] if publisher else b"", info.get("publication_sequence_number")
        frame = (*sent, stamp.sec, stamp.nanosec)
        for other, awaited in self._awaited.items():
            if other != reliability and frame in awaited:  # the other subscription has already received it
                awaited.remove(frame)
                return
        if len(self._subscriptions) > 1:
            self._awaited[reliability].append(frame)
        self._deliver(message, self._lost_before(info))

    def _lost_before(self, info: Mapping[str, Any]) -> int:
        number = info.get("publication_sequence_number")
        publisher = info.get("publisher_gid")
        if number is None:
            return 0
        if publisher is None and self.state.publishers != 1:  # the number's publisher is unknown
            self._gaps = SequenceGaps()
            return 0
        return self._gaps.missing_before(publisher["data"] if publisher else b"", number)
