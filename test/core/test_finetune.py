"""`pebal train` and the commands around it, on small synthetic scenes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from safetensors.torch import load_file

from pebal_core.commands import ablate, pretrain, train
from pebal_core.commands.main import main
from pebal_core.commands.parser import make_parser, parse
from pebal_core.commands.train import read_config
from pebal_core.data.partial_labels import resolve_groups
from pebal_core.labels import FAR
from pebal_core.model_file import load_model, read_info, save_model
from pebal_core.networks import EnergyShift, upsample
from pebal_core.scores import free_energy

from .training import log_of, train_options

pytestmark = pytest.mark.slow

CONFIGURATIONS = [p for p in sorted((Path(__file__).parents[2] / "config").glob("*.yaml")) if p.stem != "anomaly"]

Train = Callable[..., Path]


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda p: p.stem)
def test_every_shipped_configuration_is_understood(path: Path) -> None:
    parser, options = ArgumentParser(), ["--config", str(path)]
    if path.stem.startswith("pretrain"):
        pretrain.add_arguments(parser)
        assert parser.instantiate(parser.parse_args([*options, "--data", "CAMVID"])).steps > 0
    else:
        ablate.add_arguments(parser)
        assert read_config(parser.instantiate(parser.parse_args(options))).data.validation


def test_the_help_explains_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--lr LR Learning rate of Adam" in said and "Optimiser steps" in said


def test_former_names_of_options_are_understood(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("rate: 3.0e-4\nstatistics: reference\ntrained: [a.*]\nmodel: m\n")
    data = ["--data.scenes=[]", "--data.validation=[]", "--data.outliers=x"]
    parser = make_parser("pebal train", "")
    train.add_arguments(parser)
    with pytest.warns(FutureWarning) as warned:
        words = ["--config", str(tmp_path / "old.yaml"), "--trunk_rate", "2e-4", "--false_alarms=0.02", *data]
        config = train.read_config(parser.instantiate(parse(parser, words)))
    assert (config.lr, config.backbone_lr, config.target_fpr, config.freeze_bn) == (3e-4, 2e-4, 0.02, False)
    assert config.trainable == ["a.*"]
    assert "The option rate has been renamed to lr" in " ".join(str(one.message) for one in warned)


@pytest.fixture(scope="module")
def trained(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    assert main(train_options(workshop, out)) == 0
    return out


def test_only_the_head_changes_and_no_statistics(workshop: Path, trained: Path) -> None:
    """Freezing by a name that matches nothing would train all, or nothing, in silence."""
    before, after = load_file(workshop / "model.safetensors"), load_file(trained / "last.safetensors")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed, "something was trained"
    assert all(key.startswith(("fuse.", "classify.")) for key in changed)
    assert not any("running" in key or "num_batches" in key for key in changed)


def test_the_averaged_weights_are_evaluated_and_kept(workshop: Path, tmp_path: Path) -> None:
    """The only evaluation is that of the last step: best and last are the same averaged weights."""
    assert main(train_options(workshop, tmp_path, "--trainer.validate_every=4")) == 0
    assert main(train_options(workshop, tmp_path / "plain", "--trainer.validate_every=4", "--ema_decay=0")) == 0
    best, last = load_file(tmp_path / "best.safetensors"), load_file(tmp_path / "last.safetensors")
    plain = load_file(tmp_path / "plain" / "last.safetensors")
    assert all(torch.equal(best[key], last[key]) for key in best)
    assert not all(torch.equal(plain[key], last[key]) for key in last)


def test_a_run_that_forgets_ends_at_the_last_good_state(
    workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, info = load_model(workshop / "model.safetensors")
    with torch.no_grad():
        network.get_parameter("classify.bias")[0] = 5  # most of the road is right
    model = tmp_path / "road.safetensors"
    save_model(model, network, info)
    forgetful = ["--lr=3", "--ema_decay=0", "--trainer.validate_every=1", "--keep_accuracy=0.99", f"--model={model}"]
    assert main(train_options(workshop, tmp_path, *forgetful)) == 0
    assert "Training ends, and the last state before this is kept." in capsys.readouterr().out
    accuracies = log_of(tmp_path, "val_accuracy")
    assert accuracies[0] > 0.1 and accuracies[-1] < 0.99 * accuracies[0] and len(accuracies) == 2
    start, last = load_file(model), load_file(tmp_path / "last.safetensors")
    assert all(torch.equal(start[key], last[key]) for key in start)


def test_the_model_says_how_it_was_made(trained: Path) -> None:
    info = read_info(trained / "best.safetensors")
    assert info.threshold is not None and info.energy_range[0] < info.threshold < info.energy_range[1]
    assert info.training["validation"]["set"] == "CamVid val with pasted cup"
    assert 0 < info.training["validation"]["val_ap"] <= 1
    assert info.training["data"] == "CamVid train (3); outliers: COCO train2017 by images (2 images)"
    assert str(trained) not in info.to_json(), "no path of this machine"
    assert not info.outlier_statistics, "its features are others"
    assert (trained / "log" / "metrics.csv").is_file() and list((trained / "log").glob("events.out.tfevents*"))


def test_a_killed_run_continues_identically(workshop: Path, trained: Path, tmp_path: Path) -> None:
    """kill -9 as soon as the first checkpoint is there; then the same command with resume."""
    command = [sys.executable, "-m", "pebal_core", *train_options(workshop, tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not (tmp_path / "last.ckpt").is_file():
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] < 4, "it was killed on the way"
    assert main(train_options(workshop, tmp_path, "--trainer.resume=true")) == 0
    whole, resumed = load_file(trained / "last.safetensors"), load_file(tmp_path / "last.safetensors")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_two_processes_see_the_losses_of_one(workshop: Path, tmp_path: Path) -> None:
    """Batch 2 on each of two gloo processes equals batch 4 on one, evaluation shared out."""
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "pebal_core",
    ]
    arguments = train_options(workshop, tmp_path / "two")
    done = subprocess.run([*run, *arguments], env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert main(train_options(workshop, tmp_path / "one", "--trainer.batch_size=4")) == 0
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-5)
    for column in ("loss", "val_ap", "val_fpr95", "val_miou"):
        assert log_of(tmp_path / "two", column) == pytest.approx(log_of(tmp_path / "one", column), rel=1e-4)


def test_training_separates_the_energies(workshop: Path, tmp_path: Path) -> None:
    """Large objects of noise before smooth scenes: easy even for a head on random features."""
    mix = {"count": [2, 3], "anywhere": 1.0, "anywhere_height": [0.5, 0.9], "shapes": 0.0, "color": 0.0,
           "harmonise": 0.0, "blur": 0.0, "distractors": 0.0}  # fmt: skip
    more = [f"--data.rich_mix={json.dumps(mix)}", "--data.camera=0", "--data.color=0", "--data.outlier_share=0.9",
            "--data.scale=[1,1]", "--trainer.steps=60", "--trainer.validate_every=60", "--trainer.checkpoint_every=60",
            "--lr=0.01"]  # fmt: skip
    assert main(train_options(workshop, tmp_path, *more)) == 0
    gaps = np.subtract(log_of(tmp_path, "E_out"), log_of(tmp_path, "E_in"))
    assert np.mean(gaps[-3:]) > np.mean(gaps[:1]) + 0.5, "nats between mean outlier and inlier energies"


def test_named_parameters_and_the_reference_protocol(workshop: Path, tmp_path: Path) -> None:
    """Patterns train parts of the trunk; in the reference's training mode the statistics drift."""
    more = ["--trainable=[classify.*, encoder.layer4.*]", "--freeze_bn=false", "--data.mix=anomaly_mix",
            "--data.scale=[0.5,1,2]", "--trainer.steps=2", "--trainer.accumulate=2"]  # fmt: skip
    assert main(train_options(workshop, tmp_path, *more)) == 0
    before, after = load_file(workshop / "model.safetensors"), load_file(tmp_path / "last.safetensors")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    learnt = {key for key in changed if "running" not in key and "num_batches" not in key}
    assert learnt and all(key.startswith(("classify.", "encoder.layer4.")) for key in learnt)
    assert "encoder.bn1.running_mean" in changed


@pytest.mark.parametrize(
    ("more", "own_trunk"),
    [
        ([], False),
        (["--trainable=[classify.*, encoder.layer4.*]"], True),
        (["--freeze_bn=false"], True),
    ],
    ids=["head", "trunk", "statistics"],
)
def test_kept_classes_are_those_of_the_start_and_the_energies_those_that_were_learned(
    workshop: Path, tmp_path: Path, more: list[str], own_trunk: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = [*more, "--lr=0.1", "--keep_classes=true"]
    assert main(train_options(workshop, tmp_path / "plain", *more, "--lr=0.1")) == 0
    assert main(train_options(workshop, tmp_path, *keep, "--trainer.stop_after=2")) == 0
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    started = load_file(workshop / "model.safetensors")
    assert set(stored) == {f"network.{key}" for key in started}, "the checkpoint holds the network that learns, once"
    assert main(train_options(workshop, tmp_path, *keep, "--trainer.resume=true")) == 0
    models = [workshop / "model.safetensors", tmp_path / "plain" / "last.safetensors", tmp_path / "last.safetensors"]
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        start, plain, kept = (network.head(network.trunk(images)) for network in (load_model(m)[0] for m in models))
    assert read_info(models[2]).network_args["own_trunk"] is own_trunk
    assert not torch.equal(start[:, :-1].argmax(1), plain[:, :-1].argmax(1)), "learning moves classes"
    torch.testing.assert_close(kept[:, :-1].softmax(1), start[:, :-1].softmax(1))
    torch.testing.assert_close(free_energy(kept), free_energy(plain))
    torch.testing.assert_close(kept[:, -1], plain[:, -1])
    miou = log_of(tmp_path, "val_miou")
    assert miou == [miou[0]] * len(miou), "what is evaluated is what is kept"
    assert main(train_options(workshop, tmp_path / "again", f"--model={models[2]}")) == 1
    assert "was fine-tuned with keep_classes; start from the model that it was made from" in capsys.readouterr().err


def test_calm_samples_lower_energies_and_change_no_label(workshop: Path, trained: Path, tmp_path: Path) -> None:
    command = train_options(workshop, tmp_path, "--calm_samples=60")
    assert main(command) == 0
    calm, info = load_model(tmp_path / "last.safetensors")
    assert isinstance(calm, EnergyShift) and info.threshold is not None
    images = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        start, after = (upsample(n(images), (64, 96)) for n in (load_model(trained / "last.safetensors")[0], calm))
    assert torch.equal(after[:, :-1].argmax(1), start[:, :-1].argmax(1))
    lowered = free_energy(start) - free_energy(after)
    assert lowered.min() > -1e-4 and lowered.max() > 0.1
    assert main([*command, "--trainer.resume=true"]) == 0
    for name in ("best", "last"):
        assert read_info(tmp_path / f"{name}.safetensors").network_args["functions"] == 1, "not a second one"


def test_nan_stops_with_the_files_named(workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, info = load_model(workshop / "model.safetensors")
    network.classify.weight.data.mul_(1e38)  # finite, but the loss is not
    save_model(tmp_path / "nan.safetensors", network, info)
    assert main(train_options(workshop, tmp_path / "run", f"--model={tmp_path / 'nan.safetensors'}")) == 1
    error = capsys.readouterr().err
    assert "NaN" in error or "not finite" in error
    assert ".jpg" in error


def test_a_full_disk_is_one_sentence_and_keeps_the_last_checkpoint(
    workshop: Path, trained: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands for the full disk: the checkpoint is the first file above it."""
    before = (trained / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(before)
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "from pebal_core.commands.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", limited, *train_options(workshop, tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "last.ckpt could not be written: File too large; free space" in done.stderr.splitlines()[-1]
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert not list(tmp_path.glob(".*.part")), "nothing half-written is left"


def test_bf16_follows_fp32(workshop: Path, trained: Path, tmp_path: Path) -> None:
    """The trunk and the head in bf16, the losses in fp32."""
    assert main(train_options(workshop, tmp_path, "--trainer.precision=bf16-mixed")) == 0
    assert log_of(tmp_path, "loss") == pytest.approx(log_of(trained, "loss"), rel=0.03)
    assert log_of(tmp_path, "val_auroc") == pytest.approx(log_of(trained, "val_auroc"), abs=0.03)


def test_validation_scenes_as_files(workshop: Path, tmp_path: Path) -> None:
    arguments = train_options(workshop, tmp_path / "run")[1:]
    assert main(["paste-outliers", *arguments, f"--to={tmp_path / 'a'}"]) == 0
    assert main(["paste-outliers", *arguments, f"--to={tmp_path / 'b'}", "--split=train"]) == 0
    assert not (tmp_path / "run").exists(), "nothing is trained"
    for folder in ("a", "b"):
        images, labels = (sorted((tmp_path / folder / kind).iterdir()) for kind in ("images", "labels"))
        assert [path.name for path in images] == [path.name for path in labels] and images
        for path in labels:
            pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert pixels is not None and {0, 1} <= set(np.unique(pixels)) <= {0, 1, 255}


def test_group_labels_become_the_most_probable_class_of_the_group() -> None:
    logits = torch.zeros(1, 20, 2, 2)
    logits[0, 8, :, 0], logits[0, 2, :, 1], logits[0, 13] = 3.0, 3.0, 9.0
    target = torch.full((1, 4, 4), FAR)
    target[0, 0] = 255
    assert resolve_groups(target, logits)[0].tolist() == [[255] * 4] + [[8, 8, 2, 2]] * 3
    assert (target[0, 1:] == FAR).all(), "the caller's target stays"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.root=nowhere", "nowhere/camvid/train does not exist"),
        ("--data.outliers=nowhere", "Run 'pebal prepare-coco"),
        (
            "--data.held_back=[zebra]",
            "No outlier of COCO train2017 by images is left for validation with zebra",
        ),
        ("--data.only=[cup]", "No outlier of COCO train2017 by images is left for data.only cup"),
        ("--data.outlier_share=1.0", "outlier_share must lie between 0 and 0.999"),
        ("--trainable=[final.*]", "no parameter matches 'final.*'"),
        ("--trainer.resume=true", "There is nothing to resume"),
        ("--model=nonesuch", "There is no model 'nonesuch'"),
    ],
)
def test_what_cannot_be_used_is_named_before_training(
    workshop: Path, tmp_path: Path, option: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train_options(workshop, tmp_path, option)) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing was begun"


def test_a_checkpoint_of_another_run_is_refused(
    workshop: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "last.ckpt").write_bytes((trained / "last.ckpt").read_bytes())
    assert main(train_options(workshop, tmp_path, "--trainer.resume=true", "--trainer.seed=2")) == 1
    assert "belongs to another run. Its seed is 1, but here it is 2" in capsys.readouterr().err


def test_margins_follow_from_the_energies(workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pebal_core.commands.suggest_margins import suggest

    assert suggest(np.linspace(-20.0, 0.0, 1001)) == (-10.0, -1.0)
    assert main(["suggest-margins", *train_options(workshop, tmp_path)[1:], "--samples=6"]) == 0
    printed = capsys.readouterr().out
    assert "inlier pixels" in printed and "--loss.inlier_margin -" in printed
    assert not list(tmp_path.iterdir())


def test_ablation_compares_variants_and_keeps_what_is_done(workshop: Path, tmp_path: Path) -> None:
    arguments = [
        "ablate",
        *train_options(workshop, tmp_path)[1:],
        "--trainer.steps=2",
        "--one-class=laptop",
        "--variants",
        "AL",
    ]
    assert main(arguments) == 0
    before = (tmp_path / "AL" / "last.safetensors").stat().st_mtime_ns
    assert main([*arguments, "joint, laptop only"]) == 0
    rows = (tmp_path / "ablation.md").read_text().splitlines()
    assert [row.split("|")[1].strip() for row in rows] == ["objective", "---", "AL", "joint, laptop only"]
    assert (tmp_path / "AL" / "last.safetensors").stat().st_mtime_ns == before, "a finished variant is not repeated"
    config = read_info(tmp_path / "AL" / "last.safetensors").training["config"]
    assert config["loss"]["hinge_weight"] == 0 and config["loss"]["penalty"] == 144.0


def test_objectives_of_the_ablation_differ() -> None:
    from pebal_core.commands.ablate import variants
    from pebal_core.losses import LossConfig

    losses = variants(LossConfig(inlier_margin=-9.0), 50.0)
    assert len({str(loss) for loss in losses.values()}) == len(losses) == 10
    assert all(loss.inlier_margin == -9.0 for loss in losses.values()), "the margins of the configuration"
