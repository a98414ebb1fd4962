"""Branches side by side: each trains, and answers, bit by bit as it does alone."""

from __future__ import annotations

import pytest
import torch

from wsss.build.identity import method_options
from wsss.build.objects import build_network
from wsss.errors import WsssError
from wsss.files import read_json
from wsss.maps.files import read_class_maps
from wsss.stages import eval_cam, make_cam, train

THREE = "method=several", "+method@method.branches.mean=cpal_small"
MEAN = "prototypes=mean"
ALONE = {
    "cam": ("method=cam",),
    "sipe": ("method=sipe_small",),
    "cpal": ("method=cpal_small",),
    "mean": ("method=cpal_small", f"method.{MEAN}"),
}


def test_several_branches_are_each_what_it_is_alone(settings) -> None:
    # The norm is so small that every step is clipped.
    clip = "training.gradient_clip_val=0.05"
    together = settings(*THREE, f"method.branches.mean.{MEAN}", clip, run="several")
    runs = {name: settings(*own, clip, run=name) for name, own in ALONE.items()}
    states = {}
    for name, s in {**runs, "several": together}.items():
        done = train.run(s)
        assert done.manifest["steps"] == 4
        states[name] = torch.load(s.folder("train") / "last.ckpt", weights_only=True)["state_dict"]
        make_cam.run(s)
        eval_cam.run(s)

    whole = states["several"]
    expected = dict(states["cam"])
    for name in ("sipe", "cpal", "mean"):
        assert {k for k in states[name] if k.startswith("host.")} == states["cam"].keys()
        for key, value in states[name].items():
            place = key.replace("branch.", f"branch.branches.{name}.", 1)
            expected[place] = value
            if key in states["cam"]:  # nor does a branch alone act on the host
                assert torch.equal(value, states["cam"][key]), (name, key)
    assert whole.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(whole[key], value), key
    assert whole["branch.branches.cpal.bank.clustered_epoch"] == 1

    made = read_json(together.folder("make_cam") / "manifest.json")
    assert made["kinds"] == {"cam": False, "sipe": True, "cpal": True, "mean": True}
    for path in sorted((together.folder("make_cam") / "maps").iterdir()):
        maps = read_class_maps(path).maps
        for name, kind in {
            "cam": "cam",
            "sipe": "is_cam",
            "cpal": "pacam",
            "mean": "pacam",
        }.items():
            own = read_class_maps(runs[name].folder("make_cam") / "maps" / path.name).maps[kind]
            assert (maps[name] == own).all()
    scored = read_json(together.folder("eval_cam") / "metrics.json")["kinds"]
    assert list(scored) == ["cam", "sipe", "cpal", "mean"]
    for name, s in runs.items():
        own = read_json(s.folder("eval_cam") / "metrics.json")["kinds"]
        assert scored[name]["miou"] == list(own.values())[-1]["miou"]
    assert (together.folder("train") / "cpal" / "bank_history.png").is_file()


def test_test_options_of_a_branch_are_no_part_of_the_training(settings) -> None:
    plain = method_options(settings("method=several"))
    trained, test = method_options(settings("method=several", "method.branches.cpal.tau=0.2"))
    assert trained != plain[0] and test == plain[1]
    changed = "method.branches.cpal.test.structure=f"
    trained, test = method_options(settings("method=several", changed))
    assert trained == plain[0]
    assert test["sipe"] == plain[1]["sipe"] and test["cpal"] != plain[1]["cpal"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["method.branches.cpal.detach_cam=false"], "method.branches.cpal: trains the host"),
        (["method.branches.cpal.detach_features=false"], "method.branches.cpal: trains the host"),
        (["method.branches.cpal.lambda_cls=0.5"], "method.branches.cpal: trains the host"),
        (["method.branches.sipe.detach_cam=false"], "method.branches.sipe: trains the host"),
        (["+method@method.branches.values=cpal_small"], "method.branches.values: can't be"),
        (["+method@method.branches.cam=cpal_small"], "method.branches.cam: the host's maps have"),
        (["+method.branches.cpal.tua=1"], "method.branches.cpal.tua: unknown key; is 'tau' meant"),
        (["method.branches.cpal.tau=2"], "method.branches.cpal.tau=2: must be less than 1"),
        (["~method.branches.cpal", "~method.branches.sipe"], "method.branches={}: give at least"),
    ],
)
def test_what_cannot_stand_side_by_side_is_one_line(settings, overrides, told) -> None:
    with pytest.raises(WsssError) as caught:
        build_network(settings("method=several", *overrides), ("cat", "dog"))
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)
