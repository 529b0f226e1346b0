"""Recognises third-party checkpoints by their content and converts them to model files (``pebal convert``).

===================================  ============================================================================
NVIDIA, DeepLabV3+ WideResNet-38     ``{"state_dict": {"module.…"}}``, 19 classes; the abstention row is random
PEBAL, DeepLabV3+ WideResNet-38      ``{"model": {"branch1.…"}}``, 19 classes and abstention
EdgeNets, ESPNetv2 for Cityscapes    plain state dict, 19 classes and void, which serves as abstention
===================================  ============================================================================

Names may carry any stack of the prefixes that wrappers add. No pickle is executed; a file that holds anything but
tensors and plain values is refused.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .errors import PebalError
from .labels import CITYSCAPES_CLASSES
from .model_file import file_sha256
from .model_info import ModelInfo
from .networks import SegmentationNetwork, build_network

CONTAINERS = ("state_dict", "model")
"""Keys under which training scripts keep the state dict beside their optimizer, epoch and so on."""
PREFIXES = ("module.", "branch1.", "_orig_mod.", "model.")
"""Prefixes that DataParallel, PEBAL, torch.compile and Lightning modules add to a name."""
UNUSED = ("criterion", "dsn", "final2")
"""Prefixes of weights that other projects use in training only."""

CLASSES = len(CITYSCAPES_CLASSES)


class Family(NamedTuple):
    """A network whose public checkpoints are known."""

    network: str
    """Name for `build_network`."""
    title: str
    marker: str
    """Name of a weight that no other network has; its length gives the width of a scalable network."""
    classifier: str
    """Name of the weight with one row per output."""
    outputs: tuple[int, ...]
    """Usable numbers of outputs: K + 1, or K where the abstention row may be drawn at random."""
    extra_output: str
    """Meaning of output K, if there is one."""
    input_size: list[int] | None
    """[height, width] that it was trained for; None if it has no size of its own."""


WIDE_RESNET38 = Family(
    network="deeplabv3plus_wide_resnet38",
    title="DeepLabV3+ WideResNet-38",
    marker="mod1.conv1.weight",
    classifier="final.6.weight",
    outputs=(CLASSES, CLASSES + 1),
    extra_output="abstention",
    input_size=None,
)
ESPNETV2 = Family(
    network="espnetv2",
    title="ESPNetv2",
    marker="base_net.level2_0.act.weight",
    classifier="bu_dec_l4.merge_layer.3.weight",
    outputs=(CLASSES + 1,),
    extra_output="void, used as abstention",
    input_size=[512, 1024],
)

_SAFE_GLOBALS: list[Any] = [
    Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64")),
    # NumPy scalars (for example of the best mIoU) name their constructor differently before and after NumPy 2.
    *((np.float64().__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


class Checkpoint(NamedTuple):
    """Weights under the names that this project's network uses, and the kind of checkpoint they come from."""

    state_dict: dict[str, Tensor]
    family: Family
    network_args: dict[str, Any]
    layout: str
    """The recognised form, in words."""


def load_checkpoint(
    path: str | Path, source: str = "", licence: str = "", seed: int = 0
) -> tuple[SegmentationNetwork, ModelInfo]:
    """Load a third-party checkpoint.

    Args:
        path: the checkpoint file.
        source: where the file came from, for example an address; kept in the description.
        licence: licence of the weights; kept in the description.
        seed: seed of the random abstention row, if the checkpoint has none.

    Returns:
        The network in eval mode on the CPU, and its description, which keeps the file's name and SHA-256.

    Raises:
        PebalError: as for `read_checkpoint`.

    Examples:
        >>> import tempfile
        >>> weights = build_network("espnetv2", num_outputs=20, scale=0.5).state_dict()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": weights}, f"{folder}/espnetv2.pth")
        ...     network, info = load_checkpoint(f"{folder}/espnetv2.pth", licence="MIT")
        >>> info.network, info.network_args, info.origin["file"]
        ('espnetv2', {'scale': 0.5}, 'espnetv2.pth')
    """
    path = Path(path)
    state_dict, family, arguments, layout = read_checkpoint(path, seed)
    with torch.device("meta"):  # skips the initialisation, because every tensor is overwritten
        network = build_network(family.network, num_outputs=CLASSES + 1, **arguments)
    network.to_empty(device="cpu").load_state_dict(state_dict)
    origin = {
        "file": path.name,
        "sha256": file_sha256(path),
        "layout": layout,
        "source": source or "not stated",
    }
    info = ModelInfo(
        network=family.network,
        network_args=arguments,
        input_size=family.input_size,
        licence=licence,
        origin=origin,
    )
    return network.eval(), info


def read_checkpoint(path: str | Path, seed: int = 0) -> Checkpoint:
    """Recognise a checkpoint and convert its names and outputs to this project's form.

    The tensors of a zip-format file stay memory-mapped until they are copied.

    Args:
        path: the checkpoint file.
        seed: seed of the random abstention row, if the checkpoint has none.

    Raises:
        PebalError: the file is missing or truncated, refers to code, or holds another network or number of classes.

    Examples:
        >>> import tempfile
        >>> weights = build_network("espnetv2", num_outputs=20, scale=0.5).state_dict()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(weights, f"{folder}/espnetv2.pth")
        ...     read_checkpoint(f"{folder}/espnetv2.pth").layout
        'ESPNetv2, 19 classes and void, used as abstention'
    """
    path = Path(path)
    state = _strip_prefixes(_find_state_dict(_read(path), path), path)
    family = next((f for f in (WIDE_RESNET38, ESPNETV2) if f.marker in state), None)
    if family is None:
        raise PebalError(
            f"{path} contains another network (its weights start with '{next(iter(state))}'). Only DeepLabV3+ "
            "WideResNet-38 and ESPNetv2 for segmentation can be converted."
        )
    arguments = {"scale": _rows(state, family.marker) / 64} if family is ESPNETV2 else {}
    outputs = _rows(state, family.classifier)
    if outputs not in family.outputs:
        raise PebalError(
            f"{path} is a {family.title} with {outputs} outputs instead of {' or '.join(map(str, family.outputs))}. A "
            f"network with the {CLASSES} Cityscapes classes is needed."
        )
    weights = _fit(state, family, arguments, outputs, path)
    layout = f"{family.title}, {CLASSES} classes and {family.extra_output}"
    if outputs == CLASSES:
        classifier = weights[family.classifier]
        row = torch.empty(1, *classifier.shape[1:])
        nn.init.kaiming_normal_(row, nonlinearity="relu", generator=torch.Generator().manual_seed(seed))
        weights[family.classifier] = torch.cat([classifier.float(), row])
        layout = f"{family.title}, {CLASSES} classes; abstention row drawn (Kaiming normal, seed {seed})"
    return Checkpoint(weights, family, arguments, layout)


def _read(path: Path) -> object:
    """Content of a file written by `torch.save`, without executing anything in it."""
    if not path.is_file():
        raise PebalError(f"There is no checkpoint '{path}'.")
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the errors below say everything that a user needs
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file can raise any exception
        code = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code:
            raise PebalError(
                f"{path} refers to Python code ({code[1]}), which is never executed. Load the file with the code that "
                "wrote it and save only the weights: torch.save(network.state_dict(), …)."
            ) from error
        raise PebalError(
            f"{path} is damaged or is not a PyTorch checkpoint ({type(error).__name__}). Download or copy it again."
        ) from error


def _find_state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """Find the tensors by name inside the dictionaries that a training script put around them."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
            if tensors:
                return tensors
            break
        content = inner
    raise PebalError(
        f"{path} contains no weights. A state dict is needed, either plain or under 'state_dict' or 'model'."
    )


def _strip_prefixes(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Remove the prefixes that wrappers add to the names."""
    prefixes = re.compile(f"^({'|'.join(map(re.escape, PREFIXES))})+")
    stripped = {prefixes.sub("", name): tensor for name, tensor in state.items()}
    if len(stripped) != len(state):
        raise PebalError(f"{path} contains several networks (their names differ only in the prefix). Save one of them.")
    return stripped


def _rows(state: dict[str, Tensor], name: str) -> int:
    """First dimension of a weight; 0 if it is missing or a scalar."""
    return state[name].shape[0] if name in state and state[name].dim() else 0


def _fit(
    state: dict[str, Tensor], family: Family, arguments: dict[str, Any], outputs: int, path: Path
) -> dict[str, Tensor]:
    """Keep exactly the entries that the network has; raise PebalError if names or shapes differ."""
    with torch.device("meta"):
        expected = build_network(family.network, num_outputs=outputs, **arguments).state_dict()
    missing = [key for key in expected if key not in state]
    unknown = [key for key in state if key not in expected and not key.startswith(UNUSED)]
    misshaped = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    for keys, fault in ((missing, "missing"), (unknown, "unknown"), (misshaped, "of another shape")):
        if keys:
            raise PebalError(
                f"{path} does not fit {family.title}: {len(keys)} entries are {fault}; the first is '{keys[0]}'."
            )
    return {key: state[key] for key in expected}
