"""What is said of one frame: pictures, objects and the ROS messages that carry them, for the node and recordings alike.

`Products` makes each result when it is first asked for; `OUTPUTS` is the registry of everything that can be published.
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
