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

ALONE = {"cam": "cam", "sipe": "sipe_small", "cpal": "cpal_small"}
KINDS = {"cam": "cam", "sipe": "is_cam", "cpal": "pacam"}
THIRD = "+method@method.branches.mean=cpal_small", "method.branches.mean.prototypes=mean"


@pytest.mark.slow
def test_several_branches_are_each_what_it_is_alone(settings) -> None:
    # The norm is so small that every step is clipped.
    clip = "training.gradient_clip_val=0.05"
    together = settings("method=several", *THIRD, clip, run="several")
    runs = {name: settings(f"method={own}", clip, run=name) for name, own in ALONE.items()}
    states = {}
    for name, s in {**runs, "several": together}.items():
        assert train.run(s).manifest["steps"] == 4
        states[name] = torch.load(s.folder("train") / "last.ckpt", weights_only=True)["state_dict"]
        make_cam.run(s)
    eval_cam.run(together)

    whole = states["several"]
    assert whole["branch.branches.cpal.bank.clustered_epoch"] == 1
    assert {key.split(".")[2] for key in whole if key.startswith("branch.")} == {
        *("sipe", "cpal", "mean"),
    }
    for name, state in states.items():
        hosts = {key for key in state if key.startswith("host.")}
        assert hosts == states["cam"].keys()
        for key in hosts:  # no branch acts on the host, be it alone or not
            assert torch.equal(state[key], states["cam"][key]), (name, key)
    for name in ("sipe", "cpal"):
        for key, value in states[name].items():
            assert torch.equal(whole[key.replace("branch.", f"branch.branches.{name}.", 1)], value)

    made = read_json(together.folder("make_cam") / "manifest.json")
    assert made["kinds"] == {"cam": False, "sipe": True, "cpal": True, "mean": True}
    for path in sorted((together.folder("make_cam") / "maps").iterdir()):
        maps = read_class_maps(path).maps
        for name, kind in KINDS.items():
            own = read_class_maps(runs[name].folder("make_cam") / "maps" / path.name).maps[kind]
            assert (maps[name] == own).all()
    scored = read_json(together.folder("eval_cam") / "metrics.json")
    assert scored["main"] == "mean" and list(scored)[:4] == ["cam", "sipe", "cpal", "mean"]
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
