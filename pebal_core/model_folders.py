"""Converts models that other libraries publish, in a folder or on the Hugging Face Hub, to model files.

===========================  ==================================================================================
transformers                 ``config.json``, ``model.safetensors``, ``preprocessor_config.json``
segmentation-models-pytorch  ``config.json`` and ``model.safetensors``, as its ``save_pretrained`` writes them
===========================  ==================================================================================

Weights are read only from safetensors, and no code in a folder is run. The abstention row is drawn at random.
"""

from __future__ import annotations

import colorsys
import contextlib
import json
import logging
import math
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .class_list import NAME, ClassList, KnownClass, cityscapes_classes
from .errors import PebalError, one_line
from .files import user_path
from .integrity import check_fit
from .labels import CITYSCAPES_CLASSES, MOST_CLASSES, VOID
from .model_file import file_sha256
from .model_info import SIDES, ModelInfo
from .networks import SegmentationNetwork, build_network, describe_network
from .networks.transformers import described, import_transformers, published_configuration, split

HUB = re.compile(r"hf:(\w[\w.-]*/\w[\w.-]*)")
CONFIG, WEIGHTS, PROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
SMP_IGNORED = ("classes", "encoder_name", "encoder_weights", "upsampling")
"""Entries of a segmentation-models-pytorch folder that are handled separately, or that concern the upsampling of the
logits, which the engines do."""


def is_folder(name: str) -> bool:
    """Whether a name stands for a folder or a model on the Hub rather than for a checkpoint file.

    Examples:
        >>> is_folder("hf:nvidia/segformer-b0-finetuned-cityscapes-512-1024"), is_folder("pebal.pth")
        (True, False)
    """
    return name.startswith("hf:") or user_path(name).is_dir()


def load_folder(
    name: str, source: str = "", licence: str = "", seed: int = 0, classes: ClassList | None = None
) -> tuple[SegmentationNetwork, ModelInfo]:
    """Load a model that another library published.

    Args:
        name: a folder, or ``hf:ORG/NAME``, which downloads the necessary files from the Hub.
        source: where the folder came from; kept in the description.
        licence: licence of the weights; kept in the description.
        seed: seed of the random abstention row.
        classes: classes of the outputs, for folders that do not name them.

    Returns:
        The network in eval mode on the CPU, and its description, which keeps its origin.

    Raises:
        PebalError: a file is missing or damaged, or describes a network that cannot be used.

    Examples:
        >>> import segmentation_models_pytorch as smp, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     smp.FPN("mobilenet_v2", encoder_weights=None, classes=19).save_pretrained(folder)
        ...     network, info = load_folder(folder, licence="MIT")
        >>> info.network, info.num_outputs
        ('smp', 20)
    """
    folder = _download(name) if name.startswith("hf:") else user_path(name)
    if name.startswith("hf:"):
        source = source or f"https://huggingface.co/{name[3:]} ({folder.name[:12]})"
    raw = _read_json(folder / CONFIG)
    weights = _read_weights(folder)
    try:
        if "_model_class" in raw:
            info, state = _from_smp(raw, weights, classes)
        else:
            info, state = _from_transformers(folder, raw, weights, classes)
        state, drawn = _with_abstention(state, info, seed)
    except PebalError as error:
        reason = str(error).rstrip(".")
        raise PebalError(f"{name} cannot be converted: {reason}.") from error
    expected = describe_network(info.network, info.num_outputs, **info.network_args)
    arrays = {key: tensor.numpy() for key, tensor in state.items()}
    check_fit(folder / WEIGHTS, info.network, arrays, expected)
    network = build_network(info.network, info.num_outputs, **info.network_args)
    network.load_state_dict(state)
    info.licence = licence
    info.origin = {
        "file": f"{name if name.startswith('hf:') else folder.name}/{WEIGHTS}",
        "sha256": file_sha256(folder / WEIGHTS),
        "layout": f"{info.origin['layout']}, {len(info.class_names)} classes; {drawn}",
        "source": source or "not stated",
    }
    return network.eval(), info


def _download(name: str) -> Path:
    """Download the files of ``hf:ORG/NAME`` into the cache of the Hub's client, and return their folder.

    Raises:
        PebalError: the name is invalid, there is no connection, or the model does not have these files.
    """
    found = HUB.fullmatch(name)
    if found is None:
        raise PebalError(f"'{name:.100}' does not name a model of the Hugging Face Hub; use hf:ORG/NAME.")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs a warning at every attempt
    path = Path()
    for file in (CONFIG, WEIGHTS, PROCESSOR):
        try:
            path = Path(hf_hub_download(found[1], file))
        except Exception as error:  # the client, its network library and the Hub fail in many ways
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                if file == PROCESSOR:  # folders of segmentation-models-pytorch have none
                    continue
                raise PebalError(f"{name} has no {file}, and no other format of a model is read.") from error
            reason = textwrap.shorten(one_line(error), 150, placeholder=" …")
            raise PebalError(
                f"{name} could not be downloaded ({type(error).__name__}: {reason}); check the name and the "
                "connection, or use the folder of a copy."
            ) from error
    return path.parent


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds a dictionary.

    Raises:
        PebalError: the file is missing or no JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PebalError(
            f"There is no {path.name} in {path.parent}, so it is not the folder of a published model."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise PebalError(f"{path} cannot be read as JSON ({error!s:.100}); copy or download it again.") from error
    if not isinstance(content, dict):
        raise PebalError(f"{path} contains no entries; copy or download it again.")
    return content


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of ``model.safetensors``; floats are converted to float32, and integers are kept.

    Raises:
        PebalError: the file is missing or damaged, or the weights are stored only in another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    if not path.is_file():
        others = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".h5", ".json"))
        pickled = [name for name in others if not name.endswith(".json")]
        if any(name.endswith(".safetensors.index.json") for name in others):
            raise PebalError(f"The weights in {folder} are split over several files; write them into one {WEIGHTS}.")
        if pickled:
            raise PebalError(
                f"{folder} has its weights only as {pickled[0]}, a format that can contain code and is never opened. "
                "Load the model with the library that wrote it, and save it as safetensors."
            )
        raise PebalError(f"There is no {WEIGHTS} in {folder}.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise PebalError(
            f"{path} is not a complete safetensors file ({one_line(error)}); copy or download it again."
        ) from error
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise PebalError(f"The tensor '{name}' of {path} contains values that are not finite.")
    return tensors


def _from_smp(
    raw: dict[str, Any], weights: dict[str, Tensor], classes: ClassList | None
) -> tuple[ModelInfo, dict[str, Tensor]]:
    """Description and weights of a segmentation-models-pytorch folder, without the abstention row."""
    if raw.get("in_channels", 3) != 3:
        raise PebalError(f"its images have {raw['in_channels']!r:.20} channels, but cameras here provide 3")
    for name, meaning in (
        ("aux_params", "it also classifies whole images"),
        ("activation", "an activation is applied to its logits"),
    ):
        if raw.get(name) is not None:
            raise PebalError(f"{meaning} ({name} is {raw[name]!r:.40})")
    outputs = raw.get("classes")
    if type(outputs) is not int or not 1 <= outputs <= MOST_CLASSES:
        raise PebalError(f"it has {outputs!r:.20} classes; 1 to {MOST_CLASSES} can be used")
    encoder = str(raw.get("encoder_name", ""))
    arguments = {
        "architecture": raw["_model_class"],
        "encoder": encoder.partition(".")[0] if encoder.startswith("tu-") else encoder,
        **{key: value for key, value in raw.items() if key not in SMP_IGNORED and not key.startswith("_")},
    }
    for key in ("in_channels", "aux_params", "activation"):
        arguments.pop(key, None)
    if classes is None:
        names = CITYSCAPES_CLASSES if outputs == len(CITYSCAPES_CLASSES) else [f"class {n}" for n in range(outputs)]
        classes = _named_classes(names)
    info = ModelInfo("smp", arguments, origin={"layout": f"smp {raw['_model_class']}"})
    _take_classes(info, classes, outputs)
    return info, dict(weights)


def _from_transformers(
    folder: Path, raw: dict[str, Any], weights: dict[str, Tensor], classes: ClassList | None
) -> tuple[ModelInfo, dict[str, Tensor]]:
    """Description and weights of a transformers folder, without the abstention row."""
    library = import_transformers()
    names = _label_names(raw.get("id2label"))
    settings = published_configuration(raw)
    arguments: dict[str, Any] = {"config": described(settings)}
    settings.num_labels = len(names)
    # A network that is much larger than its weights is refused before it is built.
    described_parameters = sum(math.prod(like.shape) for like in _shapes(arguments, len(names)))
    if described_parameters > 2 * sum(tensor.numel() for tensor in weights.values()) + 10**6:
        raise PebalError(
            f"{CONFIG} describes a network of {described_parameters} parameters, which {WEIGHTS} does not contain"
        )
    with _quiet(library):
        kind = library.AutoModelForSemanticSegmentation._model_mapping[type(settings)]
        model, found = kind.from_pretrained(
            None, config=settings, state_dict=weights, output_loading_info=True, ignore_mismatched_sizes=True
        )
    missing = sorted(key for key in found["missing_keys"] if not key.startswith("auxiliary_head"))
    mismatched = sorted(key for key, *_ in found["mismatched_keys"] if not key.startswith("auxiliary_head"))
    for keys, fault in ((missing, "lacks"), (mismatched, "has in another shape")):
        if keys:
            raise PebalError(f"{WEIGHTS} {fault} {len(keys)} tensors of the network; the first is {keys[0]:.100}")
    encoder, decoder = split(model, settings.model_type)
    state = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    state |= {f"decoder.{key}": value for key, value in decoder.state_dict().items()}
    seen = _preprocessing(folder, library)
    if seen.pop("bgr"):
        arguments["bgr"] = True
    layout = f"transformers {type(model).__name__}"
    if unused := len(found["unexpected_keys"]):
        layout += f", {unused} tensors unused"
    info = ModelInfo("transformers", arguments, **seen, origin={"layout": layout})
    _take_classes(info, classes or _named_classes(names), len(names))
    return info, {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _shapes(arguments: dict[str, Any], outputs: int) -> list[Tensor]:
    """The tensors of a transformers network, without values."""
    return list(describe_network("transformers", outputs, **arguments).values())


def _label_names(labels: Any) -> list[str]:
    """The names in ``id2label`` in the order of the logits, converted to valid class names.

    Raises:
        PebalError: there are no names or too many, or a number is missing.

    Examples:
        >>> _label_names({"0": "road", "1": "car"})
        ['road', 'car']
    """
    if not isinstance(labels, dict) or not labels:
        raise PebalError(f"{CONFIG} has no id2label, so the classes of the logits are unknown")
    if len(labels) > MOST_CLASSES:
        raise PebalError(f"id2label has {len(labels)} classes; labels are stored in 8 bits, which allow {MOST_CLASSES}")
    numbers = [str(number) for number in range(len(labels))]
    if missing := [number for number in numbers if number not in labels]:
        raise PebalError(f"id2label has {len(labels)} classes but no number {missing[0]}, so its numbers have gaps")
    names: list[str] = []
    for number in numbers:
        name = re.sub(r"[^\w .,:;/&()'+-]", "-", str(labels[number])).strip()[:56] or f"class {number}"
        names.append(f"{name} ({number})" if name in names else name)
    assert all(NAME.fullmatch(name) for name in names)
    return names


def _named_classes(names: Any) -> ClassList:
    """Class list for names; Cityscapes classes keep their properties, and the others get well-separated colours."""
    known = {one.name: one for one in cityscapes_classes().classes}
    if tuple(names) == CITYSCAPES_CLASSES:
        return cityscapes_classes()
    classes = []
    for number, name in enumerate(names):
        like = known.get(name.lower())
        if like is not None:
            flags = {"carries_objects": like.carries_objects, "stays_calm": like.stays_calm, "movable": like.movable}
            classes.append(KnownClass(name, (number,), like.color, like.group, **flags))
            continue
        red, green, blue = colorsys.hsv_to_rgb(0.618 * number % 1, 0.5 + 0.5 * (number % 2), 0.95 - 0.15 * (number % 3))
        classes.append(KnownClass(name, (number,), (round(255 * red), round(255 * green), round(255 * blue))))
    return ClassList("classes of the model", tuple(classes), () if len(classes) > VOID else (VOID,))


def _take_classes(info: ModelInfo, classes: ClassList, outputs: int) -> None:
    """Set the classes of a description.

    Raises:
        PebalError: the numbers of outputs and classes differ.
    """
    if len(classes.names) != outputs:
        raise PebalError(f"it has {outputs} outputs, but {classes.name} has {len(classes.names)} classes")
    info.use_classes(classes)


def _preprocessing(folder: Path, library: Any) -> dict[str, Any]:
    """Normalisation, input size and channel order that the processor of a transformers folder requires.

    Its option ``do_reduce_labels`` is ignored, because it concerns label files with a background class, which the
    logits do not have.

    Raises:
        PebalError: the processor needs an operation that is not supported here.
    """
    _read_json(folder / PROCESSOR)
    try:
        with _quiet(library):
            processor = library.AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # a bad file can raise any exception
        reason = one_line(error)
        raise PebalError(f"{PROCESSOR} does not describe a processor of transformers ({reason:.150})") from error

    def value(name: str) -> Any:
        return getattr(processor, name, None)

    factor = value("rescale_factor") if value("do_rescale") else 1
    if not isinstance(factor, int | float) or not math.isclose(factor, 1 / 255, rel_tol=1e-4) or value("offset"):
        raise PebalError(f"its processor multiplies pixels by {factor!r:.40}; only 1/255 is supported")
    mean, std = [0.0] * 3, [1.0] * 3
    if value("do_normalize"):
        mean, std = (_three(value(name)) for name in ("image_mean", "image_std"))
        if not mean or not std or min(std) < 1e-6:
            raise PebalError(
                f"its processor normalises by a mean of {value('image_mean')!s:.60} and a deviation of "
                f"{value('image_std')!s:.60}; both must be three numbers, and those of the deviation above zero"
            )
    bgr = bool(value("do_flip_channel_order"))
    return {
        "mean": mean[::-1] if bgr else mean,
        "std": std[::-1] if bgr else std,
        "input_size": _size(processor),
        "bgr": bgr,
    }


def _three(values: Any) -> list[float]:
    """Three finite numbers, or an empty list if the values are invalid."""
    if not isinstance(values, list | tuple) or len(values) != 3:
        return []
    fine = all(isinstance(value, int | float) and abs(value) <= 1e3 for value in values)
    return [float(value) for value in values] if fine else []


def _size(processor: Any) -> list[int] | None:
    """[height, width] to which a processor scales images; None if it keeps their aspect ratio."""
    if getattr(processor, "do_center_crop", None):
        given = getattr(processor, "crop_size", None)
    else:
        given = getattr(processor, "size", None) if getattr(processor, "do_resize", None) else None
    height, width = getattr(given, "height", None), getattr(given, "width", None)
    if height is None or width is None:
        return None
    if not all(SIDES[0] <= side <= SIDES[1] for side in (height, width)):
        raise PebalError(f"its processor makes images of {height}×{width}, but sides must be {SIDES[0]} to {SIDES[1]}")
    return [int(height), int(width)]


def _with_abstention(state: dict[str, Tensor], info: ModelInfo, seed: int) -> tuple[dict[str, Tensor], str]:
    """Add a random abstention row to the weights (Kaiming normal as in `checkpoints`, with zero bias).

    Returns:
        The weights, and a text that describes how the row was drawn.

    Raises:
        PebalError: the weights do not fit the network.
    """
    plain, more = (describe_network(info.network, len(info.class_names) + n, **info.network_args) for n in (0, 1))
    arrays = {key: tensor.numpy() for key, tensor in state.items()}
    check_fit(Path(WEIGHTS), info.network, arrays, plain)
    generator = torch.Generator().manual_seed(seed)
    state = dict(state)
    for key, like in more.items():
        if like.shape == plain[key].shape:
            continue
        row = torch.zeros(1, *like.shape[1:])
        if row.dim() > 1:
            nn.init.kaiming_normal_(row, nonlinearity="relu", generator=generator)
        state[key] = torch.cat([state[key], row])
    return state, f"abstention row drawn (Kaiming normal, seed {seed})"


@contextlib.contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Suppress the progress bars and log messages of transformers, because errors are reported here."""
    library_logging = library.utils.logging
    level, bars = library_logging.get_verbosity(), library_logging.is_progress_bar_enabled()
    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    try:
        yield
    finally:
        library_logging.set_verbosity(level)
        if bars:
            library_logging.enable_progress_bar()
