"""The description that a model file carries, and the checks of its values.

No value of a file is trusted. Each has a type and a range, and the error for a bad value names its field.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .class_list import NAME, ClassList, cityscapes_classes, described
from .errors import PebalError, one_line
from .labels import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE

FORMAT_VERSION = 1
SIDES = (16, 8192)
"""Smallest and largest side of a network's input in pixels."""
GREATEST = 1e6
"""Largest magnitude of any number in a description."""


@dataclass
class ModelInfo:
    """The description that a model file carries.

    Examples:
        >>> info = ModelInfo("espnetv2", class_names=["floor", "wall"], palette=[[90, 90, 90], [70, 70, 70]])
        >>> info.num_outputs  # with the abstention channel
        3
    """

    network: str
    """Name for `build_network`."""
    network_args: dict[str, Any] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=lambda: list(CITYSCAPES_CLASSES))
    """K inlier classes in the order of the logits; the abstention channel follows them, unnamed."""
    palette: list[list[int]] = field(default_factory=lambda: [list(color) for color in CITYSCAPES_PALETTE])
    """RGB per class."""
    class_list: dict[str, Any] = field(default_factory=dict)
    """The class list as `ClassList.as_dict`; empty if only names and colours are known."""
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    """Mean of RGB / 255 for the normalisation."""
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    """Standard deviation of RGB / 255 for the normalisation."""
    input_size: list[int] | None = None
    """[height, width] at which the network runs, or [longer side], to which larger images are scaled down; None runs it
    at the size of the image."""
    smoothing: bool = True
    """Whether the energy is smoothed by the 7×7 Gaussian."""
    threshold: float | None = None
    """Alarm threshold in nats; None if none was chosen."""
    threshold_note: str = ""
    """How the threshold was chosen."""
    guarantee: dict[str, Any] = field(default_factory=dict)
    """The guarantees at the threshold, in words and figures, as `guarantee.Guarantee.as_dict`."""
    ego_mask: str = ""
    """Mask of the pixels that move with the camera and raise no alarm, as PNG in base64 (`IgnoreMask.encode`)."""
    profile: dict[str, Any] = field(default_factory=dict)
    """Statistics of the calibration frames, as `drift.Profile`."""
    outlier_statistics: str = ""
    """Statistics of the features at outliers of the training, which adaptations keep in mind, as
    `training.shift.OutlierStatistics.encode`; empty if they are not known."""
    energy_range: list[float] = field(default_factory=lambda: [-15.0, 0.0])
    """Energies in nats that are displayed as 0 and 255."""
    training: dict[str, Any] = field(default_factory=dict)
    """Data, command and figures of the training."""
    licence: str = ""
    """Licence of the weights, which follows from their data."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Origin of imported weights, with file name, SHA-256 and layout."""
    export: dict[str, Any] = field(default_factory=dict)
    """For an ONNX model, its precision, the SHA-256 of the exported model file, and the deviation from it."""

    @property
    def num_outputs(self) -> int:
        """Number of output channels, K + 1."""
        return len(self.class_names) + 1

    @property
    def classes(self) -> ClassList:
        """The class list that the network was trained with, as far as it is known."""
        if self.class_list:
            return ClassList.from_dict(self.class_list, "The class list of the model")
        return described(self.class_names, self.palette)

    def use_classes(self, classes: ClassList) -> None:
        """Set names, colours and class list to those of a class list.

        >>> from pebal_core.class_list import load_class_list
        >>> info = ModelInfo("deeplabv3plus")
        >>> info.use_classes(load_class_list("camvid"))
        >>> info.class_names[:2], info.num_outputs
        (['sky', 'building'], 12)
        """
        self.class_names, self.palette = list(classes.names), classes.palette
        self.class_list = {} if classes == cityscapes_classes() else classes.as_dict()

    def to_json(self) -> str:
        """The description as JSON, which `from_json` reads."""
        return json.dumps({"format": FORMAT_VERSION, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, source: Path) -> ModelInfo:
        """Parse the metadata of a model file.

        Args:
            text: the metadata.
            source: the file, for messages.

        Raises:
            PebalError: the metadata are foreign or damaged, were written by a newer version, or hold an invalid value.
        """
        try:
            values = json.loads(text)
            version = values.pop("format")
            if version > FORMAT_VERSION:
                raise PebalError(f"{source} was written by a newer version (format {version}); update pebal_ros.")
            known = {f.name for f in fields(cls)}
            info = cls(**{key: value for key, value in values.items() if key in known})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise PebalError(
                f"The metadata of {source} is damaged ({one_line(error)}); export the model again."
            ) from error
        _check(info, source)
        return info


def _check(info: ModelInfo, source: Path) -> None:
    """Refuse a description with a value of the wrong type or out of its range.

    Raises:
        PebalError: a value is invalid; the message names the field.
    """
    faults = {
        "network": _text(info.network),
        "class_names": isinstance(info.class_names, list)
        and 1 <= len(info.class_names) <= 254
        and all(isinstance(name, str) and NAME.fullmatch(name) for name in info.class_names),
        "palette": isinstance(info.palette, list)
        and 1 <= len(info.palette) <= 256
        and all(_numbers(color, 3, 0, 255, int) for color in info.palette),
        "class_list": isinstance(info.class_list, dict) and _same_classes(info),
        "mean": _numbers(info.mean, 3),
        "std": _numbers(info.std, 3, 1e-6),
        "input_size": info.input_size is None
        or any(_numbers(info.input_size, count, *SIDES, kind=int) for count in (1, 2)),
        "smoothing": isinstance(info.smoothing, bool),
        "threshold": info.threshold is None or _numbers([info.threshold], 1),
        "threshold_note": isinstance(info.threshold_note, str),
        "energy_range": _numbers(info.energy_range, 2) and info.energy_range[0] < info.energy_range[1],
        "licence": isinstance(info.licence, str),
        "outlier_statistics": isinstance(info.outlier_statistics, str),
        **{name: isinstance(getattr(info, name), dict) for name in ("network_args", "training", "origin", "export")},
    }
    for name, fine in faults.items():
        if not fine:
            raise PebalError(
                f"The metadata of {source} are damaged: {name} cannot be {getattr(info, name)!r:.80}; export the model "
                f"again."
            )


def _same_classes(info: ModelInfo) -> bool:
    """Whether the class list, if there is one, is valid and names the same classes as the description."""
    try:
        return not info.class_list or list(info.classes.names) == info.class_names
    except PebalError:
        return False


def _text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 256 and value.isprintable()


def _numbers(
    values: object, count: int, low: float = -GREATEST, high: float = GREATEST, kind: type[int] | type[float] = float
) -> bool:
    """Whether this is a list of `count` numbers within bounds; NaN is outside all bounds."""
    kinds = (int,) if kind is int else (int, float)
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in kinds and low <= value <= high for value in values)
    )
