"""Makes the outputs of one frame (images, objects and ROS messages), for both the node and recordings.

`Products` computes each result on first use, and `OUTPUTS` is the registry of everything that can be published.
"""

from .messages import Message
from .reading import ObjectOptions, ObjectReader
from .registry import OUTPUTS, SERIES, Output, Products, encode
from .settings import PictureSettings
from .sighting import ClassMap, Sighting

__all__ = [
    "OUTPUTS",
    "SERIES",
    "ClassMap",
    "Message",
    "ObjectOptions",
    "ObjectReader",
    "Output",
    "PictureSettings",
    "Products",
    "Sighting",
    "encode",
]
