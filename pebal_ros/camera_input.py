"""The subscription to one camera's images, whatever reliability it offers and whoever starts first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rclpy.node import Node
from rclpy.subscription import Subscription

from .qos import BEST_EFFORT, RELIABLE, keep_last, reliability_name
from .stream_statistics import SequenceGaps

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

# Only from Jazzy on does a subscription tell the middleware's sequence number of a message.
_HAS_MESSAGE_INFO = hasattr(Subscription, "CallbackType")


@dataclass
class TopicState:
    """Who publishes on the topic, as the graph says."""

    publishers: int = 0
    wrong_types: set[str] = field(default_factory=set)
    """Types of publishers on this topic whose messages can never arrive."""
    offered: str | None = None
    """Reliability that a subscription must ask for to hear every publisher; None: nobody publishes."""
    asked: str = BEST_EFFORT
    """Reliability of the subscription."""

    @property
    def incompatible(self) -> bool:
        """Whether a publisher offers less than the subscription asks for: its frames never arrive."""
        return self.offered == BEST_EFFORT and self.asked == RELIABLE


class CameraInput:
    """Subscribes to a topic and asks for the reliability that its publishers offer.

    A reliable subscription does not hear a best-effort camera, and a best-effort one loses images of a
    reliable camera; so the graph is looked at now and then, and the subscription replaced where it does not
    fit. The old one stays until the new one has delivered: no frame falls between the two.

    Args:
        reliability: "auto", or the one to ask for whatever is offered.
        deliver: called in the executor's thread with each message and the number of messages lost before it.
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
        self.state = TopicState(asked=RELIABLE if reliability == RELIABLE else BEST_EFFORT)
        self._node = node
        self._message_type = message_type
        self._adopts = reliability == "auto"
        self._deliver = deliver
        self._gaps = SequenceGaps()
        self._subscription: Subscription[Any] | None = None
        self._retiring: Subscription[Any] | None = None
        self._last_stamp: tuple[int, int] | None = None

    def open(self) -> None:
        """Subscribe."""
        self.watch()
        if self._subscription is None:
            self._subscription = self._subscribe()

    def close(self) -> None:
        """Unsubscribe."""
        for subscription in (self._subscription, self._retiring):
            if subscription is not None:
                self._node.destroy_subscription(subscription)
        self._subscription = self._retiring = None

    def watch(self) -> None:
        """Look at the graph and replace a subscription that does not fit; in the executor's thread."""
        publishers = self._node.get_publishers_info_by_topic(self.topic)
        fitting = [info for info in publishers if info.topic_type == self.type_name]
        offers = {reliability_name(info.qos_profile) for info in fitting}
        offered = (BEST_EFFORT if BEST_EFFORT in offers else RELIABLE) if offers else None
        wrong_types = {info.topic_type for info in publishers} - {self.type_name}
        asked = offered if self._adopts and offered else self.state.asked
        replace = asked != self.state.asked
        self.state = TopicState(len(fitting), wrong_types, offered, asked)
        if replace and self._subscription is not None:
            if self._retiring is not None:
                self._node.destroy_subscription(self._retiring)
            self._retiring, self._subscription = self._subscription, self._subscribe()

    def _subscribe(self) -> Subscription[Any]:
        # Without events of our own, rclpy would log that no message will arrive, which is what `watch` mends.
        events = SubscriptionEventCallbacks(incompatible_qos=lambda _event: self.watch())
        # Each callback knows which subscription it serves: the one that `watch` retires, or its successor.
        serial = object()
        self._newest = serial

        def with_info(message: Any, info: Any) -> None:
            self._receive(message, info, serial is self._newest)

        def without_info(message: Any) -> None:
            self._receive(message, {}, serial is self._newest)

        return self._node.create_subscription(
            self._message_type,
            self.topic,
            with_info if _HAS_MESSAGE_INFO else without_info,
            keep_last(self.state.asked),
            event_callbacks=events,
        )

    def _receive(self, message: Any, info: Mapping[str, Any], from_newest: bool) -> None:
        stamp = (message.header.stamp.sec, message.header.stamp.nanosec)
        if self._retiring is not None:
            if from_newest:
                self._node.destroy_subscription(self._retiring)
                self._retiring = None
            if stamp == self._last_stamp:
                return  # both subscriptions brought it
        self._last_stamp = stamp
        self._deliver(message, self._lost_before(info))

    def _lost_before(self, info: Mapping[str, Any]) -> int:
        number = info.get("publication_sequence_number")
        publisher = info.get("publisher_gid")
        if number is None or (publisher is None and self.state.publishers != 1):
            return 0  # not told, or not by whom
        return self._gaps.missing_before(publisher["data"] if publisher else b"", number)
