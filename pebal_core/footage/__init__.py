"""Footage: videos, recordings (bags), folders of images, single images and webcams behind one iterator.

for frame in FrameSource("drive.mcap", topic="/front/image_raw"):
    frame.image, frame.seconds
"""

from .sources import Frame, FrameSource, Recorded, is_recording

__all__ = ["Frame", "FrameSource", "Recorded", "is_recording"]
