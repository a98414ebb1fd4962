"""MCTformer as a user runs it: with CPAL, with PSA, with published files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from wsss.data.masks import read_mask
from wsss.files import read_json
from wsss.maps.files import read_class_maps

TINY = [
    "host=mctformer_tiny",
    "optimizer=mctformer",
    "host.image_size=64",
    "host.width=24",
    "host.heads=2",
    "training.gradient_clip_val=null",
]
PSA = [
    "refine.affinity=psa",
    "refine.workers=1",
    "refine.pictures=2",
    "refine.psa.network=backbone",
    "refine.psa.crop_size=64",
    "refine.psa.radius=3",
    "refine.psa.batch_size=4",
    "refine.psa.max_epochs=2",
    "refine.psa_labels.crf.iterations=2",
    "refine.psa_walk.radius=3",
]
KINDS = ["cam", "attention", "fused", "refined"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "train" / "last.ckpt", weights_only=True)["state_dict"]


def test_from_training_with_cpal_to_pseudo_masks_by_psa(program) -> None:
    stages = "train,make_cam,eval_cam,psa_labels,psa_train,psa_masks"
    command = ["run_name=chain", *TINY, *PSA, "method=cpal_small", f"pipeline=[{stages}]"]
    done = program("stage=all", *command)
    (run,) = (program.out / "chain").iterdir()
    scores = read_json(run / "eval_cam" / "metrics.json")
    assert scores["main"] == "pacam" and {*KINDS, "pacam"} <= set(scores)
    for path in sorted((run / "make_cam" / "maps").iterdir()):
        stored = read_class_maps(path)
        for kind, values in stored.maps.items():
            assert len(values) == len(stored.classes) + (kind == "pacam")
            assert np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1
    for name in ("psa_labels", "psa_train", "psa_masks"):
        assert f"\n{name}: " in done.stdout
        assert read_json(run / name / "manifest.json")["images"] == 12
    scores = read_json(run / "psa_masks" / "metrics.json")
    assert {"seed", "psa_masks"} <= set(scores) and scores["main"] == "psa_masks"
    masks = sorted((run / "psa_masks" / "masks").iterdir())
    assert len(masks) == 12
    for path in masks:
        classes = read_class_maps(run / "make_cam" / "maps" / f"{path.stem}.npz").classes
        assert set(np.unique(read_mask(path, 6))) <= {0, *classes}
    again = program("stage=all", *command)
    assert again.stdout.count("finished before") == 6


@pytest.mark.parametrize("host", ["mctformer_v1", "mctformer_v2"])
def test_a_published_file_makes_maps_without_training(program, host: str) -> None:
    small = [f"host={host}", "host.image_size=64", "host.patch_size=8", "host.width=24"]
    small += ["host.heads=2", "host.depth=4"]
    program("run_name=own", "stage=train", *small, "training.max_epochs=1")
    (own,) = (program.out / "own").iterdir()
    state = {n.removeprefix("host.network."): v for n, v in weights(own).items()}
    file = program.folder / "checkpoint.pth"
    torch.save({"model": state}, file)
    program("run_name=theirs", "stage=make_cam", *small, f"checkpoint={file}")
    program("run_name=own", "stage=make_cam", *small, "training.max_epochs=1")
    (theirs,) = (program.out / "theirs").iterdir()
    for path in (own / "make_cam" / "maps").iterdir():
        expected = read_class_maps(path).maps
        found = read_class_maps(theirs / "make_cam" / "maps" / path.name).maps
        assert list(found) == list(expected) == (KINDS if host.endswith("2") else KINDS[1::2])
        for kind, values in expected.items():
            np.testing.assert_array_equal(found[kind], values)


def test_a_killed_training_ends_with_the_weights_of_an_uninterrupted_one(program) -> None:
    program.assert_resumes(*TINY, "method=cpal_small")
