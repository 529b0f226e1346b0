"""Outliers pasted into road scenes: the reference's AnomalyMix, and a richer mix.

Both are pure functions of an explicit generator. Outlier pixels get label 254; nothing is modified in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from ..class_list import ClassList, cityscapes_classes
from ..errors import PebalError
from ..labels import CARS, OUTLIER, RIDERS, SIGNS, VEHICLES, VOID
from ..ranges import SHARE, check_ranges
from .coco import Instance, OutlierImage, OutlierSet
from .cutouts import Cutout, cut_out, harmonise, paste, random_blob, random_texture, resize, soften, vary

Scene = tuple[np.ndarray, np.ndarray]
"""Image H×W×3 uint8 RGB and labels H×W uint8."""

TERRAIN = 9

MIN_HEIGHT = 6
"""Pixels: smaller outliers are noise at the resolution of the logits."""


def anomaly_mix(scene: Scene, outlier: Scene, rng: np.random.Generator) -> Scene:
    """AnomalyMix as the reference does it: the bounding box of all outlier pixels, unscaled, at a uniform position.

    Args:
        scene: where to paste.
        outlier: image, and map that is 254 on outlier pixels. A box larger than the scene is cut off at its end.
    """
    image, labels = scene[0].copy(), scene[1].copy()
    cutout = cut_out(outlier[0], outlier[1] == OUTLIER, OUTLIER)
    top = int(rng.integers(max(1, image.shape[0] - cutout.opacity.shape[0] + 1)))
    left = int(rng.integers(max(1, image.shape[1] - cutout.opacity.shape[1] + 1)))
    paste(image, labels, cutout, top, left)
    return image, labels


@dataclass(frozen=True)
class Roles:
    """What the classes of a scene are to a mix."""

    road: int
    """The class of which patches are pasted, and whose end shows where the horizon is."""
    ground: tuple[int, ...]
    """Classes on which things stand."""
    movable: tuple[int, ...]
    """Classes and groups of them (see `partial_labels`) that remain what they are in another scene."""

    @classmethod
    def of(cls, classes: ClassList) -> Roles:
        """The roles that follow from a class list."""
        carriers = classes.flagged("carries_objects")
        if classes == cityscapes_classes():
            return cls(0, (*carriers, TERRAIN), (*classes.flagged("movable"), VEHICLES, CARS, RIDERS, SIGNS))
        return cls(carriers[0] if carriers else VOID, carriers, classes.flagged("movable"))

    @property
    def is_ground(self) -> np.ndarray:
        """256 bool, by label."""
        return np.isin(np.arange(256), self.ground)


CITYSCAPES_ROLES = Roles.of(cityscapes_classes())


def horizon_row(labels: np.ndarray, roles: Roles = CITYSCAPES_ROLES) -> int:
    """Row of the horizon of a whole scene, estimated from where the road ends; 0.42 of the height without road."""
    rows = np.flatnonzero((labels == roles.road).mean(1) > 0.02)
    return int(rows[0]) - labels.shape[0] // 50 if rows.size else int(0.42 * labels.shape[0])


@dataclass(frozen=True)
class RichMix:
    """Outliers and distractors as they might stand on a road: many, of plausible size, blended, and often odd.

    Heights follow perspective on a flat road: an object of H camera heights whose foot is in row y is H·(y - horizon)
    pixels high. Distractors are pasted like outliers and keep inlier labels, so that the traces of pasting, odd
    light and odd texture are no cue.
    """

    count: list[int] = field(default_factory=lambda: [1, 4])
    """Least and greatest number of outliers in a mixed scene."""
    height: list[float] = field(default_factory=lambda: [0.15, 1.6])
    """Bounds of an outlier's height in camera heights (about 1.4 m); uniform in the logarithm."""
    anywhere: float = 0.25
    """Share of outliers that ignore the ground and perspective, as thrown or flying things do."""
    anywhere_height: list[float] = field(default_factory=lambda: [0.04, 0.6])
    """Bounds of their height as a share of the scene's."""
    shapes: float = 0.25
    """Share of outliers that are random shapes of random texture in place of objects."""
    color: float = 0.3
    """Strength of the colour change of each object."""
    tilt: float = 20.0
    """Degrees."""
    harmonise: float = 0.7
    """Greatest share by which an object takes on mean and contrast of what is around it."""
    blur: float = 1.2
    """Greatest sigma of the blur of objects and edges, in pixels of the scene."""
    small: float = 0.0
    """Share of outliers that stand far away: their height is drawn in pixels, and their place follows from it."""
    small_height: list[float] = field(default_factory=lambda: [8.0, 40.0])
    """Bounds of their height in pixels of the scene; uniform in the logarithm."""
    known: float = 1.0
    """Mean number, in every scene, of people and vehicles of `DataConfig.known`, pasted as what they are."""
    distractors: float = 1.0
    """Mean number, in every scene, of pasted road users and signs, of patches of other roads and of shadows, each."""

    def __post_init__(self) -> None:
        for name in ("count", "height", "anywhere_height", "small_height"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
                raise PebalError(f"{name} of the outlier mix must be two positive bounds in order, not {bounds}.")
        check_ranges(
            self,
            count=(1, 1000),
            height=(1e-3, 100),
            anywhere=SHARE,
            anywhere_height=(1e-3, 10),
            shapes=SHARE,
            color=SHARE,
            tilt=(0, 180),
            harmonise=SHARE,
            blur=(0, 100),
            distractors=(0, 100),
            small=SHARE,
            small_height=(1, 1000),
            known=(0, 100),
        )

    def outliers(
        self,
        scene: Scene,
        horizon: int,
        objects: ObjectPool,
        rng: np.random.Generator,
        roles: Roles = CITYSCAPES_ROLES,
    ) -> tuple[Scene, list[str]]:
        """The scene with pasted outliers, and the files that they come from."""
        image, labels, files = scene[0].copy(), scene[1].copy(), []
        for _ in range(rng.integers(self.count[0], self.count[1] + 1)):
            source, cutout = objects.draw(rng)
            files.append(str(source.image_path))
            if rng.random() < self.shapes:
                h, w = (int(n) for n in rng.integers(24, 160, 2))
                texture = random_texture(source.load()[0], h, w, rng)
                cutout = Cutout(texture, random_blob(h, w, rng).astype(np.float32), np.full((h, w), OUTLIER, np.uint8))
            foot, high = self._stand(labels, horizon, rng, roles)
            self._place(image, labels, cutout, foot, high, rng)
        return (image, labels), files

    def _stand(
        self, labels: np.ndarray, horizon: int, rng: np.random.Generator, roles: Roles
    ) -> tuple[tuple[int, int], float]:
        """Foot (row, column) and height in pixels of an outlier."""
        if self.small and rng.random() < self.small:
            high = log_uniform(self.small_height, rng)
            if foot := foot_at(labels, horizon + round(high / log_uniform(self.height, rng)), rng, roles):
                return foot, high
        on_ground = rng.random() >= self.anywhere
        foot = draw_foot(labels, horizon, rng, roles) if on_ground else None
        if foot is None:
            foot = int(rng.integers(1, labels.shape[0] + 40)), int(rng.integers(labels.shape[1]))
            return foot, labels.shape[0] * log_uniform(self.anywhere_height, rng)
        return foot, (foot[0] - horizon) * log_uniform(self.height, rng)

    def add_known(
        self,
        scene: Scene,
        horizon: int,
        known: ObjectPool,
        rng: np.random.Generator,
        roles: Roles = CITYSCAPES_ROLES,
    ) -> Scene:
        """Paste people and vehicles with their own labels, in the same way as outliers."""
        image, labels = scene[0].copy(), scene[1].copy()
        for _ in range(min(int(rng.poisson(self.known)), 4)):
            if foot := draw_foot(labels, horizon, rng, roles):
                height = (foot[0] - horizon) * log_uniform((0.5, 2.0), rng)
                self._place(image, labels, known.draw(rng)[1], foot, height, rng)
        return image, labels

    def distract(
        self,
        scene: Scene,
        horizon: int,
        other: Callable[[], tuple[Scene, str]],
        rng: np.random.Generator,
        roles: Roles = CITYSCAPES_ROLES,
    ) -> tuple[Scene, list[str]]:
        """Paste inlier things: parts of another scene, road on road, shadows.

        Args:
            other: loads another scene and names its file, if one is needed.

        Returns:
            The scene with them, and the files that they come from.
        """
        image, labels, files = scene[0].copy(), scene[1].copy(), []
        users, patches, shadows = rng.poisson(self.distractors, 3)
        if users or patches:
            donor, file = other()
            files.append(file)
            for _ in range(min(int(users), 3)):
                if (cutout := movable_part(donor, rng, roles)) and (foot := draw_foot(labels, horizon, rng, roles)):
                    height = (foot[0] - horizon) * log_uniform((0.5, 1.5), rng)
                    self._place(image, labels, cutout, foot, height, rng)
            for _ in range(min(int(patches), 3)):
                if (cutout := road_patch(donor, rng, roles)) and (foot := draw_foot(labels, horizon, rng, roles)):
                    self._place(image, labels, cutout, foot, (foot[0] - horizon) * log_uniform((0.1, 0.5), rng), rng)
        for _ in range(min(int(shadows), 3)):
            if foot := draw_foot(labels, horizon, rng, roles):
                cast_shadow(image, foot, (foot[0] - horizon), rng)
        return (image, labels), files

    def _place(
        self,
        image: np.ndarray,
        labels: np.ndarray,
        cutout: Cutout,
        foot: tuple[int, int],
        height: float,
        rng: np.random.Generator,
    ) -> None:
        """Vary, scale, harmonise and paste one object with its foot at (row, column)."""
        cutout = vary(cutout, self.color, self.tilt if rng.random() < 0.5 else 0.0, rng)
        # Width counts too: a lying plank of some height would cross the whole scene.
        height = min(height, 2.0 * height * cutout.opacity.shape[0] / cutout.opacity.shape[1] + MIN_HEIGHT)
        cutout = resize(cutout, int(np.clip(height, MIN_HEIGHT, 1.2 * image.shape[0])))
        blur = rng.uniform(0, self.blur) * (rng.random() < 0.5)
        cutout = soften(cutout, blur, rng.uniform(0, self.blur))
        rows, columns = cutout.opacity.shape
        top, left = foot[0] - rows, foot[1] - columns // 2
        margin = max(4, rows // 4)
        around = image[max(0, top - margin) : foot[0] + margin, max(0, left - margin) : left + columns + margin]
        cutout = harmonise(cutout, around.reshape(-1, 3), rng.uniform(0, self.harmonise))
        if rng.random() < 0.4:
            cast_shadow(image, foot, columns, rng)
        paste(image, labels, cutout, top, left)


class ObjectPool:
    """Draws objects of an `OutlierSet`: first the category, then one of its instances, each uniformly."""

    def __init__(self, outliers: OutlierSet, min_side: int = 20, labels: Mapping[str, int] | None = None) -> None:
        """`labels`: by category, of what is pasted as a known thing; None: outliers."""
        by_category: dict[str, list[tuple[OutlierImage, Instance]]] = {}
        for image in outliers.images:
            for instance in image.instances:
                if min(instance.box[2:]) >= min_side:
                    by_category.setdefault(instance.category, []).append((image, instance))
        if not by_category:
            raise PebalError(f"No instance of {outliers.name} is at least {min_side} pixels wide and high.")
        self.categories = [by_category[name] for name in sorted(by_category)]
        self.labels = labels

    def draw(self, rng: np.random.Generator) -> tuple[OutlierImage, Cutout]:
        """The image and the object cut from it."""
        category = self.categories[rng.integers(len(self.categories))]
        image, instance = category[rng.integers(len(category))]
        pixels, numbers = image.load()
        label = OUTLIER if self.labels is None else self.labels[instance.category]
        return image, cut_out(pixels, numbers == instance.number, label)


def log_uniform(bounds: Sequence[float], rng: np.random.Generator) -> float:
    """Uniform in the logarithm between two positive bounds."""
    return float(np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1]))))


def draw_foot(
    labels: np.ndarray, horizon: int, rng: np.random.Generator, roles: Roles = CITYSCAPES_ROLES
) -> tuple[int, int] | None:
    """A ground pixel (row, column), rows about uniform in distance on a logarithmic scale; None without ground."""
    ground = roles.is_ground[labels]
    rows = np.flatnonzero(ground.any(1))
    rows = rows[rows > horizon + MIN_HEIGHT]
    if not rows.size:
        return None
    # Distance is 1 / (y - horizon), so its logarithm is uniform where rows weigh 1 / (y - horizon).
    weights = 1.0 / (rows - horizon)
    row = int(rng.choice(rows, p=weights / weights.sum()))
    return row, int(rng.choice(np.flatnonzero(ground[row])))


def foot_at(
    labels: np.ndarray, row: int, rng: np.random.Generator, roles: Roles = CITYSCAPES_ROLES
) -> tuple[int, int] | None:
    """A ground pixel (row, column) in the row next to this one that has ground; None without ground."""
    ground = roles.is_ground[labels]
    rows = np.flatnonzero(ground.any(1))
    if not rows.size:
        return None
    row = int(rows[np.abs(rows - row).argmin()])
    return row, int(rng.choice(np.flatnonzero(ground[row])))


def movable_part(
    scene: Scene, rng: np.random.Generator, roles: Roles = CITYSCAPES_ROLES, min_side: int = 16
) -> Cutout | None:
    """A connected region of one movable class of a scene, with its label; None if there is none of some size."""
    image, labels = scene
    present = [c for c in roles.movable if np.count_nonzero(labels == c) > min_side**2]
    if not present:
        return None
    label = int(rng.choice(present))
    _, regions, stats, _ = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8))
    sides = stats[1:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].min(1)
    large = np.flatnonzero(sides >= min_side // 2) + 1
    return cut_out(image, regions == rng.choice(large), label) if large.size else None


def road_patch(scene: Scene, rng: np.random.Generator, roles: Roles = CITYSCAPES_ROLES) -> Cutout | None:
    """A random shape cut from the road of a scene; None if there is too little of it."""
    image, labels = scene
    rows, columns = np.nonzero(labels[::4, ::4] == roles.road)
    if rows.size < 200:
        return None
    centre = rng.integers(rows.size)
    h, w = (int(n) for n in rng.integers(24, 120, 2))
    top, left = max(0, 4 * int(rows[centre]) - h // 2), max(0, 4 * int(columns[centre]) - w // 2)
    window = slice(top, top + h), slice(left, left + w)
    road = labels[window] == roles.road
    mask = random_blob(road.shape[0], road.shape[1], rng) & road
    if not mask.any():
        return None
    return Cutout(image[window], mask.astype(np.float32), np.full(road.shape, roles.road, np.uint8))


def cast_shadow(image: np.ndarray, foot: tuple[int, int], width: int, rng: np.random.Generator) -> None:
    """Darken, or now and then brighten, a soft flat shape around a foot point, in place; labels stay."""
    w = max(4, int(width * rng.uniform(0.6, 2.5)))
    h = max(3, int(w * rng.uniform(0.1, 0.5)))
    mask = np.pad(random_blob(h, w, rng).astype(np.float32), 4)
    soft = cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.5, 3))
    tone = rng.uniform(0.35, 0.9) if rng.random() < 0.85 else rng.uniform(1.1, 1.6)
    height, columns = soft.shape
    top, left = foot[0] - height // 2, foot[1] - columns // 2
    y0, x0, y1, x1 = (
        max(0, top),
        max(0, left),
        min(image.shape[0], top + height),
        min(image.shape[1], left + columns),
    )
    if y0 < y1 and x0 < x1:
        factor = 1 + (tone - 1) * soft[y0 - top : y1 - top, x0 - left : x1 - left, None]
        image[y0:y1, x0:x1] = (image[y0:y1, x0:x1] * factor).clip(0, 255).astype(np.uint8)
