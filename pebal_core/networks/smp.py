"""The architectures of segmentation-models-pytorch, with any of its own or timm's encoders."""

from __future__ import annotations

import inspect
import math
from typing import Any, cast

import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

from ..errors import PebalError
from .base import SegmentationNetwork, measure

ARCHITECTURES: dict[str, type[nn.Module]] = smp.MODEL_ARCHITECTURES_MAPPING
FOREIGN = ("encoder_name", "encoder_weights")
"""Options of the library that have another name here, or that would make it load a file."""
GREATEST = 4096
"""Largest magnitude of a number among the options, such as a width, a depth or an index."""


class DeepLabV3Plus(SegmentationNetwork):
    """DeepLabV3+ (Chen et al., ECCV 2018) with atrous separable convolutions and an interchangeable encoder.

    Fine-tuning trains the head, which consists of the layers after the concatenation of ASPP and low-level features
    (the paper's ``final``). The logits have a quarter of the input resolution.

    Args:
        num_outputs: K + 1 channels.
        encoder: one of `encoder_names`, such as ``resnet101`` or ``tu-tf_efficientnet_lite0``.
        output_stride: 8 or 16; the encoder's last stages are dilated to keep it.
        decoder_channels: width of the ASPP and of the decoder, 1 to 4096.

    Raises:
        PebalError: an argument is invalid.

    Examples:
        >>> network = DeepLabV3Plus(num_outputs=6, encoder="resnet18")
        >>> network.features, network.logit_stride
        (((128, 4), (48, 4)), 4)
    """

    stride = 16
    head_prefixes = ("fuse.", "classify.")

    def __init__(
        self,
        num_outputs: int = 20,
        encoder: str = "tu-tf_efficientnet_lite0",
        output_stride: int = 16,
        decoder_channels: int = 128,
    ) -> None:
        super().__init__()
        check_encoder(encoder)
        if type(output_stride) is not int or output_stride not in (8, 16):
            raise PebalError(f"The output_stride of a network must be 8 or 16, not {output_stride!r:.80}.")
        if type(decoder_channels) is not int or not 1 <= decoder_channels <= 4096:
            raise PebalError(f"The decoder_channels of a network must be 1 to 4096, not {decoder_channels!r:.80}.")
        model = smp.DeepLabV3Plus(
            encoder_name=encoder,
            encoder_weights=None,
            encoder_output_stride=output_stride,
            decoder_channels=decoder_channels,
            classes=num_outputs,
        )
        self.num_outputs = num_outputs
        self.encoder = cast(nn.Module, model.encoder)
        self.aspp = model.decoder.aspp
        self.up = model.decoder.up
        self.low_level = model.decoder.block1
        self.features = ((decoder_channels, 4), (cast(int, self.low_level[0].out_channels), 4))
        self.fuse = model.decoder.block2
        self.classify = cast(nn.Conv2d, model.segmentation_head[0])

    def trunk(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.encoder(images)
        return self.up(self.aspp(features[-1])), self.low_level(features[2])

    def head(self, features: tuple[Tensor, ...]) -> Tensor:
        context, detail = features
        return self.classify(self.fuse(torch.cat([context, detail], dim=1)))


class SmpNetwork(SegmentationNetwork):
    """Any architecture of segmentation-models-pytorch with any compatible encoder.

    The encoder is the trunk. The decoder and the segmentation head form the head, which fine-tuning trains. The state
    dict uses the library's names.

    Args:
        num_outputs: K + 1 channels.
        architecture: the library's name for it, in upper or lower case: Unet, UnetPlusPlus, MAnet, Linknet, FPN,
            PSPNet, DeepLabV3, DeepLabV3Plus, PAN, UPerNet, Segformer or DPT.
        encoder: one of `encoder_names`, such as ``resnet34``, ``mit_b0`` or ``tu-convnext_tiny``; DPT takes vision
            transformers of timm, such as ``tu-vit_base_patch16_224``.
        options: the architecture's options that start with ``encoder_``, ``decoder_`` or ``psp_``, and timm's
            ``dynamic_img_size``, ``strict_img_size`` and ``img_size``, which allow images of any size here.

    Raises:
        PebalError: an argument is invalid, or the encoder is not compatible with the architecture.

    Examples:
        >>> SmpNetwork(6, "FPN", "resnet18").features[2]
        (64, 4)
    """

    head_prefixes = ("decoder.", "segmentation_head.")

    def __init__(self, num_outputs: int = 20, architecture: str = "unet", encoder: str = "resnet34", **options: Any):
        super().__init__()
        kind = ARCHITECTURES.get(architecture.lower()) if isinstance(architecture, str) else None
        if kind is None:
            names = ", ".join(architecture.__name__ for architecture in ARCHITECTURES.values())
            raise PebalError(f"There is no architecture {architecture!r:.80}; choose one of: {names}.")
        check_encoder(encoder)
        _check_options(kind, options)
        any_size = {"dynamic_img_size": True} if kind is smp.DPT else {}
        if encoder.startswith("tu-swin"):
            any_size = {"strict_img_size": False}
        options = {**any_size, **options}
        model: Any = kind(encoder_name=encoder, encoder_weights=None, classes=num_outputs, **options)
        self.num_outputs = num_outputs
        self.encoder, self.decoder = model.encoder, model.decoder
        # The library's upsampling after the logits is dropped, because `forward` and the engines do it.
        last = model.segmentation_head
        self.segmentation_head = nn.ModuleDict({"head": last.head}) if kind is smp.DPT else nn.Sequential(last[0])
        self.stride = model.encoder.output_stride * {smp.PAN: 8, smp.DPT: 2}.get(kind, 1)
        """PAN halves the last features three more times, DPT once more."""
        self.maps = 0
        """Number of features that are maps; they are followed by tokens of the whole image."""
        try:
            side = math.lcm(self.stride, 64)
            measure(self, side, 2 * side)
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise PebalError(f"{kind.__name__} does not run on the encoder {encoder}: {reason:.200}.") from error

    def trunk(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.encoder(images)
        if not isinstance(features, tuple):
            return tuple(features)
        maps, tokens = features
        self.maps = len(maps)
        return (*maps, *(token for token in tokens if token is not None))

    def head(self, features: tuple[Tensor, ...]) -> Tensor:
        if not isinstance(self.segmentation_head, nn.ModuleDict):
            return self.segmentation_head(self.decoder(list(features)))
        maps, tokens = list(features[: self.maps]), list(features[self.maps :])
        no_tokens: list[None] = [None] * len(maps)
        return self.segmentation_head["head"](self.decoder(maps, tokens or no_tokens))


def _check_options(kind: type[nn.Module], options: dict[str, Any]) -> None:
    """Refuse unknown options and implausible values, because options may come from a file.

    Raises:
        PebalError: an option is invalid; the message names it.
    """
    known = [
        name
        for name in inspect.signature(kind.__init__).parameters
        if name.startswith(("encoder_", "decoder_", "psp_")) and name not in FOREIGN
    ]
    known += ["dynamic_img_size", "strict_img_size", "img_size"]
    for name, value in options.items():
        if name not in known:
            raise PebalError(f"{kind.__name__} has no option {name!r:.80} here; its options are {', '.join(known)}.")
        if not _plain(value):
            raise PebalError(f"The {name} of {kind.__name__} cannot be {value!r:.80}.")


def _plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is a small number, a word, or a short list or dictionary of these."""
    if isinstance(value, list | tuple):
        return depth < 2 and len(value) <= 16 and all(_plain(item, depth + 1) for item in value)
    if isinstance(value, dict):
        return depth < 1 and len(value) <= 8 and all(_plain(item, depth + 1) for item in value.values())
    if isinstance(value, str):
        return value.replace("_", "").isalnum() and len(value) <= 32
    return value is None or (isinstance(value, int | float) and -GREATEST <= value <= GREATEST)


def check_encoder(encoder: Any) -> None:
    """Refuse an encoder outside `encoder_names`, which the library would look up online or in a folder.

    Raises:
        PebalError: there is no such encoder; the message explains the names.

    Examples:
        >>> check_encoder("resnet101")
        >>> check_encoder("resnet102")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        pebal_core.errors.PebalError: There is no encoder 'resnet102' in the installed segmentation-models-pytorch ...
    """
    if encoder not in encoder_names():
        raise PebalError(
            f"There is no encoder {encoder!r:.80} in the installed segmentation-models-pytorch and timm; use one of "
            "their names without a source or a tag, such as resnet101 or tu-tf_efficientnet_lite0."
        )


def encoder_names() -> list[str]:
    """Names of the encoders that the installed libraries can build; timm's have the prefix ``tu-``.

    Examples:
        >>> {"resnet101", "tu-tf_efficientnet_lite0"} <= set(encoder_names())
        True
    """
    return [*smp.encoders.encoders, *(f"tu-{name}" for name in timm.list_models())]
