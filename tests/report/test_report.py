"""The report of a sweep that the test writes: figures, gaps, published numbers, one file."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from scipy import stats

from wsss.errors import WsssError
from wsss.files import read_json, write_json
from wsss.report.gather import differing, gather, without_seed
from wsss.report.page import (
    MOST_DRAWN,
    chain_of,
    comparison,
    differences,
    label_names,
    markdown,
    missing,
    render,
)
from wsss.report.table import Table
from wsss.report.tables import RECIPES, cell, published, tables
from wsss.run.logs import write_metrics

LABELS = ("background", "zebra", "ant <b>")  # not in the order of the alphabet


def figures(rng: np.random.Generator) -> dict[str, Any]:
    """Scores as stages write them, of a random confusion matrix."""
    matrix = rng.integers(1, 100, (3, 3))
    iou = 100 * np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))
    return {
        "iou": dict(zip(LABELS, iou.tolist(), strict=True)),
        "miou": float(iou.mean()),
        "confusion": matrix.tolist(),
    }


def stage(folder: Path, name: str, metrics: dict[str, Any] | None, **facts: Any) -> Path:
    """A finished stage."""
    path = folder / name
    path.mkdir(parents=True)
    write_json(path / "manifest.json", {"stage": name.split("/")[0], "seconds": 61.0, **facts})
    if metrics:
        write_json(path / "metrics.json", metrics)
    return path


def job(
    outputs: Path, run: str, overrides: str, seed: int, data: str = "voc", tau: float = 0.1
) -> dict[str, Any]:
    """A job with seeds, CRF and segmentation; returns its figures."""
    rng = np.random.default_rng([seed, int(100 * tau)])
    folder = outputs / run / overrides
    train = stage(folder, "train", None, loss=0.25)
    rows = [{"step": s, "train/loss": 1 / (s + 1), "lr/head": 0.1} for s in range(5)]
    write_metrics(train / "metrics.csv", rows)
    OmegaConf.save(
        {"seed": seed, "data": {"name": data}, "method": {"tau": tau}, "paths": {"outputs": "x"}},
        (train / ".hydra").mkdir() or train / ".hydra" / "config.yaml",
    )
    choices = {"experiment": run, "method": "cpal"}
    OmegaConf.save({"hydra": {"runtime": {"choices": choices}}}, train / ".hydra" / "hydra.yaml")
    found: dict[str, Any] = {"cam": figures(rng), "pacam": figures(rng)}
    for one in found.values():
        curve = {"threshold": [0.1, 0.2, 0.3], "miou": rng.uniform(10, 60, 3).tolist()}
        at = int(np.argmax(curve["miou"]))
        one |= {
            "curve": curve,
            "best_threshold": curve["threshold"][at],
            "miou_best_threshold": curve["miou"][at],
        }
    evaluated = stage(folder, "eval_cam", {"kinds": found}, miou=found["pacam"]["miou"])
    Image.fromarray(rng.integers(0, 256, (30, 2000, 3), dtype=np.uint8)).save(
        evaluated / "contact_sheet.png"
    )
    crf = {"seed": found["pacam"], "crf": figures(rng)}
    stage(folder, "crf", crf)
    seg = {"network": figures(rng), "crf": figures(rng), "initial_weights": "imagenet"}
    stage(folder, "seg_eval/val", seg)
    return {**found, "crf": crf["crf"], "network": seg["network"]}


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def rows_of(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def sweep(tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Two seeds of the published setting, one of another."""
    ours = [job(tmp_path, "cpal_voc", f"seed={seed}", seed) for seed in (0, 1)]
    job(tmp_path, "cpal_voc", "method.tau=0.2,seed=0", 0, tau=0.2)
    return tmp_path / "cpal_voc", ours


def test_the_figures_are_those_of_the_stages_over_seeds(sweep) -> None:
    run, ours = sweep
    by_title = {table.title: table for table in tables(gather([run]))}
    seeds, masks, segmentation, beside = (
        by_title[title]
        for title in ("Seeds", "Pseudo masks", "Segmentation", "Published on this data")
    )
    first = next(r for r in rows_of(seeds.markdown()) if r[:2] == ["cpal_voc", "pacam"])
    assert first[2] == spread([one["pacam"]["miou"] for one in ours])
    assert first[3] == spread([max(one["pacam"]["curve"]["miou"]) for one in ours])
    assert first[-1] == "2"
    heading, row, *_ = rows_of(masks.markdown())
    found = dict(zip(heading, row, strict=True))
    assert found["seed"] == first[2]
    assert found["+ CRF"] == spread([one["crf"]["miou"] for one in ours])
    assert found["pseudo mask"] == "not run"
    row = rows_of(segmentation.markdown())[1]
    assert row[1:4] == ["val", "imagenet", spread([one["network"]["miou"] for one in ours])]
    ours_beside = next(r for r in rows_of(beside.markdown()) if r[2] == "cpal_voc")
    assert ours_beside[-2] == first[2]
    others = [r for r in rows_of(beside.markdown())[1:] if r[2] != "cpal_voc"]
    assert others and all(r[-2] == "not run" for r in others)


@pytest.mark.parametrize(
    ("overrides", "left"),
    [("default", ""), ("seed=3", ""), ("a=1,seed=3,b=2", "a=1,b=2"), ("my_seed=1", "my_seed=1")],
)
def test_only_the_seed_is_left_out(overrides: str, left: str) -> None:
    assert without_seed(overrides) == left


def test_a_single_value_has_no_deviation() -> None:
    assert cell([41.234]) == "41.23"
    assert cell([40.0, 42.0]) == "41.00 ± 1.41"


def test_the_main_row_is_the_one_that_the_stage_names(sweep) -> None:
    run, ours = sweep
    for seed in (0, 1):
        path = run / f"seed={seed}" / "eval_cam" / "metrics.json"
        write_json(path, {**read_json(path), "main": "cam"})
    setting = next(s for s in gather([run]) if not s.overrides)
    means = [one["cam"]["miou"] for one in ours]
    assert setting.main("eval_cam") == "cam" and setting.main("irn_masks") == ""
    assert chain_of(setting)["seeds"] == means
    assert setting.averaged("eval_cam")["miou"] == pytest.approx(np.mean(means))
    seeds = rows_of(tables(gather([run]))[0].markdown())
    shown = {r[1]: dict(zip(seeds[0], r, strict=True))["published"] for r in seeds[1:3]}
    assert shown == {"cam": "62.5", "pacam": "–"}


def test_means_over_seeds_are_those_of_every_class_and_threshold(sweep) -> None:
    run, ours = sweep
    setting = next(s for s in gather([run]) if not s.overrides)
    mean = setting.averaged("eval_cam")
    a, b = (one["pacam"] for one in ours)
    assert mean["miou"] == pytest.approx((a["miou"] + b["miou"]) / 2)
    for name in LABELS:
        assert mean["iou"][name] == pytest.approx((a["iou"][name] + b["iou"][name]) / 2)
        half = stats.sem([a["iou"][name], b["iou"][name]]) * stats.t.ppf(0.975, 1)
        assert mean["iou_spread"][name] == pytest.approx(half)
    both = np.array([a["curve"]["miou"], b["curve"]["miou"]])
    assert mean["curve"]["miou"] == pytest.approx(both.mean(0))
    half = stats.sem(both) * stats.t.ppf(0.975, 1)
    assert mean["curve"]["miou_spread"] == pytest.approx(half)
    assert setting.averaged("irn_masks") == {}


def test_a_class_that_a_seed_does_not_have_is_averaged_over_the_others(sweep) -> None:
    run, ours = sweep
    path = run / "seed=1" / "eval_cam" / "metrics.json"
    metrics = read_json(path)
    metrics["kinds"]["pacam"]["iou"]["zebra"] = None
    metrics["kinds"]["pacam"]["curve"]["threshold"][0] = 0.05
    write_json(path, metrics)
    setting = next(s for s in gather([run]) if not s.overrides)
    mean = setting.averaged("eval_cam")
    assert mean["iou"]["zebra"] == ours[0]["pacam"]["iou"]["zebra"]
    assert mean["iou_spread"]["zebra"] == 0
    assert "curve" not in mean, "of other thresholds"


def test_the_chain_has_every_seed_of_every_step_in_order(sweep) -> None:
    run, ours = sweep
    setting = next(s for s in gather([run]) if not s.overrides)
    chain = chain_of(setting)
    assert list(chain) == ["seeds", "+ CRF", "val: network", "val: + CRF"]
    assert chain["seeds"] == [one["pacam"]["miou"] for one in ours]
    assert chain["val: network"] == [one["network"]["miou"] for one in ours]


def test_a_cell_of_fewer_seeds_than_its_row_says_so(sweep) -> None:
    run, ours = sweep
    write_json(run / "seed=1" / "crf" / "failed.json", {"reason": "killed"})
    (run / "seed=1" / "crf" / "manifest.json").unlink()
    rng = np.random.default_rng(5)
    masks = [figures(rng), figures(rng)]
    for seed, one in enumerate(masks):
        stage(run / f"seed={seed}", "irn_masks", {"seed": ours[seed]["pacam"], "irn_masks": one})
    table = next(t for t in tables(gather([run])) if t.title == "Pseudo masks")
    heading, row, *_ = rows_of(table.markdown())
    found = dict(zip(heading, row, strict=True))
    assert found["+ CRF"] == f"{ours[0]['crf']['miou']:.2f} (1 of 2)"
    assert found["seed"] == spread([one["pacam"]["miou"] for one in ours])
    assert found["pseudo mask"] == spread([one["miou"] for one in masks])
    assert found["seeds"] == "2"


def test_published_numbers_stand_beside_the_same_setting_on_the_same_data_only(tmp_path) -> None:
    job(tmp_path, "cpal_voc", "default", 0)
    job(tmp_path, "cpal_voc", "method.tau=0.2", 0, tau=0.2)
    job(tmp_path, "elsewhere", "default", 0, data="scenes")
    job(tmp_path, "cpal_coco", "default", 0, data="scenes")
    shown = {}
    for run in ("cpal_voc", "elsewhere", "cpal_coco"):
        made = tables(gather([tmp_path / run]))
        for heading, *rows in (rows_of(t.markdown()) for t in made if t.title == "Seeds"):
            shown |= {r[0]: dict(zip(heading, r, strict=True)) for r in rows}
        assert any(t.title.startswith("Published") for t in made) == (run == "cpal_voc")
    assert shown["cpal_voc"]["published"] == "62.5"
    assert shown["cpal_voc method.tau=0.2"]["published"] == "–"
    for run in ("elsewhere", "cpal_coco"):  # a column of dashes is none
        assert "published" not in shown[run] and shown[run]["seeds"] == "1"
    # CPAL, Table 4 and 5.
    assert published()["voc"]["cpal_voc"]["seg"] == {"val": 71.8, "test": 72.1}


def test_a_score_on_part_of_the_images_stands_beside_nothing_published(tmp_path) -> None:
    job(tmp_path, "cpal_voc", "default", 0)
    folder = tmp_path / "cpal_voc" / "default"
    config = folder / "train" / ".hydra" / "config.yaml"
    data = {"name": "voc", "eval_split": "train", "expected_counts": {"train": 1464, "val": 1449}}
    OmegaConf.save({"seed": 0, "data": data}, config)
    shown = {}
    for images in (1464, 110):
        for name in ("eval_cam", "seg_eval/val"):
            path = folder / name / "metrics.json"
            write_json(path, {**read_json(path), "images": images})
        made = {t.title: rows_of(t.markdown()) for t in tables(gather([tmp_path / "cpal_voc"]))}
        beside = next(r for r in made["Published on this data"] if r[2] == "cpal_voc")
        found = (
            dict(zip(made[title][0], made[title][-1], strict=True)).get("published")
            for title in ("Seeds", "Segmentation")
        )
        shown[images] = (*found, beside[-2])
    assert shown[1464][:2] == ("62.5", None)  # 1464 images are not all of val
    assert shown[1464][2] != "not run"
    assert shown[110] == (None, None, "not run")


def test_the_settings_of_a_report_are_not_taken_for_those_of_the_run(tmp_path) -> None:
    job(tmp_path, "cpal_voc", "default", 0)
    folder = tmp_path / "cpal_voc" / "default"
    recorded = folder / "report" / ".hydra"
    recorded.mkdir(parents=True)
    choices = {"experiment": "sipe_voc"}  # report.runs of another experiment, say
    OmegaConf.save({"hydra": {"runtime": {"choices": choices}}}, recorded / "hydra.yaml")
    OmegaConf.save({"seed": 7, "data": {"name": "coco"}}, recorded / "config.yaml")
    (setting,) = gather([tmp_path / "cpal_voc"])
    assert (setting.experiment, setting.data, setting.jobs[0].seed) == ("cpal_voc", "voc", 0)


def test_a_stage_made_by_changed_code_is_marked(tmp_path) -> None:
    stage(tmp_path / "r" / "default", "crf", {"crf": figures(np.random.default_rng(0))})
    path = tmp_path / "r" / "default" / "crf" / "manifest.json"
    write_json(path, {**read_json(path), "revision": "0123456789ab+"})
    settings = gather([tmp_path / "r"])
    page = render("r", settings, tables(settings))
    assert "code 0123456789ab+" in page and ", 0123456789ab+" not in page  # once for all stages
    stage(tmp_path / "r" / "default", "irn_masks", {"irn_masks": figures(np.random.default_rng(1))})
    path = tmp_path / "r" / "default" / "irn_masks" / "manifest.json"
    write_json(path, {**read_json(path), "revision": "ba9876543210"})
    settings = gather([tmp_path / "r"])
    page = render("r", settings, tables(settings))
    for revision in ("0123456789ab+", "ba9876543210"):
        assert f", {revision}" in page and f"code {revision}" not in page


def test_markdown_cells_keep_their_bars() -> None:
    table = Table("T", "", ("a|b", "c"), (("x|y", "z"),), 1)
    for line in table.markdown().splitlines()[2:5]:
        assert len(re.findall(r"(?<!\\)\|", line)) == 3  # those between cells


def test_markdown_shows_names_as_they_stand(tmp_path) -> None:
    hostile = "<img src=x onerror=alert(1)> [a](b) `c` *d*\n# e & f"
    table = Table(hostile, hostile, ("a", "b"), ((hostile, "1"),), 1)
    text = table.markdown()
    assert "<img" not in text and "&lt;img" in text and "&amp; f" in text
    for mark in ("[", "]", "`", "*"):
        assert all(text[i - 1] == "\\" for i, c in enumerate(text) if c == mark)
    assert sum(line.startswith("#") for line in text.splitlines()) == 1
    stage(tmp_path / "<b>r" / "default", "crf", {"crf": figures(np.random.default_rng(0))})
    write_json(tmp_path / "<b>r" / "default" / "irn_masks" / "failed.json", {"reason": "<i>"})
    settings = gather([tmp_path / "<b>r"])
    text = markdown("<b>r", settings, tables(settings))
    assert "<b>" not in text.replace("ant <b>", "") and "<i>" not in text
    assert text.startswith("# &lt;b&gt;r\n") and "## Missing" in text


def record(folder: Path, given: list[str], seed: int) -> None:
    """What Hydra records of a stage's command line."""
    exclude = {"job": {"config": {"override_dirname": {"exclude_keys": ["stage", "data.root"]}}}}
    content = {"hydra": {"overrides": {"task": given}, **exclude}}
    (folder / ".hydra").mkdir(exist_ok=True)
    OmegaConf.save(content, folder / ".hydra" / "hydra.yaml")
    OmegaConf.save({"seed": seed, "data": {"name": "voc"}}, folder / ".hydra" / "config.yaml")


def test_seeds_of_runs_with_long_overrides_are_grouped(tmp_path) -> None:
    long = [f"+method.key{i}=[{i},'a b']" for i in range(20)]
    for seed in (10, 2):
        name = f"{'method.key0=0,' * 9}~{seed:016x}"  # the seed is in the hash alone
        path = stage(tmp_path / "r" / name, "crf", {"crf": figures(np.random.default_rng(seed))})
        record(path, ["stage=crf", f"seed={seed}", "data.root=/x", *long], seed)
    path = stage(tmp_path / "r" / "seed=2", "crf", {"crf": figures(np.random.default_rng(0))})
    record(path, ["seed=2"], 2)
    settings = gather([tmp_path / "r"])
    plain, grouped = sorted(settings, key=lambda setting: len(setting.overrides))
    assert plain.overrides == "" and [job.seed for job in plain.jobs] == [2]
    assert [job.seed for job in grouped.jobs] == [2, 10]
    assert grouped.overrides == ",".join(sorted(long, key=lambda given: given.split("=")[0]))
    assert len(grouped.title) < 170 and grouped.title.startswith("r +method.key0=")
    rows = rows_of(tables(settings)[0].markdown())
    assert [row[-1] for row in rows[1:]] == ["1", "2"]


def test_a_seed_counts_once(tmp_path) -> None:
    for name in ("default", "seed=0", "seed=1"):
        seed = int(name[-1]) if "=" in name else 0
        metrics = {"crf": figures(np.random.default_rng(seed))}
        record(stage(tmp_path / "r" / name, "crf", metrics), [], seed)
    stage(tmp_path / "r" / "seed=0", "irn_masks", {"irn_masks": figures(np.random.default_rng(9))})
    (setting,) = gather([tmp_path / "r"])
    assert [job.folder.name for job in setting.jobs] == ["seed=0", "seed=1"]
    assert "r: default: has seed 0 once more, left out" in missing([setting])


BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40)
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BOMB, "holds aliases"),
        ("a: " + "[" * 60 + "]" * 60, "nested deeper"),
        ("a: " + "[" * 100_000, "nested deeper"),
        ("x" * (2**20 + 1), "larger than"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: {b", "expected"),
        ("[1, 2]", "no mapping"),
        ("", "no mapping"),
        ("\x00", "character"),
        (b"\xff\xfe\xfa", "utf-8"),
    ],
)
@pytest.mark.parametrize("file", ["config.yaml", "hydra.yaml"])
def test_broken_settings_of_a_run_are_one_line(tmp_path, text, why, file) -> None:
    path = stage(tmp_path / "r" / "default", "crf", {"crf": figures(np.random.default_rng(0))})
    (path / ".hydra").mkdir()
    content = text if isinstance(text, bytes) else text.encode()
    (path / ".hydra" / file).write_bytes(content)
    with pytest.raises(WsssError, match=why) as caught:
        tables(gather([tmp_path / "r"]))
    line = str(caught.value)
    assert "\n" not in line and f".hydra/{file}: no recorded settings" in line
    assert "report.runs" in line


def test_results_that_are_no_numbers_are_none(tmp_path) -> None:
    rows = {"seed": {"miou": "high"}, "crf": {"miou": float("nan")}, "x": {"miou": None}, "y": 3}
    stage(tmp_path / "r" / "default", "crf", rows)
    assert tables(gather([tmp_path / "r"])) == []
    stage(tmp_path / "r" / "default", "eval_cam", {"kinds": [1]})
    assert tables(gather([tmp_path / "r"])) == []
    path = stage(tmp_path / "r" / "default", "irn_masks", None)
    (path / "metrics.json").write_text("[1]")
    with pytest.raises(WsssError, match="metrics.json: no mapping"):
        gather([tmp_path / "r"])


def test_different_data_are_never_in_one_table(tmp_path) -> None:
    job(tmp_path, "one", "seed=0", 0)
    job(tmp_path, "two", "seed=0", 0, data="coco")
    job(tmp_path, "three", "seed=0", 0)
    job(tmp_path, "part", "seed=0", 0)
    path = tmp_path / "part" / "seed=0" / "eval_cam" / "metrics.json"
    write_json(path, {**read_json(path), "images": 110})
    settings = gather([tmp_path / name for name in ("one", "two", "three", "part")])
    made = [t for t in tables(settings) if t.title.startswith("Seeds")]
    assert [t.title for t in made] == ["Seeds: voc", "Seeds: coco", "Seeds: voc, 110 images"]
    runs = [{row[0] for row in table.rows} for table in made]
    assert runs == [{"one", "three"}, {"two"}, {"part"}]
    paired = [t for t in tables(settings) if t.title.startswith("Paired")]
    for table in paired:
        for row in table.rows:
            assert {"two"} != {row[1], row[2]} & {"two"}
    page = render("r", settings, tables(settings))
    assert "4 settings, 4 runs;" in page


def test_charts_put_no_different_data_side_by_side_either(tmp_path) -> None:
    for run, images in (("one", 90), ("two", 90), ("part", 30)):
        job(tmp_path, run, "seed=0", 0)
        path = tmp_path / run / "seed=0" / "eval_cam" / "metrics.json"
        write_json(path, {**read_json(path), "images": images})
    one, two, part = (gather([tmp_path / run])[0] for run in ("one", "two", "part"))
    assert comparison([one, two]) and not comparison([one, part])
    assert len(comparison([one, two, part])) == len(comparison([one, two]))


def test_many_runs_of_which_some_failed_stay_readable(tmp_path, monkeypatch) -> None:
    count, shown = 10, 2
    monkeypatch.setattr("wsss.report.page.MOST_SHOWN", shown)
    for number in range(count):
        job(tmp_path, "sweep", f"method.tau={number},seed=0", 0, tau=number / 100)
        folder = tmp_path / "sweep" / f"method.tau={number},seed=0"
        if number % 2 == 0:
            folder = folder / "irn_train"
            write_json(folder / "failed.json", {"reason": "out of memory"})
    write_json(tmp_path / "sweep/method.tau=1,seed=0/psa_train/failed.json", {"reason": "no file"})
    settings = gather([tmp_path / "sweep"])
    lines = missing(settings)
    assert len(lines) == 2
    several = r"irn_train failed: out of memory \(5 runs: .* and 2 more\)"
    assert any(re.fullmatch(several, line) for line in lines)
    assert "sweep: method.tau=1,seed=0/psa_train failed: no file" in lines
    made = tables(settings)
    paired = [t for t in made if t.title.startswith("Paired") and len(t.rows) > MOST_DRAWN]
    assert paired and not differences(paired)
    # All are compared with the first, which stands in the title alone.
    assert paired[0].title.endswith(", against sweep method.tau=0")
    assert "against" not in paired[0].columns
    assert {len(row) for row in paired[0].rows} == {len(paired[0].columns)}
    out = tmp_path / "my runs" / "report"
    page = render("r", settings, made, out)
    assert f"{count} settings, {count} runs, 6 of them failed;" in page

    class Reader(html.parser.HTMLParser):
        pictures, links, entries = 0, [], 0

        def handle_starttag(self, tag, attrs) -> None:
            given = dict(attrs)
            self.pictures += tag == "img" and "eval_cam: pictures" in given["alt"]
            self.entries += str(given.get("id")).startswith("run-")
            if tag == "a" and not given["href"].startswith("#"):
                self.links.append(given["href"])

    reader = Reader()
    reader.feed(page)
    assert reader.entries == count and reader.pictures == shown
    targets = [(out / unquote(link)).resolve() for link in reader.links]
    assert len(targets) == count - shown
    assert all(t.is_file() and t.name == "contact_sheet.png" for t in targets)


def test_one_setting_and_one_run_are_named_so(tmp_path) -> None:
    stage(tmp_path / "r" / "default", "crf", {"crf": figures(np.random.default_rng(0))})
    settings = gather([tmp_path / "r"])
    assert "1 setting, 1 run;" in render("r", settings, tables(settings))


def test_published_figures_belong_to_recipes_and_their_data() -> None:
    found = published()
    assert set(found) == {"voc", "coco"}
    assert found["coco"]["cpal_coco"]["seg"] == {"val": 42.9}
    # Built on cpal_voc, whose data it has and whose figures it has not.
    assert found["voc"]["cpal_table1_context"]["seed"] == 51.2
    assert "crf" not in found["voc"]["cpal_table1_context"]
    assert "cpal_fig4_tau" not in found["voc"]
    for recipes in found.values():
        for name, figures in recipes.items():
            assert set(figures) <= {"row", "seed", "threshold", "crf", "mask", "seg", "source"}, (
                name
            )
            assert {"row", "source"} <= set(figures) and (RECIPES / f"{name}.yaml").is_file()


def test_gaps_and_differences_are_told(sweep) -> None:
    run, _ = sweep
    broken = run / "seed=2"
    write_json(broken / "train" / "started.json", {})
    write_json(broken / "eval_cam" / "failed.json", {"reason": "data.root: no such folder"})
    settings = gather([run])
    (gaps,) = (setting.gaps() for setting in settings if not setting.overrides)
    assert ["".join(gap) for gap in gaps] == [
        "cpal_voc: seed=2/train unfinished",
        "cpal_voc: seed=2/eval_cam failed: data.root: no such folder",
        "cpal_voc: seed=2: crf, seg_eval/val not run",
    ]
    assert differing(settings) == {"method.tau": [0.1, 0.2]}
    with pytest.raises(WsssError, match="there is no run nothing"):
        gather([run.parent / "nothing"])


class Sources(html.parser.HTMLParser):
    """Everything a browser would fetch, and whether all tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_by_itself_and_escapes_what_it_shows(sweep) -> None:
    run, ours = sweep
    settings = gather([run])
    page = render("<script>alert(1)</script>", settings, tables(settings))
    sources = Sources()
    sources.feed(page)
    assert not sources.open
    assert all(s.startswith(("data:image/", "#")) for s in sources.found), "no network"
    assert not re.search(r"url\(|@import", page)
    assert page.count("<script") == 1 and "alert(1)</script>" not in page, "the page's own alone"
    anchors = {s[1:] for s in sources.found if s.startswith("#")}
    assert anchors and all(f'id="{anchor}"' in page for anchor in anchors)
    for one in ours:
        assert f"mIoU {one['pacam']['miou']:.2f}" in page
    assert page.count('alt="eval_cam: pictures"') == 2  # one contact sheet for each setting
    widths = [int(w) for w in re.findall(r'width="(\d+)"', page)]
    assert max(widths) <= 1400


def test_confusion_figures_keep_the_order_of_the_labels(tmp_path) -> None:
    rng = np.random.default_rng(0)
    stage(tmp_path / "r" / "default", "crf", {"seed": figures(rng), "crf": figures(rng)})
    (setting,) = gather([tmp_path / "r"])
    one = setting.jobs[0].stage("crf")
    assert one is not None and one.main == "crf"
    assert list(one.scores["crf"]["iou"]) == list(LABELS)
    assert label_names(one.scores["crf"]) == list(LABELS)
