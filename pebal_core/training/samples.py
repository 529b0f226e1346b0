"""Training samples and validation scenes for fine-tuning, both pure functions of a seed and a number."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..class_list import ClassList, cityscapes_classes, load_class_list
from ..data.augment import (
    cut_window,
    draw_window,
    random_camera,
    random_color,
    random_crop,
    random_mirror,
    resize_scene,
    scale_scene,
)
from ..data.coco import KNOWN_LABELS, OutlierSet
from ..data.outlier_mix import ObjectPool, RichMix, Scene, anomaly_mix
from ..data.placement import Roles, horizon_row, log_uniform
from ..data.scenes import SceneSet, as_classes, check_scenes, open_scenes
from ..errors import PebalError
from ..labels import LABELLED_OUTLIER, OUTLIER, VOID
from ..model_file import file_sha256
from ..ranges import COUNT, SHARE, SIDE, check_ranges
from .run import RunConfig, TrainingData
from .stream import NamedScene, shuffled_index

MEAN_COLOR = (124, 116, 104)
"""RGB colour that becomes zero in the normalisation."""


@dataclass(frozen=True)
class SceneSource:
    """One set of labelled scenes.

    Examples:
        >>> SceneSource("folders", "hall", classes="hall.yaml", anomalies=True).split
        'train'
    """

    layout: str
    """Name of the layout: camvid, camvid_groups, cityscapes, cityscapes_train_ids, cityscapes_flat, idd_lite,
    unlabelled, or folders for any images with labels."""
    folder: str
    """Folder of the set, below `DataConfig.root`."""
    split: str = "train"
    height: int | None = None
    """Height in pixels of a scene at scale 1; None keeps the stored height."""
    classes: str | None = None
    """Name or YAML file of the class list of the label files, for the layout folders."""
    mapping: str | None = None
    """YAML file that maps the classes of the labels to those of the network; None if they are the same."""
    anomalies: bool = False
    """Whether the labelled anomalies of these scenes are learned as outliers; otherwise they are void."""
    repeat: int = 1
    """Number of times that each scene occurs in one pass, which gives small sets more weight."""

    def __post_init__(self) -> None:
        check_ranges(self, height=SIDE, repeat=(1, 100_000))


@dataclass
class DataConfig:
    """Scenes, outliers, and how they are mixed.

    Examples:
        >>> scenes, validation = (SceneSource("camvid", "camvid", split) for split in ("train", "val"))
        >>> DataConfig([scenes], [validation], "outliers/coco", held_back=["cup"]).crop
        [384, 512]
    """

    scenes: list[SceneSource]
    validation: list[SceneSource]
    outliers: str
    """Folder written by ``pebal prepare-coco``."""
    known: str | None = None
    """Folder written by ``pebal prepare-coco --rule known``, with people and vehicles that are pasted as known
    classes."""
    far_validation: bool = False
    """Whether the validation scenes are also evaluated with small outliers far away (`RichMix.small_height`)."""
    root: str = "data"
    """Folder that holds the scene sets."""
    mix: Literal["anomaly_mix", "rich_mix"] = "rich_mix"
    """How outliers are mixed into scenes. anomaly_mix follows the reference; rich_mix adds several objects,
    perspective, blending and distractors."""
    rich_mix: RichMix = field(default_factory=RichMix)
    """Settings of rich_mix."""
    outlier_share: float = 0.6
    """Share of the samples that get outliers."""
    only: list[str] = field(default_factory=list)
    """COCO categories to train on; if empty, all categories that are not held back."""
    held_back: list[str] = field(default_factory=list)
    """COCO categories kept for the validation set."""
    crop: list[int] = field(default_factory=lambda: [384, 512])
    """Height and width of a training crop in pixels."""
    scale: list[float] = field(default_factory=lambda: [0.75, 1.5])
    """The bounds of the random scale for rich_mix, or the scales to choose from for anomaly_mix."""
    mirror: float = 0.5
    """Probability that a sample is mirrored."""
    color: float = 0.3
    """Strength of the colour change of whole samples."""
    camera: float = 0.2
    """Probability of each of gamma, blur, noise and JPEG artefacts."""
    validation_every: int = 4
    """Only every n-th scene of the validation sets is used."""
    check: bool = True
    """Read some scenes before training, and stop if they contain mistakes."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {"crop": 2},
            outlier_share=(0, 0.999),
            crop=SIDE,
            scale=(0.01, 100),
            mirror=SHARE,
            color=SHARE,
            camera=SHARE,
            validation_every=COUNT,
        )
        if not self.scale:
            raise PebalError("data.scale is empty. Set it to at least one scale.")


class TrainingSamples:
    """An endless sequence of numbered samples, in passes over a shuffled list of clean scenes and mixed samples.

    With a share s of outliers and n clean scenes, one pass has each clean scene once and n·s/(1-s) mixed samples, whose
    scene and outliers are drawn at random. For 2975 scenes and 297 outlier images, this is the epoch of the reference.

    Args:
        config: the settings.
        outliers: the objects to paste.
        seed: seed of the sequence.
        classes: classes of the network; None stands for the Cityscapes classes.

    Raises:
        PebalError: a set is missing, empty or wrongly labelled, or there is no outlier.
    """

    def __init__(self, config: DataConfig, outliers: OutlierSet, seed: int, classes: ClassList | None = None) -> None:
        classes = classes or cityscapes_classes()
        if config.mix == "rich_mix" and len(config.scale) != 2:
            raise PebalError(f"data.scale must be two bounds for rich_mix; it is {config.scale}.")
        self.config, self.outliers, self.seed = config, outliers, seed
        self.roles = Roles.of(classes)
        self.sources = [(source, _open_source(source, config, classes)) for source in config.scenes]
        self.deck = [
            (number, index)
            for number, (source, scenes) in enumerate(self.sources)
            for index in range(len(scenes))
            for _ in range(source.repeat)
        ]
        self.mixed_places = round(len(self.deck) * config.outlier_share / (1 - config.outlier_share))
        self.objects = ObjectPool(outliers) if config.mix == "rich_mix" else None
        self.known = None if config.known is None else _open_known(config.known, classes)

    @property
    def name(self) -> str:
        """Names and sizes of the sets, for the description of the model."""
        sets = ", ".join(f"{scenes.name} ({len(scenes)})" for _, scenes in self.sources)
        return f"{sets}; outliers: {self.outliers.name} ({len(self.outliers)} images)"

    def draw(self, rng: np.random.Generator, number: int) -> Scene:
        """Draw a sample, an image h×w×3 uint8 RGB with labels h×w uint8.

        Labels are trainIds or group labels, 253 for labelled anomalies, 254 for pasted outliers and 255 for void.
        """
        return self._draw(rng, number)[0]

    def files(self, number: int) -> list[str]:
        """The files from which a sample is made."""
        return self._draw(np.random.default_rng([self.seed, number]), number)[1]

    def some_labels(self, count: int = 40) -> list[np.ndarray]:
        """Label maps of the first samples, which are spread over the sets by the shuffling."""
        return [self.draw(np.random.default_rng([self.seed, number]), number)[1] for number in range(count)]

    def _draw(self, rng: np.random.Generator, number: int) -> tuple[Scene, list[str]]:
        """Draw a sample; returns it and the files from which it is made."""
        position = shuffled_index(self.seed, number, len(self.deck) + self.mixed_places)
        mixed = position >= len(self.deck)
        place = int(rng.integers(len(self.deck))) if mixed else position
        make = self._rich if self.config.mix == "rich_mix" else self._reference
        return make(*self.deck[place], mixed, rng)

    def _load(self, source: int, index: int) -> tuple[Scene, str]:
        scenes = self.sources[source][1]
        return scenes.load(index), str(scenes.pairs[index][0])

    def _reference(self, source: int, index: int, mixed: bool, rng: np.random.Generator) -> tuple[Scene, list[str]]:
        """Make a sample as in the reference: paste, mirror, scale, and crop with padding that normalises to zero."""
        config = self.config
        stored, file = self._load(source, index)
        scene, files = _scale_to_height(stored, config.scenes[source].height), [file]
        if mixed:
            image = self.outliers.images[rng.integers(len(self.outliers))]
            files.append(str(image.image_path))
            pixels, numbers = image.load()
            scene = anomaly_mix(scene, (pixels, np.where(numbers > 0, OUTLIER, 0)), rng)
        scene = random_mirror(*scene, config.mirror, rng)
        scene = scale_scene(*scene, float(rng.choice(config.scale)))
        return random_crop(*scene, config.crop[0], config.crop[1], rng, fill=MEAN_COLOR), files

    def _rich(self, source: int, index: int, mixed: bool, rng: np.random.Generator) -> tuple[Scene, list[str]]:
        """Make a rich_mix sample: cut a window, mirror, add distractors and outliers, resize, vary colour and camera.

        Objects are pasted before the resizing, so that scene and objects are equally sharp.
        """
        config = self.config
        (image, labels), file = self._load(source, index)
        horizon = horizon_row(labels, self.roles)
        factor = log_uniform(config.scale, rng)
        factor *= (config.scenes[source].height or labels.shape[0]) / labels.shape[0]
        height, width = (max(16, round(side / factor)) for side in config.crop)
        top, left = draw_window(image.shape, height, width, rng)
        scene = cut_window(image, labels, top, left, height, width)
        scene = random_mirror(*scene, config.mirror, rng)
        scene, others = config.rich_mix.distract(
            scene, horizon - top, lambda: self._other(source, rng), rng, self.roles
        )
        files = [file, *others]
        if self.known is not None:
            scene = config.rich_mix.add_known(scene, horizon - top, self.known, rng, self.roles)
        if mixed:
            assert self.objects is not None
            scene, pasted = config.rich_mix.outliers(
                scene, horizon - top, self.objects, rng, self.roles, lambda: self._other(source, rng)
            )
            files += pasted
        image, labels = resize_scene(*scene, config.crop[0], config.crop[1])
        return (random_camera(random_color(image, config.color, rng), config.camera, rng), labels), files

    def _other(self, source: int, rng: np.random.Generator) -> tuple[Scene, str]:
        """Another scene of the same set, which has the same sharpness, and its file."""
        return self._load(source, int(rng.integers(len(self.sources[source][1]))))


class FinetuneData(TrainingData):
    """The training and validation data of a fine-tuning run, which are opened and checked on construction.

    Args:
        config: the scenes and the outliers.
        run: the seed, the batch size, and the numbers of steps and of workers.
        classes: classes of the network.

    Raises:
        PebalError: a set is missing, empty or wrongly labelled, there is no outlier, or an image is used for both
            training and validation.
    """

    def __init__(self, config: DataConfig, run: RunConfig, classes: ClassList) -> None:
        super().__init__(run)
        outliers, held_back = open_outliers(config)
        self.samples = TrainingSamples(config, outliers, run.seed, classes)
        self.validation = ValidationScenes(config, held_back, classes)
        self.far_validation = config.far_validation
        _refuse_shared(self.samples, self.validation)
        self.draw(np.random.default_rng(0), 0)

    def draw(self, rng: np.random.Generator, number: int) -> Scene:
        return self.samples.draw(rng, number)

    @property
    def evaluated(self) -> int:
        return len(self.validation)

    def load_evaluated(self, number: int) -> tuple[NamedScene, NamedScene | None]:
        """A scene with outliers and, with `DataConfig.far_validation`, the same scene with small outliers far away."""
        far = self.validation.load(number, far=True) if self.far_validation else None
        return self.validation.load(number), far


class ValidationScenes:
    """Whole validation scenes with pasted held-back objects, which are the same in every run of a configuration."""

    def __init__(self, config: DataConfig, outliers: OutlierSet, classes: ClassList | None = None) -> None:
        classes = classes or cityscapes_classes()
        self.roles = Roles.of(classes)
        self.mix, self.objects = config.rich_mix, ObjectPool(outliers)
        self.far_mix = replace(self.mix, count=[4, 8], small=1.0, shapes=0.0, pieces=0.0, height=[0.15, 1.0])
        self.scenes = [
            (source, scenes, index)
            for source in config.validation
            for scenes in [_open_source(source, config, classes)]
            for index in range(0, len(scenes), config.validation_every)
        ]
        names = ", ".join(dict.fromkeys(scenes.name for _, scenes, _ in self.scenes))
        self.name = f"{names} with pasted {', '.join(config.held_back) or 'outliers'}"

    def __len__(self) -> int:
        return len(self.scenes)

    def load(self, number: int, far: bool = False) -> NamedScene:
        """Load an image H×W×3 uint8 RGB, its labels H×W uint8 (254 on outliers), and the name of the scene.

        Args:
            number: number of the scene.
            far: whether to paste small outliers far away, in place of outliers as in training.
        """
        source, scenes, index = self.scenes[number]
        scene = _scale_to_height(scenes.load(index), source.height)
        rng = np.random.default_rng([0x7A11D, number])
        mix = self.far_mix if far else replace(self.mix, small=0.0, pieces=0.0)
        horizon = horizon_row(scene[1], self.roles)
        (image, labels), _ = mix.outliers(scene, horizon, self.objects, rng, self.roles)
        labels[labels == LABELLED_OUTLIER] = OUTLIER
        return image, labels, str(scenes.pairs[index][0])

    def clean(self, number: int) -> Scene:
        """Load the stored scene without pasted objects; labelled anomalies are void."""
        _, scenes, index = self.scenes[number]
        image, labels = scenes.load(index)
        labels[labels == LABELLED_OUTLIER] = VOID
        return image, labels


def _open_source(source: SceneSource, config: DataConfig, classes: ClassList) -> SceneSet:
    """Open and check the scenes of a source, and convert them to the classes of the network."""
    listed = None if source.classes is None else load_class_list(source.classes)
    scenes = open_scenes(source.layout, Path(config.root) / source.folder, source.split, listed)
    if config.check:
        check_scenes(scenes)
    scenes = as_classes(scenes, classes, source.mapping)
    labelled = scenes.id_table == OUTLIER
    if source.anomalies and not labelled.any():
        raise PebalError(f"{scenes.name} has no labelled anomalies: its class list names no 'anomaly' ids.")
    return replace(scenes, id_table=np.where(labelled, LABELLED_OUTLIER if source.anomalies else VOID, scenes.id_table))


def _refuse_shared(training: TrainingSamples, validation: ValidationScenes) -> None:
    """Refuse an image that is used for both training and validation.

    Raises:
        PebalError: there is such an image; the message names it.
    """
    learned = {image.resolve() for _, scenes in training.sources for image, _ in scenes.pairs}
    for _, scenes, index in validation.scenes:
        image = scenes.pairs[index][0]
        if image.resolve() in learned:
            raise PebalError(
                f"{image} is listed in both data.scenes and data.validation. Figures on training images are "
                "meaningless, so remove it from one of them."
            )


def anomaly_digests(samples: TrainingSamples) -> list[str]:
    """The first 16 digits of the SHA-256 of each image whose labelled anomalies are learned, sorted.

    Examples:
        >>> import tempfile
        >>> from types import SimpleNamespace
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "0.jpg")
        ...     path.touch()
        ...     scenes = SceneSet("hall", ((path, path),), np.arange(256, dtype=np.uint8))
        ...     anomaly_digests(SimpleNamespace(sources=[(SceneSource("folders", "hall", anomalies=True), scenes)]))
        ['e3b0c44298fc1c14']
    """
    images = {image for source, scenes in samples.sources if source.anomalies for image, _ in scenes.pairs}
    return sorted(file_sha256(image)[:16] for image in images)


def _open_known(folder: str, classes: ClassList) -> ObjectPool:
    """Open prepared people and vehicles, with their labels.

    Raises:
        PebalError: the folder was not prepared with the rule known, or the network lacks a class for one of them.
    """
    known = OutlierSet.open(folder)
    categories = {instance.category for image in known.images for instance in image.instances}
    if strange := sorted(categories - set(KNOWN_LABELS)):
        raise PebalError(
            f"data.known: {folder} contains the category '{strange[0]}', which is not a known class. Prepare the "
            f"folder with 'pebal prepare-coco COCO {folder} --rule known'."
        )
    if missing := sorted(categories - set(classes.names)):
        raise PebalError(
            f"data.known: {folder} contains the category '{missing[0]}', but the network has no class of that name; "
            "leave data.known out."
        )
    return ObjectPool(known, labels={category: classes.names.index(category) for category in categories})


def _scale_to_height(scene: Scene, height: int | None) -> Scene:
    """Scale a scene to a height in pixels and keep the aspect ratio; None leaves the scene unchanged."""
    return scene if height is None else scale_scene(*scene, height / scene[1].shape[0])


def open_outliers(config: DataConfig) -> tuple[OutlierSet, OutlierSet]:
    """Open the outliers for training and those for validation; without held-back categories, both are the whole set.

    Raises:
        PebalError: the folder was not prepared, or one of the two sets is empty.

    Examples:
        >>> import json, tempfile
        >>> from pebal_core.files import write_atomically
        >>> image = {"file": "0.jpg", "instances": [{"number": 1, "category": "dog", "box": [4, 4, 90, 60]}]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     index = json.dumps({"split": "val2017", "rule": "images", "image_folder": folder, "images": [image]})
        ...     for file, content in (("outliers.json", index), ("0.jpg", ""), ("masks/0.png", "")):
        ...         write_atomically(Path(folder, file), content.encode())
        ...     train, validation = open_outliers(DataConfig([], [], folder))
        >>> train.name, train == validation
        ('COCO val2017 by images', True)
    """
    outliers = OutlierSet.open(config.outliers)
    train, held = outliers.hold_back(config.held_back) if config.held_back else (outliers, outliers)
    if config.only:
        train = train.select(lambda instance: instance.category in config.only, f"data.only {', '.join(config.only)}")
    return train, held
