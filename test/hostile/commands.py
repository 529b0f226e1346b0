"""Running the commands, in this process, and what is expected of their end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pebal_core.commands.main import main


def run(arguments: Sequence[str]) -> int:
    """Exit status of a command."""
    try:
        return main(arguments)
    except SystemExit as end:  # of the parser
        return int(end.code or 0)


def refused(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence in which a command ends that is asked for what cannot be."""
    status, said = run(arguments), capsys.readouterr()
    assert status in (1, 2), said
    lines = [line for line in said.err.strip().splitlines() if not line.startswith("The engine is ")]
    assert len(lines) == 1 and lines[0].startswith("pebal") and "Traceback" not in said.err, said.err
    return lines[0]


SERVER = """
import faulthandler, io, json, os, resource, signal, sys, time, traceback
import cv2, torch
import pebal_core.detector, pebal_core.engines.torch, pebal_core.networks
from pebal_core.commands.main import COMMANDS, main
import importlib
for name in COMMANDS:
    importlib.import_module("pebal_core.commands." + name.replace("-", "_"))
torch.set_num_threads(1)
cv2.setNumThreads(1)
answers = os.fdopen(os.dup(1), "w")

def child(case, pipe):
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(pipe, 1)
    os.dup2(pipe, 2)
    os.environ["COLUMNS"] = "1000"
    if case["limit"]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (case["limit"], case["limit"]))
    status = 99
    try:
        if case["words"] == ["--die", "signal"]:
            os.kill(os.getpid(), signal.SIGSEGV)
        if case["words"] == ["--die", "exception"]:
            raise RuntimeError
        status = main(case["words"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

for line in sys.stdin:
    case = json.loads(line)
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(case, theirs)
    os.close(theirs)
    os.set_blocking(ours, False)
    said, deadline, status = b"", time.monotonic() + case["patience"], None
    while True:
        try:
            while chunk := os.read(ours, 65536):
                said += chunk
        except BlockingIOError:
            pass
        if status is not None:
            break
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
        elif time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            said += b" Traceback: it hangs"
        else:
            time.sleep(0.005)
    os.close(ours)
    print(json.dumps([status, said.decode(errors="replace")]), file=answers, flush=True)
"""
"""A Python program that reads cases, each a line of JSON, and answers with status and output of each."""
