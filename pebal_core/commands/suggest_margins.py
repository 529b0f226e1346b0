"""``pebal suggest-margins --config config/train_….yaml`` shows a network's energies and suggests margins.

The energy loss pushes inliers below m_in and outliers above m_out. Margins do not transfer between networks, because
energies scale with the logits. The command suggests the median inlier energy as m_in, so that half of the inliers are
left unchanged, and the 95 % quantile of the inlier energy as m_out, so that outliers are pushed above almost all
inliers.
"""

from __future__ import annotations

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..detector import AnomalyDetector
from ..errors import PebalError
from ..labels import LABELLED_OUTLIER, OUTLIER, VOID
from ..ranges import Whole
from ..training.finetune import FinetuneConfig
from ..training.samples import TrainingSamples, open_outliers
from .train import read_config

BINS = 24
BAR = 28
"""Length of the longest bar in characters."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--config", action="config", help="a configuration of pebal train, whose model and data are used"
    )
    parser.add_argument(
        "--samples", type=Whole(1, 1_000_000), default=100, help="number of training samples to look at"
    )
    parser.add_class_arguments(FinetuneConfig)


def run(args: Namespace) -> None:
    inlier, outlier = _sample_energies(read_config(args), args.samples)
    Console().print(_histogram(inlier, outlier))
    inlier_margin, outlier_margin = suggest(inlier)
    print(f"--loss.inlier_margin {inlier_margin} --loss.outlier_margin {outlier_margin}")


def _sample_energies(config: FinetuneConfig, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Energies in nats of every 7th inlier pixel and of all outlier pixels of the first `count` training samples.

    Returns:
        Two flat arrays, inlier and outlier energies.

    Raises:
        PebalError: the samples hold no inlier or no outlier pixel, or the data cannot be used.
    """
    detector = AnomalyDetector.load(config.model, input_size=(0, 0), smoothing=False)
    samples = TrainingSamples(config.data, open_outliers(config.data)[0], config.trainer.seed, detector.info.classes)
    inlier, outlier = [], []
    for number in track(range(count), "energies"):
        image, labels = samples.draw(np.random.default_rng([config.trainer.seed, number]), number)
        energy = detector(image).energy
        labels = np.where(labels == LABELLED_OUTLIER, OUTLIER, labels)
        inlier.append(energy[(labels != OUTLIER) & (labels != VOID)][::7])
        outlier.append(energy[labels == OUTLIER])
    pooled = np.concatenate(inlier), np.concatenate(outlier)
    if not all(group.size for group in pooled):
        raise PebalError(
            f"The first {count} samples contain no outlier or no inlier pixel. Use more samples with --samples."
        )
    return pooled


def suggest(inlier: np.ndarray) -> tuple[float, float]:
    """Suggest m_in and m_out in nats, rounded to one decimal.

    Examples:
        >>> suggest(np.linspace(-10, 0, 101))
        (-5.0, -0.5)
    """
    median, high = np.quantile(inlier, [0.5, 0.95])
    return round(float(median), 1), round(float(high), 1)


def _histogram(inlier: np.ndarray, outlier: np.ndarray) -> Table:
    """A table of both histograms over the same bins, as shares of the pixels of each group."""
    low, high = np.quantile(np.concatenate([inlier, outlier]), [0.002, 0.998])
    edges = np.linspace(low, high, BINS + 1)
    shares = [np.histogram(group.clip(low, high), edges)[0] / group.size for group in (inlier, outlier)]
    longest = max(share.max() for share in shares)
    table = Table("energy (nats)", "inlier pixels", "outlier pixels", title="share of the pixels of each kind")
    for i in range(BINS):
        bars = ["█" * round(BAR * share[i] / longest) for share in shares]
        table.add_row(f"{edges[i]:7.2f}", *bars)
    return table
