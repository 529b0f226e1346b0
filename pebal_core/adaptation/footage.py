"""Drives → frames worth keeping, in three parts whose frames are never neighbours in time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from ..data.scenes import read_image
from ..errors import CutShortError, PebalError
from ..footage import Frame, FrameSource
from ..model_file import write_atomically

PARTS = ("adapt", "calibrate", "check")
PATTERN = (0, 0, 1, 0, 2)
"""Parts of successive blocks of time: of five, three adapt, one calibrates, one checks."""
ALIKE = 4.0
"""Mean grey levels at 64×36 by which a frame must differ from the last kept one."""
DARK, BRIGHT, UNIFORM = 8, 247, 3.0
INDEX = "frames.json"


@dataclass(frozen=True)
class Kept:
    """A kept frame."""

    file: str
    drive: int
    block: int
    """Number of the block of time in its drive."""
    part: str


def collect(
    sources: Sequence[str], folder: Path, interval: float, block: float, limit: int, topic: str = ""
) -> tuple[list[Kept], dict[str, int]]:
    """Write the kept frames as PNG, and say how many frames were left out for which reason.

    A frame next to the border of two parts is left out, so that neighbours never stand on two sides. With five or more
    drives, whole drives are dealt to the parts instead.

    Args:
        interval: seconds between two looks at a drive.
        block: seconds of one block of a video; of a folder see `folder_block`.
        limit: frames kept in all; the interval grows to stay below it.
        topic: of recordings.

    Raises:
        PebalError: a source cannot be read, sizes are mixed, or too few frames are left.
    """
    index = folder / INDEX
    if index.is_file():
        try:
            stored = json.loads(index.read_text())
            if stored["sources"] == list(map(str, sources)):
                return [Kept(**item) for item in stored["kept"]], dict(stored["why"])
        except (ValueError, TypeError, KeyError) as error:
            raise PebalError(f"{index} is damaged ({error}); delete {folder} to start anew.") from error
    folder.mkdir(parents=True, exist_ok=True)
    opened = [FrameSource(source, topic) for source in sources]
    seconds = sum((source.count or 0) / source.rate for source in opened)
    interval = max(interval, seconds / limit)
    whole_drives = len(opened) >= len(PATTERN)
    kept: list[Kept] = []
    why: Counter[str] = Counter()
    size: tuple[int, ...] | None = None
    for drive, source in enumerate(opened):
        last, step = None, max(1, round(interval * source.rate)) if source.is_video else 1
        length = block if source.is_video else folder_block(block) / source.rate
        for number, frame in enumerate(_until_cut_short(source, why)):
            if number % step:
                continue
            if len(kept) >= limit:
                break
            if size is None:
                size = frame.image.shape
            if frame.image.shape != size:
                raise PebalError(
                    f"{source.source} has frames of {frame.image.shape[1]}×{frame.image.shape[0]} pixels, the first "
                    f"drive of {size[1]}×{size[0]}; adapt to one camera and one resolution at a time."
                )
            thumbnail = cv2.resize(frame.image, (64, 36), interpolation=cv2.INTER_AREA).astype(np.float32)
            reason = _useless(thumbnail, last)
            number_of_block = int(frame.seconds / length)
            part = PARTS[PATTERN[(drive if whole_drives else number_of_block) % len(PATTERN)]]
            if not reason and not whole_drives and kept and kept[-1].drive == drive and kept[-1].part != part:
                reason, last = "next to a frame of another part", thumbnail
                kept_block = Kept("", drive, number_of_block, part)
                why[reason] += 1
                kept.append(kept_block)
                continue
            if reason:
                why[reason] += 1
                continue
            last = thumbnail
            name = f"{drive:02d}_{number:06d}.png"
            if not cv2.imwrite(str(folder / name), frame.image[..., ::-1]):
                raise PebalError(f"{folder / name} could not be written; free space or choose another --out.")
            kept.append(Kept(name, drive, number_of_block, part))
        why["malformed"] += source.skipped
    why = +why
    kept = [item for item in kept if item.file]
    found = Counter(item.part for item in kept)
    if missing := [part for part in PARTS if found[part] < 2]:
        raise PebalError(
            f"The footage gives {len(kept)} different frames, too few to {missing[0]} "
            f"({', '.join(f'{n} {reason}' for reason, n in why.items()) or 'none left out'}); give some minutes of "
            f"driving, more drives, or a shorter --block."
        )
    content = {"sources": list(map(str, sources)), "kept": [asdict(item) for item in kept], "why": dict(why)}
    write_atomically(index, json.dumps(content).encode())
    return kept, dict(why)


def folder_block(block: float) -> int:
    """Images of one block of a folder, whose images have no times: two for each second that a block of a video has."""
    return max(10, round(2 * block))


def _until_cut_short(source: FrameSource, why: Counter[str]) -> Iterator[Frame]:
    """The frames of a source; those that it promises and does not give are counted as left out."""
    read = 0
    try:
        for frame in source:
            read += 1
            yield frame
    except CutShortError:
        why["missing, because a source ended early"] += max(1, (source.count or 0) - read)


def _useless(thumbnail: np.ndarray, last: np.ndarray | None) -> str:
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
    """H×W×3 uint8 RGB."""
    return read_image(folder / kept.file)
