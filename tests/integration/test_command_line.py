"""What a user types, and what comes of it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsss.data.voc import VOC
from wsss.evaluation import confusion, scores
from wsss.maps.files import read_class_maps
from wsss.maps.fuse import enlarge


def folders(out: Path) -> set[str]:
    return {str(p.parent.relative_to(out)) for p in out.rglob("manifest.json")}


def test_a_sweep_chains_stages_over_seeds_and_is_skipped_when_repeated(program) -> None:
    out = program.out
    sweep = ("run_name=chain", "seed=0,1", "-m", "stage=train,make_cam,eval_cam")
    first = program(*sweep, fresh=True)
    done = [p for p in folders(out) if p.startswith("chain")]
    assert len(done) == 6
    for seed in (0, 1):
        (metrics,) = [p for p in out.rglob("metrics.json") if f"seed={seed}" in str(p)]
        result = json.loads(metrics.read_text())
        assert f"mIoU {result['miou']:.2f}" in first.stdout
        assert 0 < result["miou"] <= result["cam"]["miou_best_threshold"] <= 100
        sheet = Image.open(metrics.parent / "contact_sheet.png")
        assert sheet.width > 400 and len(np.unique(np.asarray(sheet))) > 50
    again = program(*sweep)
    assert again.stdout.count("finished before") == 6


def test_a_sweep_over_keys_that_act_at_test_time_trains_once(program) -> None:
    done = program("run_name=b", "-m", "stage=all", "eval_cam.background=0.2,0.6")
    out = program.out / "b"
    for stage in ("train", "make_cam"):
        assert f"{stage}: taken from out/b/eval_cam.background=0.2/{stage}," in done.stdout
    (one, other) = (out / f"eval_cam.background={b}" for b in (0.2, 0.6))
    assert (other / "train" / "last.ckpt").samefile(one / "train" / "last.ckpt")
    scores = [json.loads((run / "eval_cam" / "metrics.json").read_text()) for run in (one, other)]
    assert scores[0]["cam"]["curve"] == scores[1]["cam"]["curve"]  # of the same maps
    assert scores[0]["miou"] != scores[1]["miou"]
    program("run_name=b", "stage=report")
    assert "eval_cam.background=0.6" in (out / "default" / "report" / "report.html").read_text()


def test_all_runs_the_pipeline_and_the_scores_follow_from_the_stored_maps(
    program, tiny_scenes
) -> None:
    done = program("run_name=whole", "stage=all", "eval_cam.background=0.3", "backbone=resnet18")
    assert "[3/3] eval_cam" in done.stdout
    (metrics,) = (program.out).rglob("metrics.json")
    result = json.loads(metrics.read_text())
    data = VOC(tiny_scenes)
    matrix = np.zeros((data.num_classes + 1,) * 2, dtype=np.int64)
    for name in data.names("train"):
        stored = read_class_maps(metrics.parents[1] / "make_cam" / "maps" / f"{name}.npz")
        assert stored.classes.tolist() == (np.flatnonzero(data.labels([name])[0]) + 1).tolist()
        maps = enlarge(stored.maps["cam"], stored.size)
        background = np.full((1, *maps.shape[1:]), 0.3, dtype=np.float32)
        label = np.array([0, *stored.classes])[np.concatenate([background, maps]).argmax(0)]
        matrix += confusion(data.mask(name), label, data.num_classes + 1)
    assert result["miou"] == pytest.approx(scores(matrix).miou, abs=1e-9)
    rows = (metrics.parents[1] / "train" / "metrics.csv").read_text().splitlines()
    assert "train/loss_cls" in rows[0] and len(rows) > 1


def test_training_is_the_same_without_any_mask(program, tmp_path, tiny_scenes) -> None:
    program("run_name=with", "stage=train")
    blind = tmp_path / "blind"
    shutil.copytree(tiny_scenes, blind)
    for mask in (blind / "SegmentationClass").iterdir():
        mask.write_bytes(b"not a picture")
    program("run_name=without", "stage=train", f"data.root={blind}")
    shutil.rmtree(blind / "SegmentationClass")
    program("run_name=gone", "stage=train", f"data.root={blind}", "logger=none")
    states = {}
    for name in ("with", "without", "gone"):
        (path,) = (program.out / name).rglob("last.ckpt")
        states[name] = torch.load(path, weights_only=True)["state_dict"]
    for key, value in states["with"].items():
        assert torch.equal(value, states["without"][key]), key
        assert torch.equal(value, states["gone"][key]), key


def test_results_of_other_settings_are_kept_unless_overwritten(program) -> None:
    program("run_name=r", "stage=train")
    (checkpoint,) = program.out.rglob("last.ckpt")
    before = checkpoint.read_bytes()
    other = ("run_name=r", "stage=train", "experiment=tiny_other")
    refused = program(*other, check=False)
    assert refused.returncode == 1
    assert "optimizer.lr was 0.1, now 0.05" in refused.stderr
    assert "overwrite=true" in refused.stderr
    assert checkpoint.read_bytes() == before
    program(*other, "overwrite=true")
    assert checkpoint.read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stage=fly"], "stage=fly: unknown; choose all,"),
        (["methd=cam"], "methd"),
        (["method=none_such"], "method=none_such: no such choice; there are cam"),
        (["trainer.max_epoch=3"], "trainer.max_epoch: unknown key"),
        (["trainer.max_epochs=3"], "trainer.max_epochs is called training.max_epochs now"),
        (["data=voc", "stage=train"], "data.root"),
        (["data=voc", "data.root=nowhere", "stage=train"], "nowhere"),
        (["stage=make_cam"], "stage=make_cam needs stage=train"),
        (["stage=eval_cam"], "stage=eval_cam needs stage=make_cam"),
        (["stage=train", "backbone.weights=no.pth"], "backbone.weights=no.pth: no such file"),
        (["stage=make_cam", "checkpoint=no.ckpt"], "checkpoint=no.ckpt: no such file"),
        (["stage=train", "trainer=gpu"], "take trainer.accelerator=cpu"),
        (["stage=train", "optimizer.lr=0.1&"], "write it in quotes: \"optimizer.lr='0.1&'\""),
        (["data.root=My", "Photos"], "Photos: no such stage; settings are key=value, in quotes"),
        (["stage=train", "optimizer.rate=3", "+optimizer.rate=3"], "optimizer.rate"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(program, arguments: list[str], message: str) -> None:
    if arguments[-1] == "trainer=gpu" and torch.cuda.is_available():
        arguments = [*arguments, "trainer.devices=99"]
    fresh = arguments == ["stage=fly"]
    done = program(*arguments, tiny="data=voc" not in arguments, check=False, fresh=fresh)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ") and message in lines[0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=abc", "seed=abc: must be a valid integer"),
        ("data.name=", "data.name: is empty; give a word"),
        ("optimizer.lr=abc", "optimizer.lr=abc: must be a valid number"),
        ("data.scales=1.0", "data.scales=1.0: must be a valid tuple"),
        ("training.max_epochs=three", "training.max_epochs=three: must be a valid integer"),
        ("trainer.memory_format=rows", "trainer.memory_format=rows: must be 'auto', "),
        ("trainer.precision=17", "trainer.precision=17: must be 'auto', "),
        ("eval_cam.background=2", "eval_cam.background=2: must be less than or equal to 1"),
        ("+method.bank.sise=3", "method.bank.sise: unknown key; is 'size' meant?"),
        ("+segmentation.train.crop=3", "segmentation.train.crop: unknown key; is 'crop_size' "),
        ("+refine.labels.crf.x=3", "refine.labels.crf.x: unknown key; there are gaussian_sxy, "),
    ],
)
def test_a_wrong_value_is_told_before_data_or_weights_are_touched(
    program, override: str, message: str
) -> None:
    """Neither the data nor the weights are there: whoever looks for them says something else."""
    settings = ("data=voc", "data.root=nowhere", "method=cpal", "backbone.weights=no.pth")
    done = program(*settings, "stage=train", override, tiny=False, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1
    assert not list(program.out.rglob("started.json"))


def test_a_diverged_training_ends_as_failed_and_keeps_no_bad_checkpoint(program) -> None:
    rates = ("optimizer.lr=1e6", "optimizer.head_lr=1e6")
    done = program("stage=train", "method=sipe", *rates, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    told = re.match(r"error: the loss (\w+( and \w+)*) is no number at step (\d+): ", line)
    assert told and set(told[1].split(" and ")) <= {"cls", "gsc"} and 1 <= int(told[3]) <= 6
    assert "lower optimizer.lr and optimizer.head_lr or gradient_clip_val, now 1" in line
    for path in program.out.rglob("last.ckpt"):  # of an epoch that was good
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())
        assert f"the last good checkpoint is {path}" in line
    assert not list(program.out.rglob("train/manifest.json"))
    after = program("stage=make_cam", "method=sipe", *rates, check=False)
    assert after.returncode == 1 and "needs stage=train" in after.stderr


def test_debug_shows_the_traceback(program) -> None:
    done = program("stage=fly", "debug=default", tiny=False, check=False, fresh=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "stage=fly" in done.stderr


def test_a_failed_job_of_a_sweep_is_told_and_the_others_stand(program) -> None:
    sweep = ("stage=train", "optimizer.momentum=0,0.5", "backbone.weights=no,null")
    done = program("run_name=half", "-m", *sweep, check=False)
    assert done.returncode == 1
    assert done.stderr.count("backbone.weights=no: no such file") >= 2
    assert len(list((program.out).rglob("last.ckpt"))) == 2


def test_help_lists_stages_methods_data_sets_and_experiments() -> None:
    from wsss.cli import choices_of, overview
    from wsss.stages import stage_names

    text = overview()
    for name in (*stage_names(), *choices_of("method"), *choices_of("data")):
        assert f"\n  {name} " in text
    for name in choices_of("experiment"):
        assert f"\n  {name}" in text
