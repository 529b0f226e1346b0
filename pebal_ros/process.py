"""How a node lives and ends as a process: one exit code, one sentence, any number of signals."""

from __future__ import annotations

import gc
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn, Protocol

import rclpy
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.signals import SignalHandlerOptions

from pebal_core.engines.machine import release_freed_memory
from pebal_core.errors import PebalError

CALLBACK_PATIENCE = 1.5
"""Seconds that the end of the process waits for the callback in hand; launch sends SIGTERM after five."""

Finish = Callable[["str | None"], None]
"""Ends the process: well with None, as a failure with a sentence. For any thread; the first call counts."""


class RunnableNode(Protocol):
    """What `run` needs of a node."""

    def start(self, executor: Executor) -> None:
        """Begin; called once, before the executor's thread runs."""

    def stop(self) -> None:
        """End every thread of the node; called once, after the executor's thread has ended."""

    def destroy_node(self) -> None: ...

    def get_logger(self) -> RcutilsLogger: ...


def main(create: Callable[[Finish], RunnableNode]) -> NoReturn:
    """Run a node and end the process with its exit code.

    All that is ours has ended by then. The interpreter's own end is skipped: unloading PyTorch takes it more than a
    second, in which a further signal would kill it.
    """
    code = run(create)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(create: Callable[[Finish], RunnableNode], arguments: list[str] | None = None) -> int:
    """Run a node until it finishes or a signal ends it; returns the exit code.

    The main thread only waits, so a signal is seen at once whatever the other threads compute. Launch and the
    process group both send SIGINT: signals after the first change nothing.
    """
    finished = threading.Event()
    reasons: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    finish = reasons.put  # may interrupt itself, which setting an event may not: a signal comes during a signal

    def thread_died(arguments: threading.ExceptHookArgs) -> None:
        if finished.is_set():
            return  # the node is being taken apart under it
        traceback.print_exception(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
        name = arguments.thread.name if arguments.thread else "unknown"
        finish(f"The thread '{name}' failed: {arguments.exc_type.__name__}: {arguments.exc_value}.")

    threading.excepthook = thread_died  # a thread that dies must not leave a mute node behind
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: finish(None))
    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:  # rclpy has no common base for unknown arguments and unreadable parameter files
        return _complain(f"ROS could not be initialised: {error}")
    try:
        node = create(finish)
    except PebalError as error:
        rclpy.try_shutdown()
        return _complain(str(error))
    executor = SingleThreadedExecutor()
    executor.add_node(node)  # type: ignore[arg-type]
    logger = node.get_logger()
    spinning = threading.Thread(target=_spin, args=(executor, finished, logger), name="executor", daemon=True)
    node.start(executor)
    spinning.start()
    reason = reasons.get()
    finished.set()
    executor.wake()
    spinning.join(CALLBACK_PATIENCE)
    if not spinning.is_alive():
        node.stop()
    if reason:
        logger.fatal(reason)
    if spinning.is_alive():  # nothing of the node can be touched
        logger.warning("The node ends in the middle of something that takes long.")
        return 1 if reason else 0
    executor.remove_node(node)  # type: ignore[arg-type]
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()
    return 1 if reason else 0


def give_memory_back() -> None:
    """Hand back what a dropped model held: allocators keep freed memory for the next one, on the GPU and off it."""
    gc.collect()
    torch = sys.modules.get("torch")  # not there where another engine runs
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    release_freed_memory()


def _spin(executor: Executor, finished: threading.Event, logger: RcutilsLogger) -> None:
    while not finished.is_set():
        try:
            executor.spin_once(timeout_sec=0.2)
        except Exception:  # among them a lifecycle transition that is not possible now, which Humble raises here
            logger.error(f"A callback failed:\n{traceback.format_exc()}", throttle_duration_sec=10.0)


def _complain(sentence: str) -> int:
    print(sentence, file=sys.stderr, flush=True)
    return 1
