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
