"""Small models with random weights, written as transformers and segmentation-models-pytorch publish theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pebal_core.networks.smp import ARCHITECTURES

NAMES = ["road", "car", "tree", "sky ", "sign?", "person"]
VIT = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip
STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"], "depths": [1, 1, 1, 1]}
FOLDERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # configuration class, its arguments, arguments of the processor
    "segformer": (
        "Segformer",
        {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 64], "num_attention_heads": [1, 2, 2, 4],
         "decoder_hidden_size": 32},
        {"size": {"height": 64, "width": 96}},
    ),
    "upernet": (
        "UperNet",
        {"backbone_config": {"model_type": "convnext", "hidden_sizes": [16, 32, 48, 64], **STAGES}, "hidden_size": 32},
        {"size": {"height": 64, "width": 96}},
    ),
    "dpt": (
        "DPT",
        {**VIT, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [16, 16, 32, 32], "fusion_hidden_size": 32},
        {"size": {"height": 64, "width": 64}},
    ),
    "beit": (
        "Beit",
        {**VIT, "use_relative_position_bias": True, "out_indices": [1, 2, 3, 4]},
        {"size": {"height": 64, "width": 64}, "do_reduce_labels": True},
    ),
    "mobilenet_v2": (
        "MobileNetV2",
        {"depth_multiplier": 0.25, "output_stride": 8},
        {"crop_size": {"height": 64, "width": 96}},
    ),
    "mobilevit": (
        "MobileViT",
        {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64], "num_attention_heads": 2,
         "aspp_out_channels": 16, "output_stride": 16},
        {"crop_size": {"height": 64, "width": 96}},
    ),
}  # fmt: skip
PROCESSORS = {"upernet": "Segformer"}
NARROW = {"decoder_channels": [32, 16, 16, 8, 8]}
SMP: dict[str, dict[str, Any]] = {
    "unet": {"architecture": "Unet", "encoder": "resnet18", **NARROW},
    "unetplusplus": {"architecture": "unetplusplus", "encoder": "resnet18", **NARROW},
    "manet": {"architecture": "MAnet", "encoder": "resnet18", **NARROW},
    "linknet": {"architecture": "Linknet", "encoder": "resnet18"},
    "fpn": {"architecture": "FPN", "encoder": "tu-convnext_atto", "decoder_pyramid_channels": 32},
    "pspnet": {"architecture": "PSPNet", "encoder": "resnet18", "psp_out_channels": 32},
    "deeplabv3": {"architecture": "DeepLabV3", "encoder": "resnet18", "decoder_channels": 16},
    "deeplabv3plus": {"architecture": "DeepLabV3Plus", "encoder": "resnet18", "decoder_channels": 16},
    "pan": {"architecture": "PAN", "encoder": "resnet18"},
    "upernet": {"architecture": "UPerNet", "encoder": "resnet18", "decoder_channels": 32},
    "segformer": {"architecture": "Segformer", "encoder": "mit_b0", "decoder_segmentation_channels": 32},
    "dpt": {
        "architecture": "DPT", "encoder": "tu-vit_tiny_patch16_224", "decoder_intermediate_channels": [16] * 4,
        "decoder_fusion_channels": 16,
    },
}  # fmt: skip
assert set(SMP) == set(ARCHITECTURES)


def transformers() -> Any:
    return pytest.importorskip("transformers", reason="the optional package transformers is not installed")


def write_folder(folder: Path, kind: str) -> tuple[Path, Any]:
    """What transformers publishes for a small random model, and the model."""
    library = transformers()
    name, arguments, seen = FOLDERS[kind]
    settings = getattr(library, f"{name}Config")(**arguments, id2label=dict(enumerate(NAMES)))
    torch.manual_seed(0)
    model = library.AutoModelForSemanticSegmentation.from_config(settings).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.dim() > 1 and "position" not in key:
                nn.init.xavier_normal_(value)
    library.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    getattr(library, f"{PROCESSORS.get(kind, name)}ImageProcessor")(**seen).save_pretrained(folder)
    return folder, model


def write_smp_folder(folder: Path, kind: str) -> Any:
    """What segmentation-models-pytorch publishes for a small random model, and the model."""
    options = {name: value for name, value in SMP[kind].items() if name not in ("architecture", "encoder")}
    options |= {"dynamic_img_size": True} if kind == "dpt" else {}
    torch.manual_seed(0)
    model: Any = ARCHITECTURES[kind](encoder_name=SMP[kind]["encoder"], encoder_weights=None, classes=6, **options)
    model.eval().save_pretrained(folder)
    return model


def edited(folder: Path, file: str, **changes: Any) -> Path:
    """The folder with other entries in one of its JSON files; None removes one."""
    content = json.loads((folder / file).read_text()) | changes
    content = {key: value for key, value in content.items() if value is not None}
    (folder / file).write_text(json.dumps(content))
    return folder
