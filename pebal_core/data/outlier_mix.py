"""Pastes outliers into road scenes, by the reference's AnomalyMix or by a richer mix.

Both are pure functions of an explicit generator. Outlier pixels get the label 254; the inputs are not modified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np

from ..errors import PebalError
from ..labels import OUTLIER
from ..ranges import SHARE, check_ranges
from .coco import Instance, OutlierImage, OutlierSet
from .cutouts import Cutout, cut_out, harmonise, join_pieces, paste, random_blob, random_texture, resize, soften, vary
from .placement import CITYSCAPES_ROLES, MIN_HEIGHT, Roles, draw_foot, foot_at, log_uniform

Scene = tuple[np.ndarray, np.ndarray]
"""Image H×W×3 uint8 RGB and labels H×W uint8."""


def anomaly_mix(scene: Scene, outlier: Scene, rng: np.random.Generator) -> Scene:
    """AnomalyMix as in the reference: paste the box around all outlier pixels, unscaled, at a uniformly random place.

    Args:
        scene: the scene into which the outlier is pasted.
        outlier: an image, and a map that is 254 on outlier pixels. A box larger than the scene is cropped.
        rng: the generator.

    Examples:
        >>> scene = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)
        >>> outlier = np.full((2, 3, 3), 200, np.uint8), np.full((2, 3), OUTLIER, np.uint8)
        >>> image, labels = anomaly_mix(scene, outlier, np.random.default_rng(0))
        >>> int((labels == OUTLIER).sum()), int(image[labels == OUTLIER].min())
        (6, 200)
    """
    image, labels = scene[0].copy(), scene[1].copy()
    cutout = cut_out(outlier[0], outlier[1] == OUTLIER, OUTLIER)
    top = int(rng.integers(max(1, image.shape[0] - cutout.opacity.shape[0] + 1)))
    left = int(rng.integers(max(1, image.shape[1] - cutout.opacity.shape[1] + 1)))
    paste(image, labels, cutout, top, left)
    return image, labels


@dataclass(frozen=True)
class RichMix:
    """Pastes outliers and distractors with plausible sizes, blended into the scene.

    Heights follow the perspective of a flat road. An object that is H camera heights tall and whose foot is in row y
    is H·(y - horizon) pixels high. Distractors are pasted like outliers but keep inlier labels, so that traces of
    pasting, unusual lighting and unusual texture are no cue for the network.

    Examples:
        >>> RichMix(count=[2, 4], shapes=0.5).height
        [0.15, 1.6]
    """

    count: list[int] = field(default_factory=lambda: [1, 4])
    """Least and greatest number of outliers in a mixed scene."""
    height: list[float] = field(default_factory=lambda: [0.15, 1.6])
    """Bounds of an outlier's height in camera heights (about 1.4 m); uniform in the logarithm."""
    anywhere: float = 0.25
    """Share of outliers that ignore the ground and perspective, like thrown or flying objects."""
    anywhere_height: list[float] = field(default_factory=lambda: [0.04, 0.6])
    """Bounds of the height of such outliers as a share of the scene's height."""
    shapes: float = 0.25
    """Share of objects that are replaced by random shapes with random textures."""
    pieces: float = 0.0
    """Share of outliers that consist of pieces of another scene, in other colours and orientations."""
    color: float = 0.3
    """Strength of the colour change of each object."""
    tilt: float = 20.0
    """Largest rotation of an object in degrees."""
    harmonise: float = 0.7
    """Greatest share by which an object's mean colour and contrast are adapted to its surroundings."""
    blur: float = 1.2
    """Greatest sigma of the blur of objects and edges, in pixels of the scene."""
    small: float = 0.0
    """Share of outliers that stand far away; their height is drawn in pixels, and the distance follows from it."""
    small_height: list[float] = field(default_factory=lambda: [8.0, 40.0])
    """Bounds of the height of such outliers in pixels of the scene; uniform in the logarithm."""
    known: float = 1.0
    """Mean number per scene of people and vehicles of `DataConfig.known`, pasted with their true labels."""
    distractors: float = 1.0
    """Mean number per scene of each kind of distractor: road users and signs, patches of other roads, shadows."""

    def __post_init__(self) -> None:
        for name in ("count", "height", "anywhere_height", "small_height"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
                raise PebalError(
                    f"{name} of the outlier mix must be two positive bounds in ascending order, not {bounds}."
                )
        check_ranges(
            self,
            count=(1, 1000),
            height=(1e-3, 100),
            anywhere=SHARE,
            anywhere_height=(1e-3, 10),
            shapes=SHARE,
            pieces=SHARE,
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
        other: Callable[[], tuple[Scene, str]] | None = None,
    ) -> tuple[Scene, list[str]]:
        """Paste outliers into a scene.

        Args:
            scene: the scene, which is not modified.
            horizon: row of its horizon.
            objects: the outliers to draw from.
            rng: the generator.
            roles: the roles of the scene's classes.
            other: loads another scene and gives its file name; None makes pieces of this scene.

        Returns:
            The scene with pasted outliers, and the files that they come from.
        """
        image, labels, files = scene[0].copy(), scene[1].copy(), []
        for _ in range(rng.integers(self.count[0], self.count[1] + 1)):
            if self.pieces and rng.random() < self.pieces:
                donor, file = (scene, None) if other is None else other()
                files += [] if file is None else [file]
                cutout = join_pieces(donor[0], OUTLIER, rng)
            else:
                source, cutout = objects.draw(rng)
                files.append(str(source.image_path))
                if rng.random() < self.shapes:
                    h, w = (int(n) for n in rng.integers(24, 160, 2))
                    texture = random_texture(source.load()[0], h, w, rng)
                    opacity = random_blob(h, w, rng).astype(np.float32)
                    cutout = Cutout(texture, opacity, np.full((h, w), OUTLIER, np.uint8))
            foot, high = self._stand(labels, horizon, rng, roles)
            self._place(image, labels, cutout, foot, high, rng)
        return (image, labels), files

    def _stand(
        self, labels: np.ndarray, horizon: int, rng: np.random.Generator, roles: Roles
    ) -> tuple[tuple[int, int], float]:
        """Draw the foot point (row, column) and the height in pixels of an outlier."""
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
        """Paste distractors with inlier labels: movable parts of another scene, patches of road, and shadows.

        Args:
            scene: the scene, which is not modified.
            horizon: row of its horizon.
            other: loads another scene and gives its file name; called only if one is needed.
            rng: the generator.
            roles: the roles of the scene's classes.

        Returns:
            The scene with the distractors, and the files that they come from.
        """
        image, labels, files = scene[0].copy(), scene[1].copy(), []
        users, patches, shadows = rng.poisson(self.distractors, 3)
        if users or patches:
            donor, file = other()
            files.append(file)
            for _ in range(min(int(users), 3)):
                if (cutout := _movable_part(donor, rng, roles)) and (foot := draw_foot(labels, horizon, rng, roles)):
                    height = (foot[0] - horizon) * log_uniform((0.5, 1.5), rng)
                    self._place(image, labels, cutout, foot, height, rng)
            for _ in range(min(int(patches), 3)):
                if (cutout := _road_patch(donor, rng, roles)) and (foot := draw_foot(labels, horizon, rng, roles)):
                    self._place(image, labels, cutout, foot, (foot[0] - horizon) * log_uniform((0.1, 0.5), rng), rng)
        for _ in range(min(int(shadows), 3)):
            if foot := draw_foot(labels, horizon, rng, roles):
                _cast_shadow(image, foot, (foot[0] - horizon), rng)
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
        """Vary, scale, harmonise and paste one object, in place, with its foot at (row, column)."""
        cutout = vary(cutout, self.color, self.tilt if rng.random() < 0.5 else 0.0, rng)
        # The width is limited too, because a long flat object of the drawn height would span the whole scene.
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
            _cast_shadow(image, foot, columns, rng)
        paste(image, labels, cutout, top, left)


class ObjectPool:
    """Draws objects of an `OutlierSet` by drawing first a category and then one of its instances, both uniformly.

    Raises:
        PebalError: no instance is large enough.
    """

    def __init__(self, outliers: OutlierSet, min_side: int = 20, labels: Mapping[str, int] | None = None) -> None:
        """Collect the instances.

        Args:
            outliers: the prepared objects.
            min_side: smallest width and height in pixels.
            labels: label by category for objects that are pasted as known classes; None pastes them as outliers.
        """
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
        """Draw an object; returns the image that shows it and the object cut from it."""
        category = self.categories[rng.integers(len(self.categories))]
        image, instance = category[rng.integers(len(category))]
        pixels, numbers = image.load()
        label = OUTLIER if self.labels is None else self.labels[instance.category]
        return image, cut_out(pixels, numbers == instance.number, label)


def _movable_part(
    scene: Scene, rng: np.random.Generator, roles: Roles = CITYSCAPES_ROLES, min_side: int = 16
) -> Cutout | None:
    """Draw a connected region of one movable class of a scene; None if there is none of at least about `min_side`."""
    image, labels = scene
    present = [c for c in roles.movable if np.count_nonzero(labels == c) > min_side**2]
    if not present:
        return None
    label = int(rng.choice(present))
    _, regions, stats, _ = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8))
    sides = stats[1:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].min(1)
    large = np.flatnonzero(sides >= min_side // 2) + 1
    return cut_out(image, regions == rng.choice(large), label) if large.size else None


def _road_patch(scene: Scene, rng: np.random.Generator, roles: Roles = CITYSCAPES_ROLES) -> Cutout | None:
    """Cut a random shape from the road of a scene; None if too little road is visible."""
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


def _cast_shadow(image: np.ndarray, foot: tuple[int, int], width: int, rng: np.random.Generator) -> None:
    """Darken (or occasionally brighten) a soft flat shape around a foot point, in place."""
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
