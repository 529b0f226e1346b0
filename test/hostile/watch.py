"""What code opens, imports and connects to while it is watched, as the interpreter's own audit events tell."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INSTALLED = tuple({str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "purelib", "platlib")})
PROJECT = str(Path(__file__).resolve().parents[2])
REACHING = (
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "subprocess.Popen", "os.system",
    "os.exec", "os.posix_spawn", "os.spawn", "urllib.Request",
)  # fmt: skip


class Watch:
    """Events seen so far."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        """Files, without code of the interpreter, of installed packages and of the project."""
        self.imported: list[str] = []
        self.reached: list[str] = []
        """Connections, look-ups of hosts, and processes."""


_now: list[Watch] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _now:
        return
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        name = arguments[0] if isinstance(arguments[0], str) else arguments[0].decode(errors="replace")
        path = str(Path(name).resolve()) if not name.startswith("/proc") else name
        if not (path.startswith((*INSTALLED, PROJECT)) and path.endswith((".py", ".pyc", ".so"))):
            _now[-1].opened.append(path)
    elif event == "import":
        _now[-1].imported.append(arguments[0])
    elif event in REACHING:
        _now[-1].reached.append(f"{event} {arguments}")


sys.addaudithook(_hook)  # which cannot be taken away again, so there is one for all


@contextmanager
def watched() -> Iterator[Watch]:
    """Watch what happens in this process meanwhile."""
    watch = Watch()
    _now.append(watch)
    try:
        yield watch
    finally:
        _now.remove(watch)
