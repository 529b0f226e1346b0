"""Files are whole or not there, and what was cut short is no image."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pebal_core.errors import PebalError
from pebal_core.files import being_written, decode_pixels, read_pixels, write_atomically

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.json"
    write_atomically(path, b"first")
    for error in (KeyboardInterrupt, PebalError, ValueError):
        with pytest.raises(error), being_written(path) as temporary:
            temporary.write_bytes(b"sec")
            raise error
    assert path.read_bytes() == b"first" and list(path.parent.iterdir()) == [path]
    with being_written(path, durable=True) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".part"
        temporary.write_bytes(b"second")
    assert path.read_bytes() == b"second" and list(path.parent.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PebalError, match=r"file/a\.json could not be written: .*; free space or choose another place"):
        write_atomically(tmp_path / "file" / "a.json", b"")
    with pytest.raises(PebalError, match=r"b\.json could not be written"), being_written(tmp_path / "b.json"):
        pass  # nobody wrote


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_a_file_that_was_cut_short_is_no_image(suffix: str, tmp_path: Path) -> None:
    content = cv2.imencode(suffix, PICTURE)[1].tobytes()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    pixels = read_pixels(path, cv2.IMREAD_COLOR)
    assert pixels is not None and pixels.shape == PICTURE.shape
    for share in (0.0, 0.3, 0.6, 0.99) if suffix != ".bmp" else (0.0,):
        cut = content[: int(share * len(content))]
        path.write_bytes(cut)
        assert read_pixels(path, cv2.IMREAD_COLOR) is None and decode_pixels(memoryview(cut), cv2.IMREAD_COLOR) is None
    assert read_pixels(tmp_path / "nowhere.png", cv2.IMREAD_COLOR) is None
