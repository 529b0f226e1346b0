"""Class lists define the classes of a network, their ids in label files, and their role for a vehicle.

A class list is a small YAML file:

    void: [255]                # ids of pixels that are ignored
    anomaly: [30]              # optional: ids of labelled anomalies
    classes:                   # in the order of the network's outputs
      - {name: floor, ids: [1, 2], color: [128, 64, 128], group: flat, carries_objects: true}
      - {name: worker, ids: [7], color: [220, 20, 60], group: human, stays_calm: true, movable: true}
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .errors import PebalError, one_line
from .files import user_path
from .labels import CITYSCAPES_CLASSES, MOST_CLASSES, OUTLIER, VOID

FOLDER = Path(__file__).parent / "class_lists"
"""Folder of the lists that ship with the package."""
NAME = re.compile(r"[\w .,:;/&()'+-]{1,64}")
"""Pattern of a class name, which every terminal, log and message can show."""
FLAGS = ("carries_objects", "stays_calm", "movable")


@dataclass(frozen=True)
class KnownClass:
    """One class that a network knows.

    Examples:
        >>> KnownClass("floor", (1, 2), (90, 90, 90), carries_objects=True).ids
        (1, 2)
    """

    name: str
    ids: tuple[int, ...]
    """Values in the label files."""
    color: tuple[int, int, int]
    """RGB."""
    group: str = ""
    """Name of the group; the classes of one group are also evaluated together."""
    carries_objects: bool = False
    """Whether an object can stand on it."""
    stays_calm: bool = False
    """Whether fine-tuning weights it by `Emphasis.calm`."""
    movable: bool = False
    """Whether a cut-out of it keeps its class when it is pasted into another scene; a car does, a road does not."""


@dataclass(frozen=True)
class ClassList:
    """Classes in the order of a network's outputs.

    Raises:
        PebalError: a name, an id or a colour is invalid, or a name or an id is used twice.

    Examples:
        >>> floor = KnownClass("floor", (1, 2), (90, 90, 90), carries_objects=True)
        >>> worker = KnownClass("worker", (7,), (220, 20, 60), movable=True)
        >>> hall = ClassList("hall", (floor, worker), anomaly=(30,))
        >>> hall.names, hall.flagged("movable"), hall.table[[1, 2, 7, 30, 255]].tolist()
        (('floor', 'worker'), (1,), [0, 0, 1, 254, 255])
    """

    name: str
    classes: tuple[KnownClass, ...]
    void: tuple[int, ...] = (VOID,)
    """Ids of pixels that are ignored."""
    anomaly: tuple[int, ...] = ()
    """Ids of labelled anomalies."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= MOST_CLASSES:
            raise PebalError(
                f"The class list {self.name} has {len(self.classes)} classes; labels are stored in 8 bits, which "
                f"allow 1 to {MOST_CLASSES} of them."
            )
        for one in self.classes:
            if not NAME.fullmatch(one.name):
                raise PebalError(
                    f"The class list {self.name} has the class {one.name!r:.80}, which is not a usable name."
                )
            if len(one.color) != 3 or not all(0 <= value <= 255 for value in one.color):
                raise PebalError(
                    f"The color of class '{one.name}' in the class list {self.name} is {list(one.color)}; it must be "
                    f"three whole numbers from 0 to 255."
                )
        if twice := _repeated(self.names):
            raise PebalError(f"The class list {self.name} has two classes with the name '{twice}'.")
        owners = {**{one.name: one.ids for one in self.classes}, "void": self.void, "anomaly": self.anomaly}
        seen: dict[int, str] = {}
        for owner, ids in owners.items():
            for number in ids:
                if not 0 <= number <= 255:
                    raise PebalError(f"The class list {self.name} gives {owner} the id {number}; ids must be 0 to 255.")
                if number in seen:
                    raise PebalError(
                        f"The class list {self.name} gives the id {number} to both {seen[number]} and {owner}."
                    )
                seen[number] = owner

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(one.name for one in self.classes)

    @property
    def palette(self) -> list[list[int]]:
        """RGB per class."""
        return [list(one.color) for one in self.classes]

    @property
    def table(self) -> np.ndarray:
        """Lookup table, 256 uint8, from a value in the label files to its class.

        Labelled anomalies map to `OUTLIER`, and all values that are not listed map to `VOID`.
        """
        table = np.full(256, VOID, np.uint8)
        table[list(self.anomaly)] = OUTLIER
        for number, one in enumerate(self.classes):
            table[list(one.ids)] = number
        return table

    @property
    def known_ids(self) -> tuple[int, ...]:
        """Values that the label files may hold."""
        return tuple(sorted({*self.void, *self.anomaly, *(number for one in self.classes for number in one.ids)}))

    def flagged(self, flag: str) -> tuple[int, ...]:
        """Numbers of the classes for which a flag (one of `FLAGS`) is set."""
        return tuple(number for number, one in enumerate(self.classes) if getattr(one, flag))

    def numbered(self) -> ClassList:
        """The same classes, for label files whose values are the class numbers."""
        classes = tuple(replace(one, ids=(number,)) for number, one in enumerate(self.classes))
        return ClassList(self.name, classes, (VOID,) if len(classes) <= VOID else ())

    @property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """Class numbers by the name of their group."""
        groups: dict[str, tuple[int, ...]] = {}
        for number, one in enumerate(self.classes):
            if one.group:
                groups[one.group] = (*groups.get(one.group, ()), number)
        return groups

    def as_dict(self) -> dict[str, Any]:
        """The list as JSON types, which `from_dict` reads."""
        return {"name": self.name, **_plain(asdict(self))}

    @classmethod
    def from_dict(cls, values: object, where: str) -> ClassList:
        """Read the content of a YAML file or of a model file's entry.

        Args:
            values: the content as `as_dict` gives it.
            where: name of the source for error messages; also the list's name if it has none.

        Raises:
            PebalError: a key is unknown or missing, or a value has the wrong type.
        """
        content = _mapping(values, where, {"name", "classes", "void", "anomaly"}, {"classes"})
        if not isinstance(content["classes"], list):
            raise PebalError(f"{where}: 'classes' must be a list.")
        classes = []
        for number, entry in enumerate(content["classes"]):
            place = f"{where}, class {number}"
            one = _mapping(entry, place, {"name", "ids", "color", "group", *FLAGS}, {"name", "ids", "color"})
            if not isinstance(one["name"], str) or not isinstance(one.get("group", ""), str):
                raise PebalError(f"{place}: 'name' and 'group' must be strings.")
            if wrong := [flag for flag in FLAGS if not isinstance(one.get(flag, False), bool)]:
                raise PebalError(f"{place}: '{wrong[0]}' must be true or false.")
            color = _numbers(one["color"], f"{place}: 'color'")
            if len(color) != 3:
                raise PebalError(f"{place}: 'color' must be three whole numbers from 0 to 255.")
            flags = {flag: one.get(flag, False) for flag in FLAGS}
            ids = _numbers(one["ids"], f"{place}: 'ids'")
            classes.append(KnownClass(one["name"], ids, (color[0], color[1], color[2]), one.get("group", ""), **flags))
        name = content.get("name", where)
        if not isinstance(name, str):
            raise PebalError(f"{where}: 'name' must be a string.")
        void = _numbers(content.get("void", [VOID]), f"{where}: 'void'")
        return cls(name, tuple(classes), void, _numbers(content.get("anomaly", []), f"{where}: 'anomaly'"))


_REGISTERED: dict[str, ClassList] = {}


def register_class_list(classes: ClassList) -> None:
    """Register a class list under its name; it takes precedence over a shipped list of that name.

    Examples:
        >>> floor = KnownClass("floor", (0,), (90, 90, 90), carries_objects=True)
        >>> register_class_list(ClassList("hall", (floor,)))
        >>> load_class_list("hall").names
        ('floor',)
    """
    _REGISTERED[classes.name] = classes


def load_class_list(name: str | Path) -> ClassList:
    """Load a class list by its name (registered or shipped) or from a YAML file.

    Raises:
        PebalError: there is no such list, or its file cannot be used.

    Examples:
        >>> load_class_list("camvid").names[:3]
        ('sky', 'building', 'pole')
    """
    if str(name) in _REGISTERED:
        return _REGISTERED[str(name)]
    path = user_path(name)
    if path.suffix.lower() in (".yaml", ".yml"):
        return _read(path)
    shipped = FOLDER / f"{name}.yaml"
    if Path(str(name)).name != str(name) or not shipped.is_file():
        names = sorted({*_REGISTERED, *(file.stem for file in FOLDER.glob("*.yaml"))})
        raise PebalError(f"There is no class list '{name!s:.80}'; use a .yaml file, or one of {', '.join(names)}.")
    return _read(shipped)


@lru_cache(maxsize=16)
def cityscapes_classes() -> ClassList:
    """The 19 Cityscapes classes, whose ids are the trainIds.

    Examples:
        >>> cityscapes_classes().names[:3], cityscapes_classes().table[[0, 18, 19]].tolist()
        (('road', 'sidewalk', 'building'), [0, 18, 255])
    """
    return _read(FOLDER / "cityscapes.yaml").numbered()


def described(names: Sequence[str], palette: Sequence[Sequence[int]]) -> ClassList:
    """Class list of a network of which only names and colours are known; the ids are the class numbers.

    Examples:
        >>> classes = described(["road", "forklift"], [[128, 64, 128]])
        >>> classes.palette, classes.flagged("carries_objects")
        ([[128, 64, 128], [128, 128, 128]], (0,))
    """
    if tuple(names) == CITYSCAPES_CLASSES:
        return cityscapes_classes()
    filled = [*palette, *([128, 128, 128] for _ in names)]
    classes = [
        KnownClass(name, (number,), (color[0], color[1], color[2]), carries_objects=name in ("road", "sidewalk"))
        for number, (name, color) in enumerate(zip(names, filled))
    ]
    return ClassList("classes of the model", tuple(classes), () if len(classes) > VOID else (VOID,))


def read_mapping(path: str | Path, source: ClassList, target: ClassList) -> np.ndarray:
    """Read a file that maps the classes of one list to those of another, by ``name: name`` or ``name: void``.

    Returns:
        Lookup table, 256 uint8, from a class of `source` to a class of `target` or `VOID`; other values are unchanged.

    Raises:
        PebalError: the file cannot be read, names an unknown class, or omits a class of `source`.

    Examples:
        >>> import tempfile
        >>> hall = described(["floor", "tape"], [])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "mapping.yaml")
        ...     _ = path.write_text("{floor: road, tape: void}")
        ...     read_mapping(path, hall, cityscapes_classes())[[0, 1]].tolist()
        [0, 255]
    """
    path = user_path(path)
    content = _mapping(_load(path), str(path), None, set())
    if unknown := [key for key in content if key not in source.names]:
        raise PebalError(f"{path} maps '{unknown[0]!s:.80}', but {source.name} has no such class.")
    if unknown := [value for value in content.values() if value not in (*target.names, "void")]:
        raise PebalError(
            f"{path} maps to '{unknown[0]!s:.80}', which is not a class of {target.name}. Use one of: "
            f"{', '.join(target.names)}, or void."
        )
    if holes := [name for name in source.names if name not in content]:
        raise PebalError(
            f"{path} has no mapping for {', '.join(holes)}. Map each to a class of {target.name} or to void."
        )
    table = np.arange(256, dtype=np.uint8)
    for number, name in enumerate(source.names):
        table[number] = VOID if content[name] == "void" else target.names.index(content[name])
    return table


def _read(path: Path) -> ClassList:
    listed = ClassList.from_dict(_load(path), str(path))
    return ClassList(path.stem, listed.classes, listed.void, listed.anomaly) if listed.name == str(path) else listed


def _load(path: Path) -> object:
    if not path.is_file():
        raise PebalError(f"There is no file {path}.")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = one_line(error)
        raise PebalError(f"{path} cannot be read as a YAML file: {reason:.150}.") from error


def _mapping(values: object, where: str, allowed: set[str] | None, needed: set[str]) -> dict[str, Any]:
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise PebalError(f"{where} must be a mapping from names to values.")
    if allowed is not None and (unknown := [key for key in values if key not in allowed]):
        raise PebalError(
            f"{where} has the unknown key '{unknown[0]:.80}'; the known keys are {', '.join(sorted(allowed))}."
        )
    if missing := sorted(needed - set(values)):
        raise PebalError(f"{where} lacks '{missing[0]}'.")
    return values


def _numbers(values: object, where: str) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise PebalError(f"{where} must be a list of whole numbers.")
    return tuple(values)


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _plain(value: Any) -> Any:
    """Convert tuples to lists, as JSON does."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
