"""Damaged and crafted model files: the weights are those that were written, or one sentence says what is wrong."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from pebal_core.checkpoints import read_checkpoint
from pebal_core.errors import PebalError
from pebal_core.integrity import DIGEST_KEY
from pebal_core.model_file import METADATA_KEY, MODELS_FOLDER, load_model, save_model
from pebal_core.model_info import ModelInfo
from pebal_core.networks import build_network

from .commands import refused, run

SMALL: dict[str, Any] = {"scale": 0.5}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_model(path, build_network("espnetv2", **SMALL), ModelInfo("espnetv2", SMALL))
    return path


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


# ---- a table of lies ----


def retyped(name: str, kind: str) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[name].update(dtype=kind)


def reshaped(name: str, shape: list[Any]) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[name].update(shape=shape)


def moved(name: str, *offsets: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[name].update(data_offsets=list(offsets))


WEIGHT = "bu_dec_l1.merge_layer.3.weight"
LIES: dict[str, Callable[[dict[str, Any]], None]] = {
    **{f"F32 as {kind}": retyped(WEIGHT, kind) for kind in ("I32", "U32", "F4", "F64", "F8_E4M3", "BOOL", "X", "")},
    "another shape of as many values": lambda h: h[WEIGHT].update(shape=h[WEIGHT]["shape"][::-1]),
    "a shape of more values": reshaped(WEIGHT, [10**9, 10**9, 1, 1]),
    "a negative shape": reshaped(WEIGHT, [-1, 1, 1, 1]),
    "a shape of words": reshaped(WEIGHT, ["a"]),
    "beyond the end": moved(WEIGHT, 0, 2**63),
    "backwards": moved(WEIGHT, 64, 0),
    "negative": moved(WEIGHT, -8, 8),
    "over another": moved(WEIGHT, 0, 1024),
    "a tensor less": lambda h: h.pop(WEIGHT),
    "a tensor more": lambda h: h.update(more={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
    "another name": lambda h: h.update(other=h.pop(WEIGHT)),
    "no metadata": lambda h: h.pop("__metadata__"),
    "metadata of numbers": lambda h: h.update(__metadata__={"pebal": 3}),
    "another digest": lambda h: h["__metadata__"].update({DIGEST_KEY: "0" * 64}),
    "a description that is none": lambda h: h["__metadata__"].update(pebal="[" * 100_000),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies(lie: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header, data = split(small.read_bytes())
    LIES[lie](header)
    path = tmp_path / "lie.safetensors"
    path.write_bytes(joined(header, data))
    with pytest.raises(PebalError):
        load_model(path)
    assert "lie.safetensors" in refused(["info", str(path)], capsys) or lie in ("a tensor less", "another name")


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda tensors: tensors.update({name: change(tensors[name])})


def with_one(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values.flat[-1] = value
        return values

    return change


VARIANCE = "bu_br_l2.0.running_var"
CRAFTED: dict[str, tuple[Callable[[dict[str, np.ndarray]], None], str]] = {
    "NaN": (changed(WEIGHT, with_one(np.nan)), f"'{WEIGHT}' .* not finite"),
    "infinity": (changed(WEIGHT, with_one(-np.inf)), f"'{WEIGHT}' .* not finite"),
    "NaN as float16": (changed(WEIGHT, lambda v: with_one(np.nan)(v.astype(np.float16))), "not finite"),
    "zero": (changed(WEIGHT, np.zeros_like), f"'{WEIGHT}' .* zero throughout"),
    "a negative variance": (changed(VARIANCE, with_one(-1e-3)), f"'{VARIANCE}' .* negative variances"),
    "integers": (changed(WEIGHT, lambda v: v.astype(np.int64) + 1), f"'{WEIGHT}' is .* int64"),
    "a counter of floats": (
        changed("bu_br_l2.0.num_batches_tracked", lambda v: v.astype(np.float32)),
        "num_batches_tracked' is .* float32",
    ),
}


@pytest.mark.parametrize("what", CRAFTED)
def test_weights_that_no_trained_network_has(what: str, small: Path, tmp_path: Path) -> None:
    """As files without a digest, older or foreign ones, hold them."""
    tensors = load_file(small)
    CRAFTED[what][0](tensors)
    path = tmp_path / "crafted.safetensors"
    save_file(tensors, path, metadata={METADATA_KEY: ModelInfo("espnetv2", SMALL).to_json()})
    with pytest.raises(PebalError, match=CRAFTED[what][1]):
        load_model(path)


def test_types_of_the_same_length_are_told_apart_by_the_digest(tmp_path: Path) -> None:
    """float16 read as bfloat16 or int16, and one value swapped for another that is as plausible."""
    path = tmp_path / "half.safetensors"
    save_model(path, build_network("espnetv2", **SMALL), ModelInfo("espnetv2", SMALL), half=True)
    load_model(path)
    header, data = split(path.read_bytes())
    for kind in ("BF16", "I16", "U16"):
        header[WEIGHT]["dtype"] = kind
        path.write_bytes(joined(header, data))
        with pytest.raises(PebalError, match=f"is stored as {kind}"):
            load_model(path)
    header[WEIGHT]["dtype"] = "F16"
    first = header[WEIGHT]["data_offsets"][0]
    path.write_bytes(joined(header, data[: first + 1] + bytes([data[first + 1] ^ 1]) + data[first + 2 :]))
    with pytest.raises(PebalError, match="have changed since they were written"):
        load_model(path)


def test_older_files_without_a_digest_load(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "old.safetensors"
    save_file(load_file(small), path, metadata={METADATA_KEY: ModelInfo("espnetv2", SMALL).to_json()})
    expected = load_model(small)[0].state_dict()
    assert all(torch.equal(values, expected[name]) for name, values in load_model(path)[0].state_dict().items())
    assert run(["info", str(path)]) == 0 and "stores no digest" in capsys.readouterr().out
    assert run(["info", str(small)]) == 0 and "as they were written" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(MODELS_FOLDER.glob("*.safetensors")), ids=lambda path: path.stem)
def test_shipped_models_carry_a_digest(path: Path) -> None:
    assert DIGEST_KEY in split(path.read_bytes())[0]["__metadata__"]
    load_model(path)


def test_what_a_terminal_obeys_is_never_printed(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.safetensors"
    text = "\x1b]0;title\x07\x1b[2J[bold][/nonsense]\ud800"
    info = ModelInfo("espnetv2", SMALL, licence=text, origin={text: text}, training={"a": {"b": text}})
    save_model(path, load_model(small)[0], info)
    assert run(["info", str(path)]) == 0
    said = capsys.readouterr().out
    assert "\x1b]" not in said and "\x1b[2J" not in said and "[/nonsense]" in said


# ---- mutations ----

JSON_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8), st.just([]), st.just({}),
    st.sampled_from(["F32", "F16", "BF16", "I64", "I32", "F64", "U8", "espnetv2", "deeplabv3plus", "kept_classes"]),
    st.lists(st.integers(-3, 2000), max_size=5),
)  # fmt: skip


def mutate_json(draw: st.DrawFn, value: Any) -> Any:
    """One place of a JSON value deleted, doubled, renamed or replaced."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value)))
        changed = dict(value)
        how = draw(st.sampled_from(["deeper", "deeper", "deeper", "drop", "rename", "add"]))
        if how == "drop":
            del changed[key]
        elif how == "rename":
            changed[draw(st.text(max_size=4)) or key[:-1]] = changed.pop(key)
        elif how == "add":
            changed[draw(st.text(max_size=4))] = draw(JSON_VALUES)
        else:
            changed[key] = mutate_json(draw, value[key])
        return changed
    if isinstance(value, list) and value and draw(st.booleans()):
        index = draw(st.integers(0, len(value) - 1))
        return [*value[:index], mutate_json(draw, value[index]), *value[index + 1 :]]
    if type(value) is int and draw(st.booleans()):
        return value + draw(st.sampled_from([-8, -1, 1, 4, 8, 2**31, 2**63, -(2**63)]))
    return draw(JSON_VALUES)


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Damage to a file: in its header's values, its header's text, its data, its length."""
    kind = draw(st.sampled_from(["header", "header", "description", "description", "text", "bytes", "cut", "length"]))

    def apply(content: bytes) -> bytes:
        header, data = split(content)
        if kind == "header":
            return joined(mutate_json(draw, header), data)
        if kind == "description":
            metadata = header["__metadata__"]
            metadata[METADATA_KEY] = json.dumps(mutate_json(draw, json.loads(metadata[METADATA_KEY])))
            return joined(header, data)
        if kind == "cut":
            return content[: draw(st.integers(0, len(content) - 1))] + draw(st.binary(max_size=16))
        if kind == "length":
            return draw(st.binary(min_size=8, max_size=8)) + content[8:]
        damaged = bytearray(content)
        last = len(content) - len(data) - 1 if kind == "text" else len(content) - 1
        for _ in range(draw(st.integers(1, 4))):
            damaged[draw(st.integers(8, last))] = draw(st.integers(0, 255))
        return bytes(damaged)

    return apply


@pytest.mark.slow
def test_whatever_is_damaged_the_weights_are_those_that_were_written(small: Path, tmp_path: Path) -> None:
    content, path = small.read_bytes(), tmp_path / "mutated.safetensors"
    expected = load_model(small)[0].state_dict()
    ends = {"refused": 0, "loaded": 0}

    @settings(max_examples=400, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(mutations())
    def mutate(mutation: Callable[[bytes], bytes]) -> None:
        path.write_bytes(mutation(content))
        try:
            network, _ = load_model(path)
        except PebalError as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 2000
            ends["refused"] += 1
            return
        ends["loaded"] += 1
        state = network.state_dict()
        assert state.keys() == expected.keys()
        if DIGEST_KEY in split(path.read_bytes())[0].get("__metadata__", {}):
            assert all(torch.equal(values, expected[name]) for name, values in state.items())
        assert all(torch.isfinite(values).all() for values in state.values())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mutate()
    assert ends["refused"] > 200 and ends["loaded"] > 10, ends


@pytest.mark.slow
def test_whatever_is_damaged_in_a_checkpoint_nothing_but_a_sentence_comes(tmp_path: Path) -> None:
    """Both forms of torch.save, bytes changed in the pickled part and elsewhere."""
    with torch.device("meta"):
        names = build_network("espnetv2", num_outputs=20, scale=0.5).state_dict()
    state = {name: torch.zeros((), dtype=like.dtype).expand(like.shape) for name, like in names.items()}
    rng, path = np.random.default_rng(0), tmp_path / "mutated.pth"
    ends = {"refused": 0, "read": 0}
    for zipped in (True, False):
        torch.save({"state_dict": state, "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
        content = path.read_bytes()
        for _ in range(150):
            damaged = bytearray(content)
            for position in rng.integers(0, len(content), rng.integers(1, 12)):
                damaged[position] = rng.integers(256)
            path.write_bytes(damaged)
            try:
                read_checkpoint(path)
                ends["read"] += 1
            except PebalError as error:
                assert len(str(error).splitlines()) == 1
                ends["refused"] += 1
    assert min(ends.values()) > 20, ends


def test_whatever_is_damaged_in_an_onnx_file_its_graph_is_the_one_that_was_written(tmp_path: Path) -> None:
    """Bytes changed, cut and inserted: refused in one sentence, or nothing but the metadata differs."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    from pebal_core.model_file import onnx_with_info
    from pebal_core.onnx_scan import scan

    weights = [onnx.numpy_helper.from_array(np.full((8, 8), n, np.float32), f"w{n}") for n in range(4)]
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=onnx.helper.make_graph([], "t", [], [], weights))
    graph = onnx.helper.make_graph([node], "g", [], [], weights)
    content = onnx_with_info(onnx.helper.make_model(graph).SerializeToString(), ModelInfo("espnetv2", SMALL))
    whole, rng = scan(content, "whole"), np.random.default_rng(0)
    ends = {"refused": 0, "scanned": 0}
    for _ in range(3000):
        damaged = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            position = int(rng.integers(len(damaged)))
            how = rng.integers(4)
            if how == 0:
                del damaged[position : position + int(rng.integers(1, 40))]
            elif how == 1:
                damaged[position:position] = rng.bytes(int(rng.integers(1, 12)))
            else:
                damaged[position % len(damaged)] = int(rng.integers(256))
            damaged = damaged or bytearray(b"x")
        try:
            found = scan(bytes(damaged), "mutated.onnx")
        except PebalError as error:
            assert len(str(error).splitlines()) == 1
            ends["refused"] += 1
            continue
        ends["scanned"] += 1
        assert found.sha256 == whole.sha256 or "pebal.graph.sha256" not in found.metadata
    assert min(ends.values()) > 50, ends
