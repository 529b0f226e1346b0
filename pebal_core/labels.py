"""Class names, palettes and the maps from each data set's ids to Cityscapes trainIds.

The named layouts of public data sets are converted to the ids of the Cityscapes evaluation (19 classes,
https://www.cityscapes-dataset.com). Other classes are defined by a `class_list.ClassList`.
"""

from __future__ import annotations

import numpy as np

VOID = 255
"""Label of an unlabelled pixel, which all losses and metrics ignore."""

OUTLIER = 254
"""Label of a pasted outlier's pixel, which is a training target and never a class."""

LABELLED_OUTLIER = 253
"""Label of a labelled anomaly's pixel, whose weight in training may differ from that of a pasted outlier."""

FIRST_GROUP = 243
"""Labels from here up to `LABELLED_OUTLIER` stand for several classes in training (see `data.partial_labels`)."""

BESIDE_ROAD, VEHICLES, ROADSIDE, FAR, CARS, RIDERS, SIGNS, GREEN, WALLS, ANYTHING = range(FIRST_GROUP, LABELLED_OUTLIER)

MOST_CLASSES = 254
"""Most classes that 8-bit labels can hold beside `OUTLIER` and `VOID`; with group labels or labelled anomalies, the
limit is `FIRST_GROUP`."""

CITYSCAPES_CLASSES: tuple[str, ...] = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
    "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip

CITYSCAPES_PALETTE: tuple[tuple[int, int, int], ...] = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
    (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0),
    (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip

_CITYSCAPES_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

CAMVID_CLASSES: tuple[str, ...] = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
"""The 11 evaluated classes of CamVid in the order of the SegNet label files (id 11 is void)."""

_CAMVID_TRAIN_IDS = (10, 2, 5, 0, 1, 8, 7, 4, 13, 11, 12)


def _table(train_ids: dict[int, int]) -> np.ndarray:
    """Look-up table of 256 uint8 entries; every id that is not named becomes void."""
    table = np.full(256, VOID, np.uint8)
    for source, train_id in train_ids.items():
        table[source] = train_id
    return table


LABEL_ID_TO_TRAIN_ID: np.ndarray = _table({label: i for i, label in enumerate(_CITYSCAPES_LABEL_IDS)})
"""Cityscapes labelIds → trainIds."""

CAMVID_TO_TRAIN_ID: np.ndarray = _table(dict(enumerate(_CAMVID_TRAIN_IDS)))
"""CamVid (SegNet's 11 classes) → trainIds."""

CAMVID_EVALUATED: tuple[int, ...] = _CAMVID_TRAIN_IDS
"""The trainIds that CamVid labels, in the order of `CAMVID_CLASSES`."""

TRAIN_IDS: np.ndarray = _table({train_id: train_id for train_id in range(len(CITYSCAPES_CLASSES))})
"""Lookup table of files that already hold trainIds."""

IDD_LITE_TO_TRAIN_ID: np.ndarray = _table({0: 0, 1: BESIDE_ROAD, 3: VEHICLES, 4: ROADSIDE, 5: FAR, 6: 10})
"""IDD Lite's 7 coarse classes → trainIds and groups of `data.partial_labels`.

The class of living things becomes void, because it includes animals.
"""

_CAMVID_GROUPS = {13: CARS, 12: RIDERS, 7: SIGNS, 8: GREEN, 2: WALLS}

CAMVID_TO_GROUPS: np.ndarray = _table({i: _CAMVID_GROUPS.get(t, t) for i, t in enumerate(_CAMVID_TRAIN_IDS)})
"""CamVid's 11 classes → trainIds, or groups if a class covers several trainIds."""
