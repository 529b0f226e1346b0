"""`pebal convert` of a folder or of a name on the Hub: what it takes, and what it refuses with a reason."""

from __future__ import annotations

import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch

from pebal_core.commands.main import main
from pebal_core.errors import PebalError
from pebal_core.model_file import load_model, read_info, save_model
from pebal_core.model_folders import load_folder

from .model_folders import edited, transformers, write_folder


def test_what_a_folder_says_becomes_the_description(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = write_folder(tmp_path / "segformer", "segformer")
    edited(folder, "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(folder), str(out), "--source", "drawn", "--licence", "none", "--seed", "3"]) == 0
    info = read_info(out)
    assert info.class_names == ["road", "car", "tree", "sky", "sign-", "person"]
    assert (info.mean, info.std, info.input_size) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [64, 96])
    assert info.classes.classes[5].group == "human", "what is known of a person is known by the name"
    assert len({tuple(color) for color in info.palette}) == 6
    assert info.origin["file"] == "segformer/model.safetensors" and len(info.origin["sha256"]) == 64
    said = capsys.readouterr()
    assert "6 classes; abstention row drawn (Kaiming normal, seed 3)" in said.out and said.err == ""
    key = "decoder.classifier.weight"
    rows = [load_folder(str(folder), seed=seed)[0].state_dict()[key][6] for seed in (3, 3, 4)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


# -- what cannot be used ----------------------------------------------------------------------------------------


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def config(**changes: Any) -> Callable[[Path], Any]:
    return lambda folder: edited(folder, "config.json", **changes)


def processor(**changes: Any) -> Callable[[Path], Any]:
    return lambda folder: edited(folder, "preprocessor_config.json", **changes)


def names(count: int, hole: int = -1) -> dict[str, str]:
    return {str(n + (n >= hole >= 0)): f"thing {n}" for n in range(count)}


UNUSABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickle alone": (pickled, "only as pytorch_model.bin, a format that can contain code and is never opened"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors in"),
    "cut weights": (lambda folder: os.truncate(folder / "model.safetensors", 9000), "not a complete safetensors file"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "no config.json in"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
    "no processor": (lambda folder: (folder / "preprocessor_config.json").unlink(), "no preprocessor_config.json in"),
    "another scale": (processor(rescale_factor=1 / 127.5), "multiplies pixels by 0.0078"),
    "no scale": (processor(do_rescale=False), "multiplies pixels by 1;"),
    "two means": (processor(image_mean=[0.5, 0.5]), "both must be three numbers"),
    "no deviation": (processor(image_std=[0.5, 0.0, 0.5]), "those of the deviation above zero"),
    "a huge size": (processor(size={"height": 99999, "width": 64}), "sides must be 16 to 8192"),
    "a foreign processor": (processor(image_processor_type="Nothing"), "not describe a processor|cannot be converted"),
    "Mask2Former": (config(model_type="mask2former"), "it classifies masks"),
    "MaskFormer": (config(model_type="maskformer"), "is not a model with logits for each pixel"),
    "OneFormer": (config(model_type="oneformer"), "it classifies masks"),
    "a classifier": (config(model_type="vit"), "it classifies whole images"),
    "a detector": (config(model_type="yolos"), "it finds boxes"),
    "unknown": (config(model_type="my_own", auto_map={"AutoModel": "code.Net"}), "the library has none"),
    "a hole": (config(id2label=names(6, hole=3)), "no number 3, so its numbers have gaps"),
    "too many": (config(id2label=names(255)), "255 classes; labels are stored in 8 bits"),
    "no names": (config(id2label=None), "has no id2label"),
    "fewer names": (config(id2label=names(5)), "has in another shape"),
    "another width": (config(decoder_hidden_size=48), "has in another shape"),
    "enormous": (config(depths=[10**9, 1, 1, 1]), "'depths' is far too large"),
    "many layers": (config(depths=[60000, 1, 1, 1]), "more than 10000 layers"),
    "wide": (config(decoder_hidden_size=60000), "which model.safetensors does not contain"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_cannot_be_used_is_named(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, message = UNUSABLE[case]
    folder, _ = write_folder(tmp_path / "folder", "segformer")
    change(folder)
    assert main(["convert", str(folder), str(tmp_path / "out.safetensors")]) == 1
    said = capsys.readouterr().err
    assert re.search(message, said) and said.count("\n") == 1, said
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": [10**9, 1, 1, 1]}, "has no entry 'depths'"),
        ({"depths": [60000, 60000, 60000, 60000]}, "more than 10000 layers"),
        ({"hidden_sizes": [60000, 60000, 60000, 60000]}, "do not fit the network"),
        ({"hidden_act": "os.system('x')"}, "has no entry 'hidden_act'"),
        ({"auto_map": {"AutoModel": "x--y.Z"}}, "has no entry 'auto_map'"),
        ({"attn_implementation": "org/kernel"}, "has no entry 'attn_implementation'"),
        ({"model_type": "bert"}, "is not a model with logits"),
        ({"model_type": "upernet", "backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:a/b"}}, "no"),
        ({"depths": "x"}, "cannot be built with"),
    ],
    ids=str,
)
def test_a_crafted_configuration_in_a_model_file_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    network, info = load_folder(str(write_folder(tmp_path / "folder", "segformer")[0]))
    info.network_args["config"].update(changes)
    path = tmp_path / "crafted.safetensors"
    save_model(path, network, info)
    with pytest.raises(PebalError, match=message) as refused:
        load_model(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 4}, "its images have 4 channels"),
        ({"activation": "softmax"}, "an activation is applied to its logits"),
        ({"classes": 300}, "it has 300 classes"),
        ({"_model_class": "Nothing"}, "no architecture 'Nothing'"),
    ],
    ids=str,
)
def test_a_folder_of_smp_that_cannot_be_used_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    smp.Unet("resnet18", encoder_weights=None, classes=3, decoder_channels=(32, 16, 8, 8, 8)).save_pretrained(tmp_path)
    edited(tmp_path, "config.json", **changes)
    with pytest.raises(PebalError, match=message):
        load_folder(str(tmp_path))


def test_without_transformers_one_sentence_says_what_to_install(tmp_path: Path) -> None:
    folder, _ = write_folder(tmp_path / "folder", "segformer")
    (tmp_path / "transformers.py").write_text("raise ModuleNotFoundError('No module named transformers')")
    process = start_convert(str(folder), tmp_path, PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[2]}")
    error = process.communicate(timeout=240)[1]
    assert process.returncode == 1 and error.count("\n") == 1
    assert "need the package transformers. Run: pip install 'transformers>=5" in error


# -- the Hub ----------------------------------------------------------------------------------------------------


def start_convert(name: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """`pebal convert` in a process of its own, as the Hub's client reads its address when it is imported."""
    command = [sys.executable, "-m", "pebal_core", "convert", name, str(folder / "out.safetensors")]
    environment = {**os.environ, "HF_HOME": str(folder / "cache"), "HF_HUB_DISABLE_XET": "1", **environment}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A conversion without a connection, which starts before all tests because the Hub's client tries for 25 s."""
    process = start_convert("hf:org/name", tmp_path_factory.mktemp("offline"), HF_ENDPOINT="http://127.0.0.1:9")
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """A server that answers for files as the Hub does."""
    folder, _ = write_folder(tmp_path / "published", "segformer")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = folder / self.path.rpartition("/")[2].partition("?")[0]
            found = self.path.startswith("/org/name/resolve/") and path.is_file()
            content = path.read_bytes() if found else b""
            self.send_response(200 if found else 404)
            self.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
            if not found:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("ETag", f'"{len(content)}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_model_of_the_hub_is_downloaded_and_converted(hub: str, tmp_path: Path) -> None:
    process = start_convert("hf:org/name", tmp_path, HF_ENDPOINT=hub)
    error = process.communicate(timeout=240)[1]
    assert process.returncode == 0, error
    origin = read_info(tmp_path / "out.safetensors").origin
    assert origin["file"] == "hf:org/name/model.safetensors"
    assert origin["source"] == "https://huggingface.co/org/name (0123456789ab)"


@pytest.mark.slow
def test_without_a_connection_one_sentence_says_so(offline: subprocess.Popen[str]) -> None:
    transformers()
    error = offline.communicate(timeout=240)[1]
    assert offline.returncode == 1 and "hf:org/name could not be downloaded" in error, error
    assert error.count("\n") == 1


def test_a_name_that_is_none_reaches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "hf:../x", str(tmp_path / "out.safetensors")]) == 1
    assert "does not name a model of the Hugging Face Hub" in capsys.readouterr().err
