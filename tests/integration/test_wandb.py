"""logger=wandb through the command line: a run for each stage, its numbers those of the files."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator

import pytest

from wsss.files import read_json
from wsss.run.logs import read_metrics

OFFLINE = ("logger=wandb", "logger.wandb.offline=true")


@pytest.fixture
def silence(program) -> Iterator[None]:
    """Sends whatever leaves the machine to a proxy that must not be called."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        program.env |= {"HTTPS_PROXY": address, "HTTP_PROXY": address}
        yield
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


@pytest.mark.slow
def test_each_stage_has_a_run_that_says_what_its_files_say(program, silence, read_wandb) -> None:
    program("run_name=board", "stage=all", "method=cpal", *OFFLINE, fresh=True)
    # What logs a run does not name its folder.
    folder = program.out / "board" / "method=cpal"
    runs = {run.run.job_type: run for run in read_wandb(folder)}
    train, made, scored = (runs.pop(stage) for stage in ("train", "make_cam", "eval_cam"))
    assert not runs
    assert len({run.run.run_id for run in (train, made, scored)}) == 3
    for run in (train, made, scored):
        assert run.run.run_group == "board" and run.exit_code == 0
        assert run.config["method.bank.size"] == 1000 and run.config["data.scales"] == [1.0, 0.5]
        assert run.config["revision"] == read_json(folder / "train" / "manifest.json")["revision"]

    rows = read_metrics(folder / "train" / "metrics.csv")
    for key in ("train/loss", "train/loss_cls", "train/loss_self", "lr/head", "bank/fill_mean"):
        expected = [float(row[key]) for row in rows if row.get(key)]
        assert len(expected) >= 2
        assert train.logged(key) == pytest.approx(expected)
    for name in ("losses.png", "rates.png", "bank_history.png"):
        assert (folder / "train" / name).is_file()

    files = list((folder / "make_cam" / "maps").iterdir())
    assert made.logged("make_cam/images") == [len(files)]
    size = sum(file.stat().st_size for file in files) / len(files)
    assert made.logged("make_cam/bytes_per_image") == [pytest.approx(size)]
    (maps,) = made.logged("pictures")
    assert all("photograph | cam | pacam" in caption for caption in maps["captions"])
    assert (folder / "make_cam" / "contact_sheet.png").is_file()

    result = read_json(folder / "eval_cam" / "metrics.json")
    (logged,) = read_metrics(folder / "eval_cam" / "metrics.csv")
    assert scored.logged("eval/miou") == [result["miou"]] == [float(logged["eval/miou"])]
    for kind, values in ((kind, result[kind]) for kind in ("cam", "pacam")):
        for key in ("miou", "miou_best_threshold", "false_positive", "false_negative"):
            assert scored.logged(f"eval/{kind}_{key}") == [values[key]]
            assert float(logged[f"eval/{kind}_{key}"]) == values[key]
    columns, cells = scored.table("per_class")
    for name, *values in cells:
        assert values == [result[kind]["iou"][name] for kind in columns[1:]]
    _, cells = scored.table("confusion_table")
    pixels = sum(sum(row) for row in result["pacam"]["confusion"])
    assert sum(count for *_, count in cells) == pixels
    columns, cells = scored.table("threshold_curve_table")
    pacam = [line for line in cells if line[columns.index("lineKey")] == "pacam"]
    curve = [line[columns.index("lineVal")] for line in pacam]
    assert curve == result["pacam"]["curve"]["miou"]
    (pictures,) = scored.logged("pictures")
    assert len(pictures["captions"]) == 2
    assert all(": " in caption.splitlines()[0] for caption in pictures["captions"])
    for name in ("threshold_curve.png", "per_class.png", "confusion.png", "contact_sheet.png"):
        assert (folder / "eval_cam" / name).is_file()


@pytest.mark.slow
def test_a_failed_training_ends_its_run_as_failed(
    program, silence, read_wandb, tmp_path, tiny_scenes
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_scenes, broken)
    for image in (broken / "JPEGImages").iterdir():
        image.write_bytes(image.read_bytes()[:100])
    settings = ("run_name=bad", "stage=train", f"data.root={broken}")
    done = program(*settings, *OFFLINE, check=False, fresh=True)
    assert done.returncode == 1
    (run,) = read_wandb(program.out / "bad")
    assert run.exit_code == 1
