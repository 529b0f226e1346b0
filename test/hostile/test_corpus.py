"""What the fuzzer has found interesting so far raises nothing but `PebalError`."""

from __future__ import annotations

import pytest

from .fuzz import CORPUS, RUN


@pytest.mark.parametrize("target", RUN)
def test_every_input_of_the_corpus(target: str) -> None:
    if target == "message":
        pytest.importorskip("rclpy", reason="ROS 2 is not installed")
    files = sorted((CORPUS / target).iterdir())
    assert files, "an empty corpus checks nothing"
    for file in files:
        RUN[target](file.read_bytes())
