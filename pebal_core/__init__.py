"""PEBAL: pixel-wise energy-biased abstention learning for anomaly segmentation (ECCV 2022).

The names below are the public interface; everything else in the submodules may change between versions. They are
imported on first use, so ``import pebal_core`` itself is quick and needs no torch.

Examples:
    >>> import pebal_core
    >>> pebal_core.load_model.__module__
    'pebal_core.model_file'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .class_list import ClassList, KnownClass, load_class_list, register_class_list
    from .data.scenes import SceneSet, register_layout
    from .detector import AnomalyDetector, Result
    from .errors import PebalError
    from .losses import LossConfig, pebal_loss
    from .metrics.pooled import PooledMetrics
    from .metrics.segmentation import SegmentationMetrics
    from .model_file import load_model, save_model
    from .model_info import ModelInfo
    from .networks import build_network, register_network
    from .objects import ObjectRules, find_objects
    from .scores import free_energy

__version__ = "0.1.0"
__all__ = [
    "AnomalyDetector",
    "ClassList",
    "KnownClass",
    "LossConfig",
    "ModelInfo",
    "ObjectRules",
    "PebalError",
    "PooledMetrics",
    "Result",
    "SceneSet",
    "SegmentationMetrics",
    "__version__",
    "build_network",
    "find_objects",
    "free_energy",
    "load_class_list",
    "load_model",
    "pebal_loss",
    "register_class_list",
    "register_layout",
    "register_network",
    "save_model",
]

_MODULES = {
    "AnomalyDetector": "detector",
    "ClassList": "class_list",
    "KnownClass": "class_list",
    "LossConfig": "losses",
    "ModelInfo": "model_info",
    "ObjectRules": "objects",
    "PebalError": "errors",
    "PooledMetrics": "metrics.pooled",
    "Result": "detector",
    "SceneSet": "data.scenes",
    "SegmentationMetrics": "metrics.segmentation",
    "build_network": "networks",
    "load_class_list": "class_list",
    "find_objects": "objects",
    "free_energy": "scores",
    "load_model": "model_file",
    "pebal_loss": "losses",
    "register_class_list": "class_list",
    "register_layout": "data.scenes",
    "register_network": "networks",
    "save_model": "model_file",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
