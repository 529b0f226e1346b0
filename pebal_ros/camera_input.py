"""The subscription to one camera's images, whatever reliability it offers and whoever starts first."""

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

# Only from Jazzy on does a subscription tell the middleware's sequence number of a message.
_HAS_MESSAGE_INFO = hasattr(Subscription, "CallbackType")

AWAITED = 16
"""Frames of one subscription that are remembered until the other one brings them too."""


@dataclass(frozen=True)
class TopicState:
    """Who publishes on the topic, as the graph says."""

    publishers: int = 0
    wrong_types: frozenset[str] = frozenset()
    """Types of publishers on this topic whose messages can never arrive."""
    offered: str | None = None
    """Reliability that a subscription must ask for to hear every publisher; None: nobody publishes."""


class CameraInput:
    """Subscribes to a topic and asks for the reliability that its publishers offer.

    A reliable subscription does not hear a best-effort camera, and a best-effort one loses images of a reliable
    camera, its very first among them. So the graph is looked at now and then; while nobody publishes there is one
    subscription of each kind, and whoever comes finds the one that fits.

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
        self.state = TopicState()
        self._node = node
        self._message_type = message_type
        self._fixed = None if reliability == "auto" else reliability
        self._deliver = deliver
        self._gaps = SequenceGaps()
        self._subscriptions: dict[str, Subscription[Any]] = {}
        self._awaited: dict[str, deque[tuple[bytes, int | None, int, int]]] = {}
        """Publisher, number and stamp of what each of two subscriptions delivered and the other did not bring yet."""

    @property
    def asked(self) -> list[str]:
        """Reliabilities of the subscriptions."""
        return list(self._subscriptions)

    @property
    def incompatible(self) -> bool:
        """Whether a publisher offers less than what is asked for, so that its frames never arrive."""
        return self.state.offered == BEST_EFFORT and self.asked == [RELIABLE]

    def close(self) -> None:
        """Unsubscribe."""
        for subscription in self._subscriptions.values():
            self._node.destroy_subscription(subscription)
        self._subscriptions = {}
        self._awaited = {}
        self._gaps = SequenceGaps()  # what is sent meanwhile is not lost

    def watch(self) -> None:
        """Look at the graph and subscribe as it demands; in the executor's thread."""
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
        # rclpy's own answer to this event is to log that no message will arrive, which is what `watch` mends or tells.
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
        # Not by order: the stamps of a camera may go back at any time.
        sent = publisher["data"] if publisher else b"", info.get("publication_sequence_number")
        frame = (*sent, stamp.sec, stamp.nanosec)
        for other, awaited in self._awaited.items():
            if other != reliability and frame in awaited:  # the other subscription brought it already
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
        if publisher is None and self.state.publishers != 1:  # not told by whom
            self._gaps = SequenceGaps()
            return 0
        return self._gaps.missing_before(publisher["data"] if publisher else b"", number)
