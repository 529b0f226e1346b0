"""Runs a node as a process, which ends with an exit code and at most one sentence, after any number of signals."""

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
"""Seconds for which the process waits for the current callback at its end; launch sends SIGTERM after five."""

Finish = Callable[["str | None"], None]
"""Function that ends the process, successfully with None or as a failure with a sentence. Any thread may call it, and
only the first call counts."""


class RunnableNode(Protocol):
    """The interface of a node that `run` needs."""

    def start(self, executor: Executor) -> None:
        """Start the node; called once, before the executor's thread runs."""

    def stop(self) -> None:
        """End every thread of the node; called once, after the executor's thread has ended."""

    def destroy_node(self) -> None: ...

    def get_logger(self) -> RcutilsLogger: ...


def main(create: Callable[[Finish], RunnableNode]) -> NoReturn:
    """Run a node and end the process with its exit code.

    All threads of the node have ended by then. The interpreter's shutdown is skipped, because unloading PyTorch takes
    more than a second, in which another signal would kill the process.
    """
    code = run(create)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(create: Callable[[Finish], RunnableNode], arguments: list[str] | None = None) -> int:
    """Run a node until it finishes or a signal ends it; returns the exit code.

    The main thread only waits, so it reacts to a signal immediately, independent of the other threads. Launch and the
    process group both send SIGINT, so signals after the first are ignored.
    """
    finished = threading.Event()
    reasons: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    finish = reasons.put  # reentrant, unlike setting an event, because a signal can interrupt a signal handler

    def thread_died(arguments: threading.ExceptHookArgs) -> None:
        if finished.is_set():
            return  # the node is being destroyed
        traceback.print_exception(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
        name = arguments.thread.name if arguments.thread else "unknown"
        finish(f"The thread '{name}' failed: {arguments.exc_type.__name__}: {arguments.exc_value}.")

    threading.excepthook = thread_died  # a thread that dies must not leave a node behind that does nothing
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: finish(None))
    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:  # rclpy's exceptions for bad arguments and parameter files have no common base
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
    if spinning.is_alive():  # the node is still in use and cannot be destroyed
        logger.warning("The node exits in the middle of a long operation.")
        return 1 if reason else 0
    executor.remove_node(node)  # type: ignore[arg-type]
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()
    return 1 if reason else 0


def give_memory_back() -> None:
    """Return the memory of a dropped model to the system, because allocators keep freed memory on both CPU and GPU."""
    gc.collect()
    torch = sys.modules.get("torch")  # missing if another engine runs
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    release_freed_memory()


def _spin(executor: Executor, finished: threading.Event, logger: RcutilsLogger) -> None:
    while not finished.is_set():
        try:
            executor.spin_once(timeout_sec=0.2)
        except Exception:  # including an invalid lifecycle transition, which Humble raises here
            logger.error(f"A callback failed:\n{traceback.format_exc()}", throttle_duration_sec=10.0)


def _complain(sentence: str) -> int:
    print(sentence, file=sys.stderr, flush=True)
    return 1
