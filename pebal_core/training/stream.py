"""Streams training samples, which are a pure function of (seed, sample number).

Sample ``i`` is the same for any number of workers, processes or restarts. A resumed run therefore continues
identically, and a distributed run uses the same samples as a single process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

Sample = tuple[Tensor, Tensor]
"""Image 3×H×W uint8 RGB and target H×W int64."""
NamedScene = tuple[np.ndarray, np.ndarray, str]
"""Image H×W×3 uint8 RGB, labels H×W uint8, and the file of the image."""


class SampleStream(IterableDataset[Sample]):
    """Samples ``start … stop-1`` of an endless numbered stream, distributed over ranks and workers.

    Args:
        make: function that draws a sample from a generator and the sample's number.
        seed: seed of the whole stream.
        start, stop: sample numbers; ``start`` > 0 resumes a stream.
        batch_size: samples per batch and rank; batches are dealt to ranks and workers in turn.
        rank, world_size: number of this process, and number of all processes.

    Examples:
        >>> def numbered(rng, number):
        ...     return np.full((2, 2, 3), number, np.uint8), np.zeros((2, 2), np.uint8)
        >>> stream = SampleStream(numbered, seed=1, start=0, stop=8, batch_size=2, rank=1, world_size=2)
        >>> [int(image[0, 0, 0]) for image, target in stream]
        [2, 3, 6, 7]
    """

    def __init__(
        self,
        make: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]],
        seed: int,
        start: int,
        stop: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.make, self.seed, self.start, self.stop = make, seed, start, stop
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        worker_id, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        share = self.batch_size * self.world_size
        for step, first in enumerate(range(self.start, self.stop, share)):
            if step % workers != worker_id:
                continue
            for number in range(first + self.rank * self.batch_size, first + (self.rank + 1) * self.batch_size):
                image, target = self.make(np.random.default_rng([self.seed, number]), number)
                yield torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(target).long()


def stream_loader(stream: SampleStream, workers: int) -> DataLoader[Sample]:
    """Load the batches of a stream in numbered order, prepared in ``workers`` background processes.

    Examples:
        >>> def numbered(rng, number):
        ...     return np.full((2, 2, 3), number, np.uint8), np.zeros((2, 2), np.uint8)
        >>> loader = stream_loader(SampleStream(numbered, seed=1, start=0, stop=4, batch_size=2), workers=0)
        >>> [images[:, 0, 0, 0].tolist() for images, targets in loader]
        [[0, 1], [2, 3]]
    """
    return DataLoader(
        stream,
        batch_size=stream.batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        drop_last=True,
    )


class NumberedScenes(Dataset[Any]):
    """Scenes in the order of their numbers, each of which is loaded on access in the accessing process.

    PyTorch's loader is not used, because scenes differ in size, and an error in a worker would lose its message.

    Args:
        load: function that loads the scene with a number.
        numbers: numbers of the scenes of this process.

    Examples:
        >>> scenes = NumberedScenes("scene {}".format, range(1, 6, 2))
        >>> len(scenes), scenes[1]
        (3, 'scene 3')
    """

    def __init__(self, load: Callable[[int], Any], numbers: range) -> None:
        self.load, self.numbers = load, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> Any:
        return self.load(self.numbers[position])


def shuffled_index(seed: int, number: int, length: int) -> int:
    """Index of the scene for a sample number, by a new permutation of the whole set in every pass.

    Examples:
        >>> sorted(shuffled_index(seed=0, number=n, length=4) for n in range(4, 8))
        [0, 1, 2, 3]
    """
    epoch, position = divmod(number, length)
    return int(np.random.default_rng([seed, 0x5CE7E, epoch]).permutation(length)[position])
