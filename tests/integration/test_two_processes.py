"""Two processes do what one does."""

from __future__ import annotations

import json

import pytest
import torch

from wsss.maps.files import read_class_maps


@pytest.mark.timeout(600)
def test_two_processes_train_map_and_score_as_one(program) -> None:
    program("run_name=one", "stage=all")
    program(
        "run_name=two",
        "stage=all",
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        fresh=True,
    )
    (one,), (two,) = (list((program.out / name).glob("*")) for name in ("one", "two"))
    weights = [
        torch.load(run / "train" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (one, two)
    ]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=1e-4, msg=key)
    maps = [
        sorted(path.name for path in (run / "make_cam" / "maps").iterdir()) for run in (one, two)
    ]
    assert maps[0] == maps[1] and len(maps[0]) == 12
    for name in maps[0]:
        cams = [read_class_maps(run / "make_cam" / "maps" / name).maps["cam"] for run in (one, two)]
        assert abs(cams[0] - cams[1]).max() < 0.05
    scores = [json.loads((run / "eval_cam" / "metrics.json").read_text()) for run in (one, two)]
    assert scores[0]["images"] == scores[1]["images"] == 12
    pixels = [sum(map(sum, s["cam"]["confusion"])) for s in scores]
    assert pixels[0] == pixels[1]
    manifests = [json.loads((run / "train" / "manifest.json").read_text()) for run in (one, two)]
    assert manifests[0]["hash"] == manifests[1]["hash"]  # how many processes is no setting
