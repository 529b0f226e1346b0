"""Writes the results of `pebal predict` to a folder of files or to a recording."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

import cv2
import numpy as np

from ..errors import PebalError
from ..files import write_atomically
from ..footage import Frame, FrameSource
from ..footage.bag_writer import BagWriter
from ..outputs import OUTPUTS, SERIES, Message, Products, encode, messages
from ..render import VideoWriter
from .object_options import number_map

DEFAULT_OUTPUTS = ("labels", "score", "mask", "overlay/compressed", "objects", "obstacles", "markers")
CHOICES = [*OUTPUTS, *(f"{name}/compressed" for name, output in OUTPUTS.items() if output.compress is not None)]
FRAME_ID = "camera"
"""Frame id of images that do not come from a recording."""


class ResultWriter(Protocol):
    """A destination for results, used as a context manager."""

    def __enter__(self) -> ResultWriter: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def write(self, frame: Frame, products: Products) -> None:
        """Add the results of a frame."""


class FolderResults:
    """Files for every frame, ``objects.jsonl``, and ``overlay.mp4`` if the source is a video or a recording."""

    def __init__(self, folder: Path, source: FrameSource) -> None:
        self.folder = folder
        for kind in ("labels", "energy", "objects", "overlay"):
            _make_folder(folder / kind)
        self._lines = (folder / "objects.jsonl").open("w")
        self._video = VideoWriter(folder / "overlay.mp4", source.rate) if source.is_video else None

    def __enter__(self) -> FolderResults:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        if self._video is not None:
            self._video.close()

    def write(self, frame: Frame, products: Products) -> None:
        objects = products.sighting.objects
        line = {
            "name": frame.name,
            "time": round(frame.seconds, 6),
            "objects": [found.as_json() for found in objects],
        }
        self._lines.write(json.dumps(line) + "\n")
        _write_image(self.folder / "labels" / f"{frame.name}.png", products.labels)
        _write_image(self.folder / "objects" / f"{frame.name}.png", number_map(objects, *products.energy.shape))
        _write_array(self.folder / "energy" / f"{frame.name}.npy", products.energy)
        _write_image(self.folder / "overlay" / f"{frame.name}.jpg", products.overlay[..., ::-1])
        if self._video is not None:
            self._video.write(products.overlay)


class BagResults:
    """A recording with the topics that the node would publish for this camera, and with time series for plots.

    Stamps, frame ids and recording times are copied from the images; other footage starts at time zero.

    Args:
        path: the .mcap file to write.
        source: the footage.
        names: topics to write, out of `CHOICES`.
        with_images: whether the camera's own images are copied.
        alarms: whether there is a threshold; topics that need one are left out otherwise.
    """

    def __init__(self, path: Path, source: FrameSource, names: Sequence[str], with_images: bool, alarms: bool) -> None:
        keys = [*dict.fromkeys(names), *SERIES]
        registry = {**OUTPUTS, **SERIES}
        self._keys = [key for key in keys if alarms or not registry[key.partition("/")[0]].needs_threshold]
        if left_out := [key for key in keys if key not in self._keys]:
            print(f"Without a threshold, {path} does not contain {', '.join(left_out)}.", file=sys.stderr)
        self._prefix, self._with_images = source.prefix, with_images
        self._writer = BagWriter(path)
        self._registry = registry

    def __enter__(self) -> BagResults:
        self._writer.__enter__()
        for key in self._keys:
            output = self._registry[key.partition("/")[0]]
            kind = messages.COMPRESSED_IMAGE if "/" in key else output.type
            self._writer.add_topic(self._prefix + key, kind)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    def write(self, frame: Frame, products: Products) -> None:
        recorded = frame.recorded
        if recorded is not None:
            log_ns, header = recorded.log_ns, messages.header(recorded.stamp_ns, recorded.message.header.frame_id)
        else:
            log_ns = round(frame.seconds * 1e9)
            header = messages.header(log_ns, FRAME_ID)
        if self._with_images:
            if recorded is not None:
                self._writer.write(recorded.topic, messages.copy_of_image(recorded.message, header), log_ns)
            else:
                picture: Message = messages.compressed(frame.image, "jpeg", header)
                self._writer.write(f"{self._prefix}image/compressed", picture, log_ns)
        for key in self._keys:
            self._writer.write(self._prefix + key, encode(key, products, header), log_ns)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PebalError(f"The folder {folder} cannot be made: {error.strerror}; choose another --out.") from error


def _write_image(path: Path, image: np.ndarray) -> None:
    written, content = cv2.imencode(path.suffix, image)
    if not written:
        raise PebalError(f"{path} of {image.shape} cannot be encoded; use a smaller image.")
    write_atomically(path, content.tobytes(), durable=False)


def _write_array(path: Path, array: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, array)
    write_atomically(path, content.getvalue(), durable=False)
