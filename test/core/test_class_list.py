"""Classes of one's own: the lists, the layout `folders`, mappings, and the way from pretraining to figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

import pebal_core
from pebal_core.adaptation.shapes import write_shapes
from pebal_core.class_list import ClassList, KnownClass, cityscapes_classes, load_class_list, read_mapping
from pebal_core.commands.main import main
from pebal_core.data.placement import CITYSCAPES_ROLES, Roles
from pebal_core.data.scenes import as_classes, check_scenes, open_scenes
from pebal_core.errors import PebalError
from pebal_core.labels import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, LABELLED_OUTLIER, OUTLIER, VOID
from pebal_core.model_file import load_model, read_info, save_model
from pebal_core.model_info import ModelInfo
from pebal_core.objects import ObjectRules
from pebal_core.training.emphasis import Emphasis, PixelWeights

from .scenes import write_folders

FACTORY: dict[str, Any] = {
    "void": [0],
    "anomaly": [99],
    "classes": [
        {"name": "floor", "ids": [1, 2], "color": [128, 64, 128], "group": "flat", "carries_objects": True},
        {"name": "wall", "ids": [3], "color": [70, 70, 70]},
        {"name": "worker", "ids": [7], "color": [220, 20, 60], "group": "human", "stays_calm": True, "movable": True},
    ],
}


def write_list(path: Path, content: Any = FACTORY) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_list_says_what_the_ids_mean(tmp_path: Path) -> None:
    classes = load_class_list(write_list(tmp_path / "factory.yaml"))
    assert classes.name == "factory" and classes.names == ("floor", "wall", "worker")
    assert classes.table[[0, 1, 2, 3, 7, 99, 50]].tolist() == [VOID, 0, 0, 1, 2, OUTLIER, VOID]
    assert classes.groups == {"flat": (0,), "human": (2,)} and classes.flagged("carries_objects") == (0,)
    assert ClassList.from_dict(json.loads(json.dumps(classes.as_dict())), "again") == classes


@pytest.mark.parametrize(
    ("name", "count"), [("cityscapes", 19), ("camvid", 11), ("idd_lite", 7), ("mapillary_vistas", 65), ("bdd100k", 19)]
)
def test_the_shipped_lists(name: str, count: int) -> None:
    classes = load_class_list(name)
    assert len(classes.names) == count and classes.flagged("carries_objects") and classes.flagged("movable")
    assert Roles.of(cityscapes_classes()) == CITYSCAPES_ROLES
    assert cityscapes_classes().names == CITYSCAPES_CLASSES
    assert cityscapes_classes().palette == [list(color) for color in CITYSCAPES_PALETTE]


def changed(place: int | None = None, **values: Any) -> dict[str, Any]:
    content = json.loads(json.dumps(FACTORY))
    (content if place is None else content["classes"][place]).update(values)
    return dict(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(1, ids=[2]), "gives the id 2 to both floor and wall"),
        (changed(anomaly=[0]), "gives the id 0 to both void and anomaly"),
        (changed(1, ids=[300]), "gives wall the id 300; ids must be 0 to 255"),
        (changed(1, name="floor"), "two classes with the name 'floor'"),
        (changed(1, color=[0, 0, 256]), r"color of class 'wall' .* \[0, 0, 256\]"),
        (changed(1, color=[0, 0]), "'color' must be three whole numbers"),
        (changed(1, colour=[0, 0, 0]), "unknown key 'colour'; the known keys are carries_objects, color"),
        (changed(1, movable="yes"), "'movable' must be true or false"),
        (changed(1, ids="3"), "'ids' must be a list of whole numbers"),
        ({"void": [0]}, "lacks 'classes'"),
        ({"classes": []}, "has 0 classes"),
        ({"classes": [{"name": f"c{n}", "ids": [], "color": [0] * 3} for n in range(255)]}, "which allow 1 to 254"),
        ([1, 2], "must be a mapping from names to values"),
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(PebalError, match=message):
        load_class_list(write_list(tmp_path / "bad.yaml", content))


def test_there_is_no_such_list(tmp_path: Path) -> None:
    with pytest.raises(PebalError, match="no class list 'citscapes'; .* camvid, cityscapes, "):
        load_class_list("citscapes")
    with pytest.raises(PebalError, match="no file .*away.yaml"):
        load_class_list(tmp_path / "away.yaml")
    (tmp_path / "broken.yaml").write_text("classes: [")
    with pytest.raises(PebalError, match="cannot be read as a YAML file"):
        load_class_list(tmp_path / "broken.yaml")


def test_a_registered_list_is_known_by_its_name() -> None:
    hall = ClassList("hall of a test", (KnownClass("floor", (0,), (1, 2, 3)),))
    pebal_core.register_class_list(hall)
    assert load_class_list("hall of a test") is hall


def test_a_mapping_has_no_holes(tmp_path: Path) -> None:
    vistas, target = load_class_list("mapillary_vistas"), load_class_list("idd_lite")
    mapping = dict.fromkeys(vistas.names, "void") | {"Road": "drivable", "Car": "vehicles"}
    table = read_mapping(write_list(tmp_path / "m.yaml", mapping), vistas, target)
    assert table[13] == 0 and table[55] == 3 and table[0] == VOID and table[OUTLIER] == OUTLIER
    del mapping["Bird"]
    with pytest.raises(PebalError, match="has no mapping for Bird. "):
        read_mapping(write_list(tmp_path / "hole.yaml", mapping), vistas, target)
    with pytest.raises(PebalError, match="maps 'Brid', but mapillary_vistas has no such class"):
        read_mapping(write_list(tmp_path / "from.yaml", {"Brid": "void"}), vistas, target)
    with pytest.raises(PebalError, match="maps to 'road', which is not a class of idd_lite"):
        read_mapping(write_list(tmp_path / "to.yaml", {"Road": "road"}), vistas, target)


def test_labels_that_the_list_does_not_have_are_counted(tmp_path: Path) -> None:
    classes = load_class_list(write_list(tmp_path / "factory.yaml"))
    scenes = open_scenes("folders", write_folders(tmp_path / "hall", classes, 2), "train", classes)
    check_scenes(scenes)
    labels = cv2.imread(str(scenes.pairs[0][1]), cv2.IMREAD_UNCHANGED)
    assert labels is not None
    labels[0, :5] = 77
    cv2.imwrite(str(scenes.pairs[0][1]), labels)
    with pytest.raises(
        PebalError, match=r"0.png contains the label 77 \(5 pixels\), .* add it to a class or to 'void'"
    ):
        check_scenes(scenes)
    scenes.pairs[1][1].unlink()
    with pytest.raises(PebalError, match="1 of 2 images have no labels; the first is .*1.jpg"):
        open_scenes("folders", tmp_path / "hall", "train", classes)


def test_classes_of_scenes_and_network_must_agree(tmp_path: Path) -> None:
    classes = load_class_list(write_list(tmp_path / "factory.yaml"))
    scenes = open_scenes("folders", write_folders(tmp_path / "hall", classes, 1), "train", classes)
    with pytest.raises(PebalError, match="the 3 classes floor, wall, worker but the network has the 19 classes road"):
        as_classes(scenes, cityscapes_classes())
    mapping = write_list(tmp_path / "m.yaml", {"floor": "road", "wall": "wall", "worker": "person"})
    mapped = as_classes(scenes, cityscapes_classes(), mapping)
    assert mapped.id_table[[1, 3, 7, 99]].tolist() == [0, 3, 11, OUTLIER]
    many = ClassList("many", tuple(KnownClass(f"c{n}", (), (0, 0, 0)) for n in range(250)))
    with pytest.raises(PebalError, match="8 bits leave room next to at most 243 classes"):
        as_classes(mapped.__class__(scenes.name, scenes.pairs, scenes.id_table, classes=many), many)


def test_groups_of_classes_cannot_be_mapped(tmp_path: Path) -> None:
    for folder in ("train", "trainannot"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), np.zeros((8, 8), np.uint8))
    mapping = write_list(tmp_path / "m.yaml", dict.fromkeys(CITYSCAPES_CLASSES, "void"))
    with pytest.raises(PebalError, match="labels of several classes, which cannot be mapped"):
        as_classes(open_scenes("camvid_groups", tmp_path, "train"), load_class_list("camvid"), mapping)


def test_a_model_file_carries_its_list(tmp_path: Path) -> None:
    classes = load_class_list(write_list(tmp_path / "factory.yaml"))
    info = ModelInfo("deeplabv3plus", {"encoder": "resnet18", "decoder_channels": 16}, threshold=-3.0)
    info.use_classes(classes)
    network = pebal_core.build_network(info.network, info.num_outputs, **info.network_args)
    save_model(tmp_path / "model.safetensors", network, info)
    loaded = read_info(tmp_path / "model.safetensors")
    assert loaded.classes == classes and loaded.class_names == list(classes.names)
    assert ObjectRules.for_model(loaded).carriers == (0,)
    weights = PixelWeights(Emphasis(labelled_anomalies=3), classes)
    target = torch.tensor([[[0, 2, LABELLED_OUTLIER]]])
    assert weights.calm == (2,)
    torch.testing.assert_close(weights.of(target), torch.tensor([[[1.0, 10.0, 3.0]]]))
    loaded.class_list["classes"][0]["name"] = "other"
    save_model(tmp_path / "bad.safetensors", network, loaded)
    with pytest.raises(PebalError, match="class_list cannot be"):
        load_model(tmp_path / "bad.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 19, 65])
def test_from_pretraining_to_figures(count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {3: str(write_list(tmp_path / "factory.yaml")), 19: "cityscapes", 65: "mapillary_vistas"}
    listed = names[count]
    classes = load_class_list(listed)
    root = write_folders(tmp_path / "hall", classes, 3)
    out = tmp_path / "out"
    model = out / "model.safetensors"
    network = json.dumps({"encoder": "resnet18", "decoder_channels": 16})
    quick = ["--workers=0", "--accelerator=cpu", "--devices=1", "--batch_size=2", "--steps=2", "--validate_every=2"]
    pretraining = [
        "pretrain", f"--data={root}", "--layout=folders", f"--classes={listed}", f"--out={model}", "--crop=[32,48]",
        "--encoder_weights=null", f"--network_args={network}", *quick,
    ]  # fmt: skip
    assert main(pretraining) == 0, capsys.readouterr().err
    info = read_info(model)
    assert info.class_names == list(classes.names) and info.classes.palette == classes.palette
    scene = {"layout": "folders", "folder": "hall", "classes": listed}
    training = [
        "train", f"--model={model}", f"--out={out / 'run'}", f"--data.root={tmp_path}", "--data.crop=[32,48]",
        f"--data.outliers={write_shapes_folder(tmp_path)}", "--lr=0.001", "--emphasis.labelled_anomalies=2",
        f"--data.scenes={json.dumps([scene | {'anomalies': count == 3}])}", "--data.validation_every=1",
        f"--data.validation={json.dumps([scene | {'split': 'val'}])}", *(f"--trainer.{o[2:]}" for o in quick),
    ]  # fmt: skip
    assert main(training) == 0, capsys.readouterr().err
    trained = read_info(out / "run" / "last.safetensors")
    assert len(trained.training.get("anomaly_images", [])) == (3 if count == 3 else 0)
    benchmark = [
        "benchmark", f"--model={out / 'run' / 'last.safetensors'}", f"--classes={listed}", "--scores=energy",
        "--device=cpu", "--engine=torch",
    ]  # fmt: skip
    assert main([*benchmark, f"--out={out / 'figures'}", f"--dataset=hall-val={root}"]) == 0
    results = json.loads((out / "figures" / "results.json").read_text())
    segmentation = results["hall-val"]["segmentation"]
    assert 0 <= segmentation["miou"] <= 1 and set(segmentation["group_iou"]) == set(classes.groups)
    assert ("hall-val-anomalies" in results) == (count == 3)
    if count == 3:
        assert main([*benchmark, f"--out={out / 'learned'}", f"--dataset=hall-train={root}"]) == 1
        assert "was trained on the anomalies of" in capsys.readouterr().err
        same = f"--data.validation={json.dumps([scene])}"
        shared = [same if option.startswith("--data.validation=") else option for option in training]
        assert main([*shared[:2], f"--out={out / 'shared'}", *shared[3:]]) == 1
        assert "is listed in both data.scenes and data.validation" in capsys.readouterr().err


def write_shapes_folder(root: Path) -> Path:
    write_shapes(root / "shapes")
    return root / "shapes"


def run_example(name: str, *arguments: object, folder: Path) -> str:
    script = Path(__file__).parents[2] / "examples" / name
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(script.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_examples_run(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(2):
        labels = np.zeros((20, 30), np.uint8)
        labels[5:9, 5:9] = 1
        cv2.imwrite(str(tmp_path / f"{number}.png"), labels)
        np.save(tmp_path / f"{number}.npy", labels + rng.normal(0, 0.1, labels.shape).astype(np.float32))
    told = run_example("evaluate_own_scores.py", tmp_path, tmp_path, folder=tmp_path)
    assert told.startswith("AUROC 1.0000, AP 1.0000, FPR95 0.0000 on 2 images")
    listed = write_list(tmp_path / "factory.yaml")
    classes = load_class_list(listed)
    write_folders(tmp_path / "hall", classes, 3)
    told = run_example("score_image.py", tmp_path / "hall" / "images" / "val" / "0.jpg", folder=tmp_path)
    assert "nats, and the alarm threshold is -2.755 nats" in told
    info = ModelInfo("deeplabv3plus", {"encoder": "resnet18", "decoder_channels": 16})
    info.use_classes(classes)
    network = pebal_core.build_network(info.network, info.num_outputs, **info.network_args)
    save_model(tmp_path / "model.safetensors", network, info)
    shapes = write_shapes_folder(tmp_path)
    told = run_example(
        "fine_tune_folder.py", "hall", listed, shapes, "model.safetensors", "run", 2, 64, 96, folder=tmp_path
    )
    assert "run/best.safetensors: AP 0." in told and (tmp_path / "run" / "best.safetensors").is_file()
