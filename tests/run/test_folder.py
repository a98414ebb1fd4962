"""The folders of stages: fresh, resumed, finished, refused; kills and foreign files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wsss.errors import WsssError
from wsss.run.folder import StageFolder, check_classes, reopen, require


def folder(tmp_path: Path, lr: float = 0.1, source: str = "a") -> StageFolder:
    return StageFolder(tmp_path / "train", "train", {"optimizer": {"lr": lr}}, {"data": source})


def killed(stage: StageFolder) -> None:
    """Leave the folder as a process does that is killed: its lock goes with it."""
    stage.lock.close()


def begun(tmp_path: Path, **kind: object) -> StageFolder:
    """A folder in which a stage was begun, made something and was killed."""
    stage = folder(tmp_path, **kind).open()
    (stage.path / "result").write_text("kept")
    killed(stage)
    return stage


def test_a_stage_is_fresh_then_resumed_then_finished(tmp_path: Path) -> None:
    first = folder(tmp_path).open()
    assert not first.finished and not first.resumed
    killed(first)
    second = folder(tmp_path).open()
    assert second.resumed
    second.close(loss=0.5)
    again = folder(tmp_path).open()
    assert again.finished
    assert again.manifest["loss"] == 0.5
    assert again.manifest["settings"] == {"optimizer": {"lr": 0.1}}
    assert {"python", "torch"} <= again.manifest["versions"].keys()
    assert require(tmp_path / "train", "train", "make_cam")["hash"] == again.hash


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_refused_by_name_unless_overwritten(
    tmp_path: Path, finished: bool
) -> None:
    old = begun(tmp_path)
    if finished:
        folder(tmp_path).open().close()
    with pytest.raises(WsssError, match=r"optimizer\.lr was 0\.1, now 0\.2.*overwrite=true"):
        folder(tmp_path, lr=0.2).open()
    with pytest.raises(WsssError, match=r"data changed.*overwrite=true"):
        folder(tmp_path, source="b").open()
    assert (old.path / "result").exists()
    new = folder(tmp_path, lr=0.2).open(overwrite=True)
    assert not new.finished and not new.resumed
    assert not (old.path / "result").exists()


def test_a_stage_that_failed_before_it_made_anything_blocks_nothing(tmp_path: Path) -> None:
    stage = folder(tmp_path).open()
    (stage.path / "cli.log").write_text("error")
    killed(stage)
    new = folder(tmp_path, lr=0.2).open()
    assert not new.finished and not new.resumed
    killed(new)
    assert folder(tmp_path, lr=0.2).open().resumed


def test_overwrite_redoes_a_finished_stage_and_goes_on_with_what_it_has_begun(
    tmp_path: Path,
) -> None:
    first = folder(tmp_path).open()
    (first.path / "result").write_text("old")
    first.close()
    second = folder(tmp_path).open(overwrite=True)
    assert not second.finished and not second.resumed and not (second.path / "result").exists()
    (second.path / "result").write_text("new")
    killed(second)
    third = folder(tmp_path).open(overwrite=True)  # the same command again
    assert third.resumed and (third.path / "result").read_text() == "new"


@pytest.mark.parametrize("victims", range(4))
def test_overwrite_killed_while_it_deletes_leaves_nothing_that_passes_for_new(
    tmp_path: Path, monkeypatch, victims: int
) -> None:
    """Killed after so many entries are gone: what is left is never taken for a result."""
    old = folder(tmp_path).open()
    for name in ("maps/a.npz", "maps/b.npz", "note.txt"):
        (old.path / name).parent.mkdir(exist_ok=True)
        (old.path / name).write_text("old")
    old.close()
    deleted = []

    def die_after(real):
        def wrapped(path, *args, **kwargs):
            if Path(path).name not in ("started.json",) and "part" not in Path(path).name:
                if len(deleted) == victims:
                    raise KeyboardInterrupt
                deleted.append(path)
            return real(path, *args, **kwargs)

        return wrapped

    monkeypatch.setattr(Path, "unlink", die_after(Path.unlink))
    monkeypatch.setattr(shutil, "rmtree", die_after(shutil.rmtree))
    one = folder(tmp_path)
    try:
        one.open(overwrite=True)
    except KeyboardInterrupt:
        killed(one)
    monkeypatch.undo()
    if one.lock is not None and not one.lock.closed:
        killed(one)
    for overwrite in (False, True):
        again = folder(tmp_path).open(overwrite=overwrite)
        assert not again.finished
        assert not [
            p for p in again.path.rglob("*") if p.is_file() and p.suffix in (".npz", ".txt")
        ]
        killed(again)


def test_an_empty_folder_that_another_process_was_quick_to_make_is_no_result(
    tmp_path: Path,
) -> None:
    (tmp_path / "train" / "masks").mkdir(parents=True)
    stage = folder(tmp_path).open()
    assert not stage.resumed and not stage.finished


def test_files_of_unknown_origin_and_links_are_refused_or_replaced(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    path = tmp_path / "train"
    path.mkdir()
    (path / "maps").symlink_to(outside)
    with pytest.raises(WsssError, match="holds maps, of which nothing says how it was made"):
        folder(tmp_path).open()
    killed(folder(tmp_path).open(overwrite=True))
    assert not (path / "maps").exists() and (outside / "precious").read_text() == "kept"


def test_a_finished_stage_whose_files_are_gone_goes_on(tmp_path: Path) -> None:
    stage = folder(tmp_path).open()
    stage.close()
    wanted = stage.path / "map.npz"

    def lacking() -> list[Path]:
        return [] if wanted.exists() else [wanted]

    again = folder(tmp_path).open(lacking=lacking)
    assert again.resumed and not again.finished
    wanted.write_text("made again")
    again.close()
    assert folder(tmp_path).open(lacking=lacking).finished


def test_a_second_start_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from wsss.run.folder import StageFolder\n"
        "folder = StageFolder(Path(sys.argv[1]), 'train', {}); folder.open()\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "train")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert first.stdout.readline() == b"open\n"
    second = StageFolder(tmp_path / "train", "train", {})
    with pytest.raises(WsssError, match=f"process {first.pid} on .* works on this stage"):
        second.open()
    first.kill()
    first.wait()
    assert second.open().resumed


def test_a_worker_that_outlives_its_killed_parent_does_not_hold_the_folder(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from wsss.run.folder import StageFolder\n"
        "folder = StageFolder(Path(sys.argv[1]), 'train', {}); folder.open()\n"
        "if os.fork() == 0:\n"
        "    print('forked', flush=True)\n"
        "sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "train")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdout.readline() == b"forked\n"
    with pytest.raises(WsssError, match="works on this stage"):
        StageFolder(tmp_path / "train", "train", {}).open()  # the parent has not let go of it
    parent.kill()
    parent.wait()
    assert StageFolder(tmp_path / "train", "train", {}).open().resumed
    parent.stdin.close()  # ends the worker


def test_a_reopened_stage_goes_on(tmp_path: Path) -> None:
    stage = folder(tmp_path).open()
    (stage.path / "mask.png").write_text("kept")
    stage.close()
    reopen(stage.path)
    again = folder(tmp_path).open()
    assert again.resumed and (stage.path / "mask.png").exists()


def test_a_missing_input_names_the_stage_to_run(tmp_path: Path) -> None:
    with pytest.raises(WsssError, match="stage=eval_cam needs stage=make_cam.*stage=make_cam"):
        require(tmp_path, "make_cam", "eval_cam")


def test_classes_in_another_order_are_refused() -> None:
    check_classes("x", None, ["cat", "dog"])
    check_classes("x", ["cat", "dog"], ["cat", "dog"])
    with pytest.raises(
        WsssError, match="x: made for the classes in another order.*'cat' there is 'dog'"
    ):
        check_classes("x", ["cat", "dog"], ["dog", "cat"])
    with pytest.raises(WsssError, match="other classes.*2 against 3.*'nothing' there is 'cow'"):
        check_classes("x", ["cat", "dog"], ["cat", "dog", "cow"])


def test_manifest_is_plain_json(tmp_path: Path) -> None:
    stage = folder(tmp_path).open()
    stage.close()
    content = json.loads((stage.path / "manifest.json").read_text())
    assert content["hash"] == stage.hash
    assert os.listdir(stage.path) == ["manifest.json"]
