"""DeepLabV3+ on any encoder of segmentation-models-pytorch and timm (the starter, ResNet-101, …)."""

from __future__ import annotations

from typing import cast

import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

from ..errors import PebalError
from .base import SegmentationNetwork


class DeepLabV3Plus(SegmentationNetwork):
    """DeepLabV3+ (Chen et al., ECCV 2018) with atrous separable convolutions and an interchangeable encoder.

    Args:
        num_outputs: K + 1 channels.
        encoder: one of `encoder_names`, such as ``resnet101`` or ``tu-tf_efficientnet_lite0``.
        output_stride: 8 or 16; the encoder's last stages are dilated to keep it.
        decoder_channels: width of the ASPP and of the decoder, 1 to 4096.

    Raises:
        PebalError: an argument that is none of these.

    The head that fine-tuning trains is what follows the concatenation of ASPP and low-level features (the paper's
    ``final``); logits come at a quarter of the input resolution.
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
        # The arguments may come from a file. Other names than these, the library would look up in the network or in a
        # folder.
        if encoder not in encoder_names():
            raise PebalError(
                f"There is no encoder {encoder!r:.80} in the installed segmentation-models-pytorch and timm; take one "
                f"of their names without a source or a tag, such as resnet101 or tu-tf_efficientnet_lite0."
            )
        if type(output_stride) is not int or output_stride not in (8, 16):
            raise PebalError(f"The output_stride of a network is 8 or 16, not {output_stride!r:.80}.")
        if type(decoder_channels) is not int or not 1 <= decoder_channels <= 4096:
            raise PebalError(f"The decoder_channels of a network are 1 to 4096, not {decoder_channels!r:.80}.")
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


def encoder_names() -> list[str]:
    """The encoders that the installed libraries build by themselves: timm's names follow a ``tu-``."""
    return [*smp.encoders.encoders, *(f"tu-{name}" for name in timm.list_models())]
