"""Selects frames from drives and splits them into three parts whose frames are never neighbours in time."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from ..data.scenes import read_image
from ..errors import CutShortError, PebalError, one_line
from ..files import write_atomically
from ..footage import Frame, FrameSource

PARTS = ("adapt", "calibrate", "check")
PATTERN = (0, 0, 1, 0, 2)
"""Part of each of five successive blocks of time: three adapt, one calibrates, one checks."""
ALIKE = 4.0
"""Mean difference in grey levels, at 64×36 pixels, that a frame needs from the last kept one."""
DARK, BRIGHT, UNIFORM = 8, 247, 3.0
FEWEST_BLOCKS = 10
"""With this many blocks, each part has at least two."""
SHORTEST_BLOCK = 1.0
"""Shortest block in seconds."""
SAME_SHAPE = 0.02
"""Two aspect ratios count as equal up to this relative difference."""
INDEX = "frames.json"


@dataclass(frozen=True)
class Kept:
    """A kept frame."""

    file: str
    drive: int
    block: int
    """Number of the block of time in its drive."""
    part: str


@dataclass(frozen=True)
class Footage:
    """The frames kept from the drives."""

    kept: list[Kept]
    left_out: dict[str, int]
    """Number of dropped frames by reason."""
    unit: str
    """How the text of the guarantee names the blocks of time."""
    notes: list[str]
    """Further sentences that the user should read."""


def collect(
    sources: Sequence[str], folder: Path, interval: float, block: float, limit: int, topic: str = ""
) -> Footage:
    """Write the kept frames as PNG, and count the frames that were left out by reason.

    A frame next to the border between two parts is left out, so that no two parts hold neighbouring frames. With five
    or more drives, whole drives are dealt to the parts instead. Frames that differ in size from the first are scaled.

    Args:
        sources: videos, recordings or folders of images, one per drive.
        folder: where the frames and their index are written; an index that is already there is reused.
        interval: seconds between two sampled frames of a drive.
        block: seconds of one block of a video; for folders see `_Blocks`.
        limit: most frames kept in all; the interval grows to stay below it.
        topic: image topic of recordings.

    Raises:
        PebalError: a source cannot be read, the images of two drives differ in shape, or too few frames are left.

    Examples:
        >>> import tempfile
        >>> noise = np.random.default_rng(0).integers(0, 256, (10, 36, 64, 3), np.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (Path(folder) / "drive").mkdir()
        ...     for number, image in enumerate(noise):
        ...         _ = cv2.imwrite(f"{folder}/drive/{number}.png", image)
        ...     footage = collect([f"{folder}/drive"], Path(folder) / "frames", interval=0.5, block=4.0, limit=300)
        >>> footage.unit, sorted(Counter(item.part for item in footage.kept).items())
        ('images', [('adapt', 6), ('calibrate', 2), ('check', 2)])
    """
    index = folder / INDEX
    if index.is_file():
        try:
            stored = json.loads(index.read_text())
            if stored["sources"] == list(map(str, sources)):
                kept = [Kept(**item) for item in stored["kept"]]
                return Footage(kept, dict(stored["why"]), str(stored["unit"]), list(stored["notes"]))
        except (ValueError, TypeError, KeyError) as error:
            raise PebalError(f"{index} is damaged ({one_line(error)}); delete {folder} to start over.") from error
    folder.mkdir(parents=True, exist_ok=True)
    opened = [FrameSource(source, topic) for source in sources]
    blocks = _Blocks.of(opened, block)
    interval = max(interval, sum((source.count or 0) / source.rate for source in opened) / limit)
    whole_drives = len(opened) >= len(PATTERN)
    kept, dealt = [], 0
    why: Counter[str] = Counter()
    size: tuple[int, int] | None = None
    notes = [blocks.note] * bool(blocks.note)
    for drive, source in enumerate(opened):
        last, step = None, max(1, round(interval * source.rate)) if source.is_video else 1
        scaled, first_block = False, dealt
        for number, frame in enumerate(_until_cut_short(source, why)):
            if number % step:
                continue
            if len(kept) >= limit:
                break
            size = size or frame.image.shape[:2]
            image = _fit(frame.image, size, str(source.source))
            scaled |= image is not frame.image
            thumbnail = cv2.resize(image, (64, 36), interpolation=cv2.INTER_AREA).astype(np.float32)
            reason = _useless(thumbnail, last)
            number_of_block = blocks.number(source, frame)
            dealt = first_block + number_of_block + 1
            part = PARTS[PATTERN[(drive if whole_drives else dealt - 1) % len(PATTERN)]]
            beside = not whole_drives and kept and kept[-1].drive == drive and kept[-1].part != part
            if not reason and beside and not blocks.separate(source):
                last = thumbnail
                why["next to a frame of another part"] += 1
                kept.append(Kept("", drive, number_of_block, part))
                continue
            if reason:
                why[reason] += 1
                continue
            last = thumbnail
            name = f"{drive:02d}_{number:06d}.png"
            if not cv2.imwrite(str(folder / name), image[..., ::-1]):
                raise PebalError(f"{folder / name} could not be written; free space or choose another --out.")
            kept.append(Kept(name, drive, number_of_block, part))
        why["malformed"] += source.skipped
        if scaled and size is not None:
            notes.append(f"The frames of {Path(str(source.source)).name} were scaled to {size[1]}×{size[0]} pixels.")
    kept = [item for item in kept if item.file]
    left_out, found = dict(+why), Counter(item.part for item in kept)
    if missing := [part for part in PARTS if not found[part]]:
        raise PebalError(
            f"The footage contains only {len(kept)} different frames, which are too few to {missing[0]} "
            f"({', '.join(f'{n} {reason}' for reason, n in left_out.items()) or 'none left out'}). Use several "
            "minutes of driving or more drives."
        )
    footage = Footage(kept, left_out, blocks.unit, notes)
    content = {"sources": list(map(str, sources)), "kept": [asdict(item) for item in kept], "why": left_out,
               "unit": footage.unit, "notes": notes}  # fmt: skip
    write_atomically(index, json.dumps(content).encode())
    return footage


@dataclass(frozen=True)
class _Blocks:
    """How drives are cut into blocks of time.

    Short footage gets shorter blocks, so that there are `FEWEST_BLOCKS`. The images of a folder have no time stamps, so
    two images count as one second.
    """

    seconds: float
    images: int
    unit: str
    note: str

    @classmethod
    def of(cls, sources: Sequence[FrameSource], block: float) -> _Blocks:
        videos, folders = ([s for s in sources if s.is_video is video] for video in (True, False))
        in_all = sum((source.count or math.inf) / source.rate for source in videos)
        seconds = max(SHORTEST_BLOCK, min(block, in_all / FEWEST_BLOCKS))
        pictures = sum(source.count or 0 for source in folders)
        images = max(1, min(max(10, round(2 * block)), pictures // FEWEST_BLOCKS))
        if images < 3:
            images = 1
        of_images = f"blocks of {images} images" if images > 1 else "images"
        unit = " or ".join([f"blocks of {seconds:.3g} s"] * bool(videos) + [of_images] * bool(folders))
        note = ""
        if folders and images == 1:
            note = (
                f"Each of the {pictures} images forms its own block, which suits pictures of separate places. "
                f"Successive frames of one drive need at least {3 * FEWEST_BLOCKS} images."
            )
        return cls(seconds, images, unit, note)

    def number(self, source: FrameSource, frame: Frame) -> int:
        """Number of the block within its drive that a frame belongs to."""
        return int(
            frame.seconds / self.seconds if source.is_video else round(frame.seconds * source.rate) // self.images
        )

    def separate(self, source: FrameSource) -> bool:
        """Whether neighbouring images show separate places."""
        return not source.is_video and self.images == 1


def _fit(image: np.ndarray, size: tuple[int, int], source: str) -> np.ndarray:
    """Scale an image to the size (height, width) of the first drive, for cameras that record in two resolutions."""
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    if abs(width * size[0] / (height * size[1]) - 1) > SAME_SHAPE:
        raise PebalError(
            f"{source} has frames of {width}×{height} pixels, but those of the first drive have {size[1]}×{size[0]}, "
            "which is another aspect ratio. Adapt to one camera at a time."
        )
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if width > size[1] else cv2.INTER_LINEAR)


def _until_cut_short(source: FrameSource, why: Counter[str]) -> Iterator[Frame]:
    """Yield the frames of a source; frames that it announces but does not deliver are counted as left out."""
    read = 0
    try:
        for frame in source:
            read += 1
            yield frame
    except CutShortError:
        why["missing, because a source ended early"] += max(1, (source.count or 0) - read)


def _useless(thumbnail: np.ndarray, last: np.ndarray | None) -> str:
    """Why a frame is dropped; empty if it is kept."""
    if thumbnail.mean() < DARK:
        return "black"
    if thumbnail.mean() > BRIGHT:
        return "overexposed"
    if thumbnail.std() < UNIFORM:
        return "without content"
    if last is not None and np.abs(thumbnail - last).mean() < ALIKE:
        return "nearly the same as the frame before"
    return ""


def load(folder: Path, kept: Kept) -> np.ndarray:
    """Read a kept frame as H×W×3 uint8 RGB.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = cv2.imwrite(f"{folder}/00_000000.png", np.full((36, 64, 3), 90, np.uint8))
        ...     load(Path(folder), Kept("00_000000.png", drive=0, block=0, part="check")).shape
        (36, 64, 3)
    """
    return read_image(folder / kept.file)
