"""Words on the command line, completion, and help on a recipe."""

from __future__ import annotations

import pytest
import yaml
from omegaconf import OmegaConf

from wsss import console
from wsss.build.compose import CONF, composed
from wsss.build.keys import comments_of, head_of
from wsss.errors import WsssError
from wsss.stages import stage_names
from wsss.version import __version__


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["train", "experiment=demo"], ["experiment=demo", "stage=train"]),
        (["experiment=demo", "make_cam"], ["experiment=demo", "stage=make_cam"]),
        (["train", "make_cam", "seed=0"], ["-m", "seed=0", "stage=train,make_cam"]),
        (["-m", "train,make_cam", "seed=0,1"], ["-m", "seed=0,1", "stage=train,make_cam"]),
        (["step1/train", "experiment=demo_amn"], ["experiment=demo_amn", "stage=step1/train"]),
        (["all"], ["stage=all"]),
        (["doctor"], ["stage=doctor"]),
        (["--cfg", "job", "~data", "stage=train"], ["--cfg", "job", "~data", "stage=train"]),
    ],
)
def test_a_stage_by_its_name_is_a_setting(given: list[str], meant: list[str]) -> None:
    assert console.understood(given) == meant


def test_a_word_that_is_no_stage_is_told_with_what_is_near() -> None:
    with pytest.raises(WsssError, match="trian: no such stage; is train meant?"):
        console.understood(["trian"])
    with pytest.raises(WsssError, match="xyz: no such stage; settings are key=value"):
        console.understood(["xyz"])


def test_help_and_version_by_word_and_by_flag(command_line) -> None:
    texts = {command_line(*words).stdout for words in ((), ("help",), ("--help",), ("-h",))}
    assert len(texts) == 1 and "stages (stage=...)" in texts.pop()
    assert command_line("--version").stdout == f"wsss {__version__}\n"
    wrong = command_line("trian")
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: trian: no such stage")


def test_a_shell_completes_all_stages_and_leaves_the_rest_to_hydra(
    command_line, monkeypatch
) -> None:
    def completions(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        return command_line("-sc", "query=bash").stdout.split()

    assert completions("wsss stage=") == [f"stage={n}" for n in ("all", *stage_names())]
    seg = [name for name in stage_names() if name.startswith("seg_")]
    assert completions("python run.py experiment=demo stage=seg_") == [f"stage={n}" for n in seg]
    assert completions("wsss stage=train,make") == ["stage=train,make_cam"]
    assert completions("wsss irn_m") == ["irn_masks"]
    assert "experiment=cpal_voc" in completions("wsss experiment=cpal_v")
    assert "method.tau=" in completions("wsss method=cpal method.ta")


def test_help_on_a_recipe_shows_its_head_and_every_key_with_value_and_comment(
    command_line,
) -> None:
    done = command_line("experiment=cpal_voc2007_mini", "method.tau=0.3", "--help")
    assert done.returncode == 0, done.stderr
    head, _, keys = done.stdout.partition("key=value:\n\n")
    assert head.startswith(head_of(CONF / "experiment" / "cpal_voc2007_mini.yaml")[0])
    assert "method=cpal_small" in head and "host=cam" in head
    body = "\n".join(line[2:] for line in keys.splitlines())
    content, choices = composed(["experiment=cpal_voc2007_mini", "method.tau=0.3"])
    assert yaml.safe_load(body) == content  # it is the configuration, as YAML
    by_line = {line[2:].strip().partition(":")[0]: line for line in keys.splitlines()}
    assert "0.3" in by_line["tau"] and "# threshold of the anchor's mask" in by_line["tau"]
    assert any(line.startswith("*   max_epochs: ") for line in keys.splitlines())
    assert by_line["overwrite"].startswith("  ")
    assert choices["method"] == "cpal_small"


def test_help_on_what_is_not_there_is_one_line(command_line) -> None:
    done = command_line("experiment=none_such", "--help")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "none_such" in done.stderr


def test_comments_are_those_of_the_file(tmp_path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "# @package _global_\n# What it is.\n#   second line\n"
        "a: 1                # first\n"
        "b: {c: 2, d: '#no'} # both\n"
        "e:                  # block\n"
        "  f: null           # goes\n"
        "                    #   on\n"
        "  # not of f\n"
        '  g: "x # y"\n'
        "h:  # many\n"
        "  [1,\n   2]\n"
        "i: [3,\n  4]  # behind\n"
    )
    assert head_of(path) == ["What it is.", "  second line"]
    assert comments_of(path) == {
        "a": "first",
        "b": "both",
        "e": "block",
        "e.f": "goes on",
        "h": "many",
        "i": "behind",
    }


GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())


@pytest.mark.parametrize("group", [g for g in GROUPS if g not in ("experiment", "sweep", "debug")])
def test_comments_belong_to_keys_that_are_there(group: str) -> None:
    for path in (CONF / group).glob("*.yaml"):
        content = OmegaConf.to_container(OmegaConf.load(path))
        for key in comments_of(path):
            node = content
            for part in key.split("."):
                assert isinstance(node, dict) and part in node, key
                node = node[part]
