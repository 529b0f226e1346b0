"""DeepLabV3+ on any encoder of segmentation-models-pytorch and timm (the starter, ResNet-101, …)."""

from __future__ import annotations

from typing import cast

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from .base import SegmentationNetwork


class DeepLabV3Plus(SegmentationNetwork):
    """DeepLabV3+ (Chen et al., ECCV 2018) with atrous separable convolutions and an interchangeable encoder.

    Args:
        num_outputs: K + 1 channels.
        encoder: name known to segmentation-models-pytorch, such as ``resnet101`` or ``tu-tf_efficientnet_lite0``.
        output_stride: 8 or 16; the encoder's last stages are dilated to keep it.
        decoder_channels: width of the ASPP and of the decoder.

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
