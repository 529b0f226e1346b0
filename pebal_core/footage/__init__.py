"""Reads videos, recordings (bags), folders of images, single images and webcams through one iterator.

for frame in FrameSource("drive.mcap", topic="/front/image_raw"):
    frame.image, frame.seconds
"""

from .bags import is_recording
from .sources import Frame, FrameSource, Recorded

__all__ = ["Frame", "FrameSource", "Recorded", "is_recording"]
