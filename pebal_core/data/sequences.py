"""Labelled sequences, which are drives in which every pixel of an anomalous object carries the object's number.

FOLDER/NAME/images/*.jpg       frames in the order of their names
FOLDER/NAME/objects/*.png      H×W uint8: 0 = known, n = object n, 255 = void
FOLDER/NAME/sequence.json      {"rate": frames per second}
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from ..errors import PebalError
from ..files import write_atomically
from ..footage import FrameSource
from .cutouts import Cutout, harmonise, resize
from .scenes import list_images, read_ids, read_image

INFO = "sequence.json"
RING = 8
"""Width in pixels of the surroundings to whose colours a pasted object is adapted."""


@dataclass(frozen=True)
class Road:
    """Flat ground in front of a level pinhole camera, in pixels of frames that are `width` wide.

    Examples:
        >>> road = Road()
        >>> round(road.horizon + road.focal * road.camera_height / 10.0)  # the row of the ground 10 m ahead
        396
    """

    width: int = 960
    horizon: float = 305.0
    """Row of the horizon."""
    centre: float = 492.0
    """Column of the middle of the lane."""
    focal: float = 700.0
    """Focal length in pixels."""
    camera_height: float = 1.3
    """Metres above the ground."""


@dataclass(frozen=True)
class Approach:
    """An object that comes nearer at constant speed, from `farthest` to `nearest` metres within `frames` frames."""

    farthest: float = 60.0
    nearest: float = 7.0
    frames: int = 60
    object_width: float = 1.0
    """Width of the object in metres."""
    lateral: float = 0.0
    """Offset to the right of the camera in metres."""
    relight: float = 0.3
    """Share by which the object's colours are adapted to its surroundings."""

    def distance(self, frame: int) -> float:
        """Distance in metres at a frame; the approach starts again after `frames` frames.

        Examples:
            >>> Approach(farthest=60.0, nearest=10.0, frames=11).distance(5)
            35.0
        """
        progress = (frame % self.frames) / max(self.frames - 1, 1)
        return self.farthest + (self.nearest - self.farthest) * progress


def place(
    image: np.ndarray, cutout: Cutout, road: Road, approach: Approach, frame: int
) -> tuple[np.ndarray, np.ndarray]:
    """Composite an object that stands on the road.

    Args:
        image: H×W×3 uint8 RGB.
        cutout: the object.
        road: geometry of the road.
        approach: motion of the object.
        frame: number of the frame, which determines the distance.

    Returns:
        The image with the object and its shadow, and the object's mask H×W uint8 (1 on it, 0 elsewhere).

    Examples:
        >>> grey = np.full((20, 20), 90, np.uint8)
        >>> cutout = Cutout(np.dstack([grey] * 3), np.ones((20, 20), np.float32), grey)
        >>> _, mask = place(np.zeros((540, 960, 3), np.uint8), cutout, Road(), Approach(farthest=35.0), frame=0)
        >>> int(mask.sum()), np.flatnonzero(mask.any(1))[[0, -1]].tolist()  # 20 pixels per metre
        (400, [311, 330])
    """
    scale = image.shape[1] / road.width
    pixels_per_metre = scale * road.focal / approach.distance(frame)
    width = max(4, round(approach.object_width * pixels_per_metre))
    shrunk = resize(cutout, max(2, round(width * cutout.image.shape[0] / cutout.image.shape[1])))
    height, width = shrunk.opacity.shape
    bottom = round(scale * road.horizon + road.camera_height * pixels_per_metre)
    left = round(scale * road.centre + approach.lateral * pixels_per_metre - width / 2)
    top = bottom - height
    result, mask = image.astype(np.float32), np.zeros(image.shape[:2], np.uint8)

    shadow = np.zeros(image.shape[:2], np.float32)
    cv2.ellipse(
        shadow, (left + width // 2, bottom - height // 8), (width // 2, max(1, height // 6)), 0, 0, 360, 0.5, -1
    )
    blur = max(1, width // 16) * 2 + 1
    result *= 1 - cv2.GaussianBlur(shadow, (blur, blur), 0)[..., None]

    around = image[max(0, top - RING) : bottom + RING, max(0, left - RING) : left + width + RING].reshape(-1, 3)
    lit = harmonise(shrunk, around, approach.relight)
    y0, y1, x0, x1 = max(top, 0), min(bottom, image.shape[0]), max(left, 0), min(left + width, image.shape[1])
    if y0 < y1 and x0 < x1:
        source, window = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)), (slice(y0, y1), slice(x0, x1))
        opacity = lit.opacity[source]
        result[window] += opacity[..., None] * (lit.image[source] - result[window])
        mask[window] = opacity > 0.5
    return result.clip(0, 255).astype(np.uint8), mask


def write_sequence(
    folder: Path,
    source: FrameSource,
    cutout: Cutout | None,
    road: Road,
    approach: Approach,
    frames: int,
    every: int = 1,
) -> int:
    """Write one labelled sequence from a clip.

    Args:
        folder: folder to write to.
        source: the clip.
        cutout: the object; None writes the clip without an object.
        road: geometry of the road.
        approach: motion of the object.
        frames: largest number of frames to write.
        every: take every n-th frame of the clip; the frame rate is divided by it.

    Returns:
        The number of frames written.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     clip = Path(folder, "clip.png")
        ...     _ = cv2.imwrite(str(clip), np.zeros((54, 96, 3), np.uint8))
        ...     write_sequence(Path(folder, "hall"), FrameSource(clip), None, Road(), Approach(), frames=10)
        ...     sorted(path.name for path in Path(folder, "hall").rglob("*.*"))
        1
        ['00000.jpg', '00000.png', 'sequence.json']
    """
    count = 0
    for frame in islice(islice(source, 0, None, every), frames):
        image, mask = frame.image, np.zeros(frame.image.shape[:2], np.uint8)
        if cutout is not None:
            image, part = place(image, cutout, road, approach, count)
            mask[part > 0] = count // approach.frames + 1
        jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        write_atomically(folder / "images" / f"{count:05d}.jpg", jpeg.tobytes())
        write_atomically(folder / "objects" / f"{count:05d}.png", cv2.imencode(".png", mask)[1].tobytes())
        count += 1
    write_atomically(folder / INFO, json.dumps({"rate": source.rate / every}).encode())
    return count


@dataclass(frozen=True)
class SequenceFrame:
    """One labelled frame."""

    name: str
    seconds: float
    """Time since the first frame."""
    image: np.ndarray
    """H×W×3 uint8 RGB."""
    objects: np.ndarray
    """H×W uint8: 0 = known, n = object n, 255 = void."""


class LabelledSequence:
    """One drive of a folder of sequences; iterate to get `SequenceFrame`s.

    Raises:
        PebalError: images, object maps or the rate are missing.
    """

    def __init__(self, folder: Path) -> None:
        self.name, self.folder = folder.name, folder
        self.images = list_images(folder / "images")
        self.maps = [folder / "objects" / f"{path.stem}.png" for path in self.images]
        for path in self.maps:
            if not path.is_file():
                raise PebalError(f"{path} is missing; every image of a sequence needs its map of objects.")
        try:
            self.rate = float(json.loads((folder / INFO).read_text())["rate"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PebalError(f'{folder / INFO} must contain the rate of the sequence, as in {{"rate": 10}}.') from error
        if not 0 < self.rate <= 1000:
            raise PebalError(f"The rate in {folder / INFO} must lie between 0 and 1000 Hz; it is {self.rate:g}.")

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[SequenceFrame]:
        for number, (image_path, map_path) in enumerate(zip(self.images, self.maps)):
            image, objects = read_image(image_path), read_ids(map_path)
            if objects.shape != image.shape[:2]:
                raise PebalError(f"{map_path} is {objects.shape} but its image is {image.shape[:2]}.")
            yield SequenceFrame(image_path.stem, number / self.rate, image, objects)


def open_sequences(folder: Path) -> list[LabelledSequence]:
    """Open every sequence of a folder, sorted by name.

    Raises:
        PebalError: the folder holds no sequence, or one of them is incomplete.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     hall = Path(folder, "hall")
        ...     for file in ("images/0.png", "objects/0.png"):
        ...         write_atomically(hall / file, cv2.imencode(".png", np.zeros((4, 6), np.uint8))[1].tobytes())
        ...     write_atomically(hall / INFO, b'{"rate": 10}')
        ...     [(drive.name, [frame.objects.shape for frame in drive]) for drive in open_sequences(Path(folder))]
        [('hall', [(4, 6)])]
    """
    found = sorted(path.parent for path in folder.glob(f"*/{INFO}"))
    if not found:
        raise PebalError(f"{folder} contains no sequences; NAME/images/, NAME/objects/ and NAME/{INFO} are expected.")
    return [LabelledSequence(path) for path in found]
