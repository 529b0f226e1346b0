"""The training samples as a pure function of (seed, sample number).

However many workers, processes or restarts there are, sample ``i`` is the same: that is what makes a resumed run
continue identically and a distributed run see the samples of a single one.
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
    """Samples ``start … stop-1`` of an endless numbered stream, shared out over ranks and workers.

    Args:
        make: draws one sample from its own generator and its number.
        seed: of the whole stream.
        start, stop: sample numbers; ``start`` > 0 resumes.
        batch_size: samples of one batch of one rank; batches are dealt to ranks and workers in turn.
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
    """Batches of a stream in their numbered order, prepared in ``workers`` background processes."""
    return DataLoader(
        stream,
        batch_size=stream.batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        drop_last=True,
    )


class NumberedScenes(Dataset[Any]):
    """Scenes in the order of their numbers, each loaded when it is asked for, in the process that asks.

    No loader of PyTorch is needed: every scene has its own size, and an error in a worker would lose its sentence.

    Args:
        load: gives the scene of a number.
        numbers: those of this process.
    """

    def __init__(self, load: Callable[[int], Any], numbers: range) -> None:
        self.load, self.numbers = load, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> Any:
        return self.load(self.numbers[position])


def shuffled_index(seed: int, number: int, length: int) -> int:
    """Index of the scene for a sample number: a fresh permutation of the whole set in every pass over it."""
    epoch, position = divmod(number, length)
    return int(np.random.default_rng([seed, 0x5CE7E, epoch]).permutation(length)[position])
