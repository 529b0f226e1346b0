"""Finds objects on the ground in a map of energies, locates them, and tracks them over time.

`find_objects` extracts objects from the energy and the labels of one image, `GroundPlane` computes their position, and
`ObjectTracker` tracks them. The package needs only NumPy and OpenCV, neither torch nor ROS.

Examples:
    >>> import numpy as np
    >>> energy, labels = np.full((60, 80), -10, np.float32), np.zeros((60, 80), np.uint8)
    >>> energy[30:45, 20:40] = -2
    >>> found = find_objects(energy, labels, ObjectRules(threshold=-4, grow=-5))
    >>> found.objects[0].box, found.objects[0].area
    ((20, 30, 20, 15), 300)
"""

from .finding import Found, filter_energy, find_objects
from .ground import CameraModel, GroundPlane, Mounting
from .ignoring import IgnoreMask
from .locating import Locator
from .rules import ObjectRules, RoadObject
from .tracking import ObjectTracker, TrackRules

__all__ = [
    "CameraModel",
    "Found",
    "GroundPlane",
    "IgnoreMask",
    "Locator",
    "Mounting",
    "ObjectRules",
    "ObjectTracker",
    "RoadObject",
    "TrackRules",
    "filter_energy",
    "find_objects",
]
