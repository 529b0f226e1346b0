"""The semantic segmentation models of the library transformers (SegFormer, UPerNet, DPT, BEiT, MobileViT, …)."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from dataclasses import fields
from types import ModuleType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..errors import PebalError
from .base import SegmentationNetwork, measure
from .smp import check_encoder

INSTALL = "pip install 'transformers>=5.20'"
HEADS = ("decode_head", "segmentation_head", "head", "decoder")
"""Attributes under which the library's models store the layers after the backbone."""
DROPPED = ("auto_map", "quantization_config", "attn_implementation", "_attn_implementation", "name_or_path")
"""Entries of a published configuration that would make the library load something else."""
GREATEST = 65_536
"""Largest magnitude of a number in a configuration, such as a width, a depth or an image side."""
MODULES = 10_000
"""Most parts of a network. Its construction stops beyond this, because a small configuration can ask for any number."""
NOT_PER_PIXEL = {
    "INSTANCE_SEGMENTATION": "it finds masks of instances and classifies them",
    "UNIVERSAL_SEGMENTATION": "it classifies masks, so no pixel has logits of its own, which its energy needs",
    "OBJECT_DETECTION": "it finds boxes",
    "IMAGE_CLASSIFICATION": "it classifies whole images",
    "DEPTH_ESTIMATION": "it estimates depths",
}
"""Kinds of models that are no per-pixel segmentation, by the library's table that lists them."""


class TransformersNetwork(SegmentationNetwork):
    """A per-pixel segmentation model of transformers, built from its configuration without reading any file.

    The layers before the model's decode head are the trunk. The decode head is the head, which fine-tuning trains. An
    auxiliary head, which is used in training only, is left out. For a model that accepts a single image size, images
    are scaled to that size.

    Args:
        num_outputs: K + 1 channels.
        config: ``model_type`` and the fields of that configuration class, as `described` returns them.
        bgr: whether the model expects the channels in the order blue, green, red; the images given here are RGB anyway.

    Raises:
        PebalError: transformers is not installed, or the configuration is not one of a per-pixel model.

    Examples:
        >>> config = described(published_configuration({"model_type": "segformer", "depths": [1, 1, 1, 1]}))
        >>> TransformersNetwork(num_outputs=6, config=config).features
        ((32, 4), (64, 8), (160, 16), (256, 32))
    """

    head_prefixes = ("decoder.",)

    def __init__(self, num_outputs: int = 20, *, config: dict[str, Any], bgr: bool = False) -> None:
        super().__init__()
        if not isinstance(bgr, bool):
            raise PebalError(f"The argument bgr of a network must be true or false, not {bgr!r:.80}.")
        library = import_transformers()
        settings = _configuration(config)
        settings.num_labels = num_outputs
        with _few_modules():
            model: Any = library.AutoModelForSemanticSegmentation.from_config(settings)
        model.float()
        self.num_outputs, self.bgr = num_outputs, bgr
        self.kind: str = config["model_type"]
        self.encoder, self.decoder = split(model, self.kind)
        self.takes_one = False
        """Whether the decode head takes one map instead of a list."""
        self.fixed_size: tuple[int, int] | None = None
        """(height, width) if the model accepts no other size."""
        patch = max(_side_of(settings, "patch_size"), default=1)
        self.stride = 32 if 32 % patch == 0 else 2 * patch
        self._measure(_side_of(settings, "image_size"))

    def _measure(self, own: list[int]) -> None:
        """Measure the outputs for an image that is not square or, if that fails, for the model's own size."""
        side = math.lcm(self.stride, 64)
        try:
            measure(self, side, 2 * side)
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            if own:
                self.fixed_size, self.stride = (own[0], own[-1]), 1
                with contextlib.suppress(Exception):
                    return measure(self, *self.fixed_size)
            raise PebalError(f"The model {self.kind} does not run with this configuration: {reason:.200}") from error

    def trunk(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.fixed_size is not None and images.shape[-2:] != self.fixed_size:
            images = F.interpolate(images, self.fixed_size, mode="bilinear")
        if self.bgr:
            images = images.flip(1)
        if self.kind == "upernet":
            return tuple(self.encoder.forward_with_filtered_kwargs(images).feature_maps)
        maps = self.encoder(images).logits
        self.takes_one = isinstance(maps, Tensor)
        return (maps,) if isinstance(maps, Tensor) else tuple(maps)

    def head(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.decoder(features[0] if self.takes_one else list(features))


def import_transformers() -> ModuleType:
    """Import the optional library.

    Raises:
        PebalError: the library is missing or older than version 5.

    Examples:
        >>> import_transformers().__name__
        'transformers'
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise PebalError(f"Models of transformers need the package transformers. Run: {INSTALL}.") from error
    if int(transformers.__version__.partition(".")[0]) < 5:
        raise PebalError(
            f"The installed version of the package transformers, {transformers.__version__}, is too old. Run: "
            f"{INSTALL}."
        )
    return transformers


def _check_model_type(kind: Any) -> None:
    """Refuse a model that is no per-pixel segmentation model.

    Raises:
        PebalError: the model is of another kind, which the message names if the library knows it.
    """
    import_transformers()
    from transformers.models.auto import modeling_auto

    tables = {name: getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES") for name in NOT_PER_PIXEL}
    known = modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
    if isinstance(kind, str) and kind in known:
        return
    reason = next((NOT_PER_PIXEL[name] for name, table in tables.items() if kind in [*table]), "the library has none")
    raise PebalError(
        f"'{kind!s:.60}' is not a model with logits for each pixel ({reason}); choose one of: {', '.join(known)}."
    )


def published_configuration(raw: dict[str, Any]) -> Any:
    """Convert the content of a ``config.json``, including older formats, to a configuration object of the library.

    Raises:
        PebalError: the model is no per-pixel model, or an entry would make the library load something else.

    Examples:
        >>> published_configuration({"model_type": "segformer", "depths": [1, 1, 1, 1]}).depths
        [1, 1, 1, 1]
    """
    _check_model_type(raw.get("model_type"))
    from transformers import CONFIG_MAPPING

    raw = {key: value for key, value in raw.items() if key not in DROPPED}
    inner = raw.get("backbone_config")
    if isinstance(inner, dict):
        raw["backbone_config"] = {key: value for key, value in inner.items() if key not in DROPPED}
        if raw["backbone_config"].get("model_type") == "timm_backbone":
            raw["backbone_config"] = timm_backbone(raw["backbone_config"])
    elif raw.get("backbone") is not None:
        raise PebalError(f"it names its backbone ({raw['backbone']!s:.60}) instead of describing it in backbone_config")
    numbers = {key: value for key, value in raw.items() if key not in ("id2label", "label2id")}
    if (key := _unfit(numbers, words=False)) is not None:
        raise PebalError(f"its entry {key!r:.60} is far too large")
    return CONFIG_MAPPING[raw["model_type"]].from_dict(raw)


def described(settings: Any) -> dict[str, Any]:
    """The model type and the fields of a configuration class as JSON types, for `TransformersNetwork`.

    Examples:
        >>> values = described(published_configuration({"model_type": "segformer"}))
        >>> values["model_type"], values["hidden_sizes"]
        ('segformer', [32, 64, 160, 256])
    """
    values: dict[str, Any] = {"model_type": settings.model_type}
    for name in _own_fields(type(settings)):
        value = getattr(settings, name, None)
        if hasattr(value, "model_type"):
            value = described(value)
        values[name.removeprefix("_")] = list(value) if isinstance(value, tuple) else value
    return values


def _configuration(config: Any) -> Any:
    """Convert the result of `described`, which may come from a crafted file, to a configuration object of the library.

    Raises:
        PebalError: an entry is invalid; the message names it.
    """
    if not isinstance(config, dict):
        raise PebalError(f"The config of a transformers network must be a dictionary, not {config!r:.80}.")
    _check_model_type(config.get("model_type"))
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

    def made(values: dict[str, Any]) -> Any:
        kind = CONFIG_MAPPING[values["model_type"]]
        known = {name.removeprefix("_") for name in _own_fields(kind)}
        given = {name: value for name, value in values.items() if name not in ("model_type", "backbone_config")}
        unknown = next((name for name in given if name not in known), None)
        unknown = _unfit(given, words=True) if unknown is None else unknown
        if unknown is not None:
            value = given.get(unknown)
            raise PebalError(
                f"A {values['model_type']} network has no entry {unknown!r:.80} of {value!r:.80} in its config."
            )
        inner = values.get("backbone_config")
        if inner is None:
            return kind(**given)
        if not isinstance(inner, dict) or inner.get("model_type") not in [*MODEL_FOR_BACKBONE_MAPPING_NAMES]:
            raise PebalError(
                f"The backbone_config of a network does not describe a backbone of transformers: {inner!r:.80}."
            )
        if inner["model_type"] == "timm_backbone":
            inner = timm_backbone(inner)
        return kind(**given, **{"backbone_config": made(inner)})

    return made(config)


def _own_fields(kind: type) -> list[str]:
    """Fields of a configuration class that define the network, without the fields that every configuration has."""
    from transformers import PreTrainedConfig

    common = {field.name for field in fields(PreTrainedConfig)}
    return [field.name for field in fields(kind) if field.name not in common]


def timm_backbone(values: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a timm backbone, whose name is reduced to one of timm's own without a tag.

    Raises:
        PebalError: the name is unknown, so the library would look it up online or in a folder.

    Examples:
        >>> timm_backbone({"backbone": "resnet18.a1_in1k"})
        {'backbone': 'resnet18'}
    """
    name = str(values.get("backbone")).partition(".")[0]
    check_encoder(f"tu-{name}")
    return {**values, "backbone": name}


def _unfit(value: Any, words: bool, name: str = "") -> str | None:
    """Name of the first entry that is no plain value of a plausible size; None if there is none.

    Args:
        value: the value to check, including its items.
        words: whether strings must be short words, such as the name of an activation.
        name: name of the value.
    """
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else ((name, item) for item in value)
        if len(value) > 1024:
            return name
        return next((found for key, item in items if (found := _unfit(item, words, str(key))) is not None), None)
    if isinstance(value, str):
        return name if words and not (len(value) <= 64 and value.replace("_", "").replace("-", "").isalnum()) else None
    fine = value is None or (isinstance(value, int | float) and -GREATEST <= value <= GREATEST)
    return None if fine else name


def _side_of(settings: Any, name: str) -> list[int]:
    """The side lengths that a configuration or its backbone's configuration gives for a name such as ``image_size``."""
    for part in (settings, getattr(settings, "backbone_config", None)):
        value = getattr(part, name, None)
        if value is not None:
            return list(value) if isinstance(value, list | tuple) else [value]
    return []


def split(model: Any, kind: str) -> tuple[Any, nn.Module]:
    """Split a model of the library into the layers before the decode head, and the decode head.

    The model is taken apart. The first part returns the input of the decode head; for UPerNet it is the backbone.

    Raises:
        PebalError: the model has no decode head.

    Examples:
        >>> import torch
        >>> from pebal_core.networks.base import CountsOnCpu
        >>> settings = published_configuration({"model_type": "segformer", "depths": [1, 1, 1, 1]})
        >>> with torch.device("meta"), CountsOnCpu():
        ...     model = import_transformers().AutoModelForSemanticSegmentation.from_config(settings)
        >>> type(split(model, "segformer")[1]).__name__
        'SegformerDecodeHead'
    """
    name = next((name for name in HEADS if isinstance(getattr(model, name, None), nn.Module)), None)
    if name is None:
        raise PebalError(f"{type(model).__name__} has no decode head of its own; it cannot be used.")
    decoder = getattr(model, name)
    # The upsampling of the logits is removed, because `forward` and the engines do it.
    for part in decoder.modules():
        if isinstance(part, nn.Sequential) and len(part) and isinstance(part[-1], nn.Upsample):
            part[-1] = nn.Identity()
    if kind == "upernet":
        return model.backbone, decoder
    setattr(model, name, nn.Identity())
    model.auxiliary_head = None
    return model, decoder


@contextlib.contextmanager
def _few_modules() -> Iterator[None]:
    """Stop the construction of a network that has too many parts.

    Raises:
        PebalError: the network has more than `MODULES` parts.
    """
    thread, count = threading.get_ident(), 0

    def registered(*_: Any) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > MODULES:
            raise PebalError(f"The config of a network asks for more than {MODULES} layers and parts of layers.")

    hooks = [
        torch_module.register_module_module_registration_hook(registered),
        torch_module.register_module_parameter_registration_hook(registered),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
