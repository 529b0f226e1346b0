"""Locks a folder of results, so that only one run at a time writes to it."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from .errors import PebalError

LOCK = ".lock"
"""Name of the lock file within the folder. A killed run leaves it behind, but without a lock on it."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a folder for the duration of the context.

    A missing folder is created; it is removed at the end if it stayed empty.

    Raises:
        PebalError: another run holds the folder, or it cannot be made or written.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, held(Path(folder)):
        ...     os.listdir(folder)
        ['.lock']
    """
    path = folder / LOCK
    try:
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
    except BlockingIOError as error:
        raise PebalError(
            f"Another run is writing into {folder}. Wait until it ends, or choose another --out."
        ) from error
    except OSError as error:
        raise PebalError(
            f"The folder {folder} cannot be written to: {error.strerror}; choose another --out."
        ) from error
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if new:
                with suppress(OSError):  # raised if the folder holds results
                    folder.rmdir()


def _locked(path: Path) -> IO[str]:
    while True:
        file = path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BlockingIOError:
            file.close()
            raise
        except FileNotFoundError:  # the previous run has just removed it
            pass
        except OSError as error:
            reason = error.strerror
            print(f"{path.parent} cannot be locked ({reason}). Do not start a second run with it.", file=sys.stderr)
            return file
        file.close()
