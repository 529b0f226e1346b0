"""The method in plain NumPy, in float64 and without regard for speed: what the committed reference files are made by.

    python -m test.golden.plain        # writes test/golden/*.npz

It shares nothing with `pebal_core`. Gradients are central differences. The files have the form of those in the folder
`shared/golden`, which come from the public implementation, and the same tests read both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from .weights import drawn

OUTLIER, VOID = 254, 255
STEP = 1e-5
"""Of the central differences."""
LOGIT_STRIDE = 5
"""Every fifth row and column of the logits is stored."""

Parts = Mapping[str, float]
Make = Callable[[], dict[str, np.ndarray]]


def free_energy(f: np.ndarray) -> np.ndarray:
    """B×(K+1)×H×W → B×H×W: -log Σ exp of all channels but the last."""
    return -np.log(np.exp(f[:, :-1]).sum(1))


def gaussian(maps: np.ndarray) -> np.ndarray:
    """7×7, sigma 1, borders reflected. B×H×W."""
    bell = np.exp(-0.5 * np.arange(-3, 4) ** 2.0)
    kernel = np.outer(bell, bell) / bell.sum() ** 2
    padded = np.pad(maps, [(0, 0), (3, 3), (3, 3)], mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), (1, 2))
    return (windows * kernel).sum((3, 4))


def losses(f: np.ndarray, target: np.ndarray) -> Parts:
    """The terms of the objective; `f` is B×(K+1)×H×W, `target` B×H×W with 254 for outliers and 255 for void."""
    energy, p = free_energy(f), np.exp(f) / np.exp(f).sum(1, keepdims=True)
    reserve = p[:, -1] / gaussian(energy**2)
    outlier, inlier = target == OUTLIER, target < OUTLIER
    mixed = outlier.any((1, 2))[:, None, None]
    of_label = np.take_along_axis(p, np.where(inlier, target, 0)[:, None], 1)[:, 0]
    abstention = -np.log(of_label + reserve)

    pal_inlier = abstention[inlier & ~mixed].mean() if (inlier & ~mixed).any() else 0.0
    pal_outlier = abstention[inlier & mixed].mean() if (inlier & mixed).any() else 0.0
    hinges = (np.maximum(energy[inlier] + 12, 0) ** 2).mean()
    sparsity = 0.0
    if outlier.any():
        gain = np.moveaxis(p[:, :-1] + reserve[:, None], 1, -1)[outlier]
        pal_outlier -= 0.1 * np.log(np.maximum(gain, 1e-7)).mean()
        hinges = (hinges + (np.maximum(-6 - energy[outlier], 0) ** 2).mean()) / 2
        sparsity = 5e-4 * np.sqrt((energy[outlier] ** 2).sum())
    squares = (np.diff(energy, axis=1) ** 2).sum() + (np.diff(energy, axis=2) ** 2).sum()
    smoothness = 3e-6 / 2 * squares
    ebm = hinges + smoothness + sparsity
    return {
        "energy": ebm,
        "pal_inlier": pal_inlier,
        "pal_outlier": pal_outlier,
        "total": pal_inlier + pal_outlier + 0.1 * ebm,
        "smoothness": smoothness,
        "sparsity": sparsity,
    }


def gradients(f: np.ndarray, target: np.ndarray, parts: list[str]) -> dict[str, np.ndarray]:
    """Of these terms with respect to the logits."""
    found = {part: np.zeros_like(f) for part in parts}
    for index in np.ndindex(f.shape):
        ahead, behind = f.copy(), f.copy()
        ahead[index] += STEP
        behind[index] -= STEP
        after, before = losses(ahead, target), losses(behind, target)
        for part in parts:
            found[part][index] = (after[part] - before[part]) / (2 * STEP)
    return found


def loss_reference() -> dict[str, np.ndarray]:
    """Two images without outliers and one with, of five classes, on some of whose outlier pixels the clamp acts."""
    rng = np.random.default_rng(0)
    f = 3 * rng.standard_normal((3, 6, 6, 7))
    target = rng.integers(0, 5, (3, 6, 7))
    target[rng.random(target.shape) < 0.2] = VOID
    target[2, 2:5, 3:] = OUTLIER
    f[2, 0, 3] -= 30  # a class that is impossible there
    f[2, -1, 3] -= 20  # where nothing abstains either
    f = f.astype(np.float32).astype(np.float64)  # as stored
    parts = ["energy", "pal_inlier", "pal_outlier", "total"]
    slopes = {f"{part}_grad": slope.astype(np.float32) for part, slope in gradients(f, target, parts).items()}
    clean = losses(f[:2], target[:2])["energy"]
    return {
        "logits": f.astype(np.float32),
        "target": target,
        "is_ood": np.array([False, False, True]),
        "energy_no_outlier": np.array(clean),
        **{name: np.array(value) for name, value in losses(f, target).items()},
        **slopes,
    }


class WideResNet38:
    """The paper's network on one image, with weights drawn as they are asked for by name and shape."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.shapes: dict[str, tuple[int, ...]] = {}

    def weight(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        self.shapes[f"branch1.{name}"] = shape
        return drawn(self.seed, f"branch1.{name}", shape)

    def conv(self, name: str, x: np.ndarray, outputs: int, side: int, stride: int = 1, dilation: int = 1) -> np.ndarray:
        """C×H×W → O×h×w, padded so that the size stays at stride 1."""
        kernel = self.weight(f"{name}.weight", (outputs, len(x), side, side))
        reach = dilation * (side // 2)
        padded = np.pad(x, [(0, 0), (reach, reach), (reach, reach)])
        height, width = (-(-length // stride) for length in x.shape[1:])
        result = np.zeros((outputs, height, width))
        for row in range(side):
            for column in range(side):
                y, x0 = row * dilation, column * dilation
                seen = padded[
                    :, y : y + stride * (height - 1) + 1 : stride, x0 : x0 + stride * (width - 1) + 1 : stride
                ]
                result += np.tensordot(kernel[:, :, row, column], seen, 1)
        return result

    def bn_relu(self, name: str, x: np.ndarray) -> np.ndarray:
        weight, bias, mean, variance = (
            self.weight(f"{name}.{part}", (len(x),))[:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        self.weight(f"{name}.num_batches_tracked", ())
        return np.maximum((x - mean) / np.sqrt(variance + 1e-5) * weight + bias, 0)

    def block(self, name: str, x: np.ndarray, widths: tuple[int, ...], stride: int, dilation: int) -> np.ndarray:
        """Residual, activated first: two 3×3, or 1×1, 3×3 and 1×1."""
        activated = self.bn_relu(f"{name}.bn1.0", x)
        sides = (3, 3) if len(widths) == 2 else (1, 3, 1)
        inner = activated
        for number, (side, width) in enumerate(zip(sides, widths), start=1):
            if number > 1:
                inner = self.bn_relu(f"{name}.convs.bn{number}.0", inner)
            first = number == sides.index(3) + 1
            spread = dilation if side == 3 else 1
            inner = self.conv(f"{name}.convs.conv{number}", inner, width, side, stride if first else 1, spread)
        if len(x) == widths[-1] and stride == 1:
            return inner + x
        return inner + self.conv(f"{name}.proj_conv", activated, widths[-1], 1, stride)

    def stage(
        self, number: int, x: np.ndarray, blocks: int, widths: tuple[int, ...], stride: int = 1, dilation: int = 1
    ) -> np.ndarray:
        for block in range(1, blocks + 1):
            x = self.block(f"mod{number}.block{block}", x, widths, stride if block == 1 else 1, dilation)
        return x

    def pyramid(self, x: np.ndarray) -> np.ndarray:
        """ASPP: the global mean, 1×1, and 3×3 at three rates."""
        whole = self.conv("aspp.img_conv.0", x.mean((1, 2), keepdims=True), 256, 1)
        image = np.broadcast_to(self.bn_relu("aspp.img_conv.1", whole), (256, *x.shape[1:]))
        parts = [image]
        for number, (side, rate) in enumerate([(1, 1), (3, 12), (3, 24), (3, 36)]):
            name = f"aspp.features.{number}"
            parts.append(self.bn_relu(f"{name}.1", self.conv(f"{name}.0", x, 256, side, 1, rate)))
        return np.concatenate(parts)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """3×H×W → 20×H×W logits."""
        fine = self.stage(2, max_pool(self.conv("mod1.conv1", image, 64, 3)), 3, (128, 128))
        x = self.stage(3, max_pool(fine), 3, (256, 256))
        x = self.stage(4, x, 6, (512, 512), stride=2)
        x = self.stage(5, x, 3, (512, 1024), dilation=2)
        x = self.stage(6, x, 1, (512, 1024, 2048), dilation=4)
        x = self.stage(7, x, 1, (1024, 2048, 4096), dilation=4)
        context = enlarge(self.conv("bot_aspp", self.pyramid(x), 256, 1), fine.shape[1:])
        x = np.concatenate([self.conv("bot_fine", fine, 48, 1), context])
        for number in (0, 3):
            x = self.bn_relu(f"final.{number + 1}", self.conv(f"final.{number}", x, 256, 3))
        return enlarge(self.conv("final.6", x, 20, 1), image.shape[1:])


def max_pool(x: np.ndarray) -> np.ndarray:
    """3×3 at stride 2, padded by one."""
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1)], constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2].max((3, 4))


def enlarge(x: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """C×h×w → C×H×W, bilinear, corners aligned."""
    for axis, length in enumerate(size, start=1):
        places = np.linspace(0, x.shape[axis] - 1, length)
        below = np.minimum(places.astype(int), x.shape[axis] - 1)
        above = np.minimum(below + 1, x.shape[axis] - 1)
        share = (places - below).reshape([-1 if a == axis else 1 for a in range(3)])
        x = x.take(below, axis) * (1 - share) + x.take(above, axis) * share
    return x


def forward_reference() -> dict[str, np.ndarray]:
    """The network on a picture of few values, which a file of a few kilobytes can hold."""
    seed = 5
    image = np.random.default_rng(seed).integers(-4, 5, (3, 41, 49)) / 2
    network = WideResNet38(seed)
    logits = network(image)
    return {
        "seed": np.array(seed),
        "image": image[None].astype(np.float32),
        "logits": logits[None, :, ::LOGIT_STRIDE, ::LOGIT_STRIDE].astype(np.float32),
        "logit_stride": np.array(LOGIT_STRIDE),
        "anomaly_score": gaussian(free_energy(logits[None]))[0].astype(np.float32),
        "keys": np.array(list(network.shapes)),
        "shapes": np.array([str(shape) for shape in network.shapes.values()]),
    }


def main() -> None:
    folder = Path(__file__).parent
    np.savez_compressed(folder / "losses_seed0.npz", **loss_reference())  # type: ignore[arg-type]
    np.savez_compressed(folder / "wr38_forward_seed5.npz", **forward_reference())  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
