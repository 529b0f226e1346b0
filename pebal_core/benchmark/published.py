"""Published figures to compare with, in per cent as their authors print them."""

from __future__ import annotations

from dataclasses import dataclass

RECALLED = "as published, not re-read"
"""The note that must accompany every recalled figure."""


@dataclass(frozen=True)
class Published:
    """The figures of one method on one set; None where a figure is not known."""

    set: str
    """Canonical name, as in `pebal_core.data.anomaly_sets`."""
    method: str
    auroc: float | None
    ap: float
    fpr95: float
    recalled: tuple[str, ...] = ()
    """Fields that were recalled from papers; the others were read from a log, a leaderboard file or an issue."""
    siou: float | None = None
    ppv: float | None = None
    f1: float | None = None
    outlier_data: bool | None = None
    """Whether the method was trained with outliers, where the leaderboard says so."""

    def mark(self, field: str) -> str:
        """``R`` for a recalled figure, ``V`` for one that was read."""
        return "R" if field in self.recalled else "V"


_R = ("auroc", "ap", "fpr95")
_LAF, _STATIC, _RA, _LOST = "FishyscapesLostAndFound", "FishyscapesStatic", "RoadAnomaly", "LostAndFound"
_PRE, _PEBAL = "energy of the pre-trained network", "PEBAL, released checkpoint"
_OWN, _META, _RPL, _RBA = "PEBAL, a user's 40-epoch run", "Meta-OoD", "RPL+CoroCL", "RbA Swin-B + outliers"

_VALIDATION = (
    Published(_LAF, _PRE, 93.72, 16.05, 41.78),
    Published(_LAF, _PEBAL, 98.96, 58.81, 4.77),
    Published(_LAF, _OWN, 97.05, 42.09, 16.73),
    Published(_LAF, "MSP", 89.29, 4.59, 40.59, _R),
    Published(_LAF, "max logit", 93.41, 14.59, 42.21, _R),
    Published(_LAF, "entropy", 90.82, 10.36, 40.34, _R),
    Published(_LAF, "SynBoost", 96.21, 60.58, 31.02, _R),
    Published(_LAF, _META, 93.06, 41.31, 37.69, _R),
    Published(_LAF, _RPL, 99.39, 70.61, 2.52, ("fpr95",)),
    Published(_LAF, _RBA, None, 70.81, 6.30),
    Published(_STATIC, _PRE, 95.90, 41.68, 17.78),
    Published(_STATIC, _PEBAL, 99.60, 92.08, 1.52),
    Published(_STATIC, _OWN, 99.39, 88.23, 2.53),
    Published(_STATIC, "MSP", 92.36, 19.09, 23.99, _R),
    Published(_STATIC, "max logit", 95.66, 38.64, 18.26, _R),
    Published(_STATIC, "entropy", 93.14, 26.77, 23.31, _R),
    Published(_STATIC, "SynBoost", 95.87, 66.44, 25.59, _R),
    Published(_STATIC, _META, 97.56, 72.91, 13.57, _R),
    Published(_STATIC, _RPL, 99.73, 92.46, 0.85, _R),
    Published(_RA, _PRE, 73.35, 19.54, 70.17, _R),
    Published(_RA, _PEBAL, 87.63, 45.10, 44.58, ("auroc",)),
    Published(_RA, "MSP", 67.53, 15.72, 71.38, _R),
    Published(_RA, "max logit", 72.78, 18.98, 70.48, _R),
    Published(_RA, "entropy", 68.80, 16.97, 71.10, _R),
    Published(_RA, "SynBoost", 81.91, 38.21, 64.75, _R),
    Published(_RA, _RPL, None, 71.61, 17.74),
    Published(_RA, _RBA, None, 85.42, 6.92),
    Published(_LOST, _PEBAL, 96.89, 72.23, 14.60),
    Published(_LOST, "PEBAL, the paper's unreleased checkpoint", None, 78.29, 0.81),
)

_LEADERBOARD = (  # SegmentMeIfYouCan, April 2026, hidden test images
    ("UNO", True, (96.3, 2.0, 68.5, 55.8, 62.6), (93.2, 0.2, 71.0, 72.2, 77.6)),
    ("AnomDINO+RbA", True, (93.1, 5.6, 56.0, 74.0, 68.9), (97.1, 0.0, 76.7, 93.9, 92.8)),
    ("RbA", True, (94.5, 4.6, 64.9, 47.5, 51.9), (95.1, 0.1, 54.3, 59.1, 57.4)),
    ("Mask2Anomaly", True, (88.7, 14.6, 55.3, 51.7, 47.2), (93.2, 0.2, 55.7, 75.4, 68.1)),
    (_META, True, (85.5, 15.0, 49.2, 39.5, 28.7), (85.1, 0.8, 47.9, 62.6, 48.5)),
    (_RPL, True, (83.5, 11.7, 49.8, 30.0, 30.2), (85.9, 0.6, 52.6, 56.6, 56.7)),
    ("SynBoost", True, (56.4, 61.9, 34.7, 17.8, 10.0), (71.3, 3.2, 44.3, 41.8, 37.6)),
    ("PEBAL", True, (49.1, 40.8, 38.9, 27.2, 14.5), (5.0, 12.7, 29.9, 7.6, 5.5)),
    ("MSP", False, (28.0, 72.0, 15.5, 15.3, 5.4), (15.7, 16.6, 19.7, 15.9, 6.3)),
)

PUBLISHED: tuple[Published, ...] = _VALIDATION + tuple(
    Published(name, method, None, ap, fpr95, (), siou, ppv, f1, outlier_data)
    for method, outlier_data, *tracks in _LEADERBOARD
    for name, (ap, fpr95, siou, ppv, f1) in zip(("RoadAnomaly21", "RoadObstacle21"), tracks)
)
"""The network is WideResNet-38 unless the method says otherwise. Figures on Fishyscapes are of the validation sets, on
LostAndFound of the test set. Figures on RoadAnomaly21 and RoadObstacle21 are of the leaderboard's hidden test
images, not of the validation images, which anyone can evaluate."""

PUBLISHED_MIOU: dict[str, float] = {"pre-trained": 82.46, "after PEBAL": 81.19}
"""mIoU of the paper's network on the test images of Cityscapes."""


def published_for(name: str) -> list[Published]:
    """The published figures of a set, by its canonical name.

    Examples:
        >>> [(entry.method, entry.ap) for entry in published_for("RoadAnomaly21")][:2]
        [('UNO', 96.3), ('AnomDINO+RbA', 93.1)]
    """
    return [entry for entry in PUBLISHED if entry.set == name]
