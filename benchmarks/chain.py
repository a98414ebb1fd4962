"""The whole chain, stage by stage: seconds, shares, seconds per image, hours for VOC and COCO.

    python benchmarks/chain.py experiment=cpal_mini_segmentation data.root=DIR backbone.weights=FILE
    python benchmarks/chain.py --read outputs/RUN/SETTINGS          a run that lies there
    python benchmarks/chain.py --read outputs/OLD/... outputs/NEW/...   one beside the other
    python benchmarks/chain.py --quick                              generated scenes

The stages of the key `pipeline` run one after the other, each in a process of its own as a user
starts it; `start` is what a process needs besides the stage: imports, settings, the end. The
hours are the stage's seconds times the images that VOC 2012 (trainaug 10,582, val 1,449) and COCO
2014 (train 82,081, val 40,137) have for each image here, with the same settings on this machine:
photographs of about the same size, as many epochs and scales.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from wsss.files import read_json

ROOT = Path(__file__).resolve().parents[1]
QUICK = (
    "experiment=demo_segmentation",
    "training.max_epochs=1",
    "refine.irn.max_epochs=1",
    "segmentation.train.max_epochs=1",
    "data.image_set.n_train=12",
    "data.image_set.n_val=4",
)
VAL_STAGES = {"seg_eval", "seg_predict"}
SETS = {"VOC": (10_582, 1_449), "COCO": (82_081, 40_137)}  # images of training, of validation


@dataclass(frozen=True)
class Row:
    """A stage: its seconds, those of its process besides, its images."""

    stage: str
    seconds: float
    start: float | None
    images: int

    def hours(self, name: str) -> float:
        """What it would take with the images of VOC or COCO."""
        return self.seconds / self.images * SETS[name][self.stage in VAL_STAGES] / 3600


def read(run: Path, wall: dict[str, float] | None = None) -> list[Row]:
    """The stages that have ended in a run's folder, in the order in which they did."""
    manifests = sorted(run.rglob("manifest.json"), key=lambda path: path.stat().st_mtime)
    rows = []
    for path in manifests:
        made = read_json(path)
        stage, seconds = str(made["stage"]), float(made["seconds"])
        start = wall[stage] - seconds if wall and stage in wall else None
        rows.append(Row(stage, seconds, start, int(made.get("images") or 1)))
    return rows


def work(overrides: list[str], outputs: str) -> list[Row]:
    """Run the stages of the recipe's pipeline, one process each."""
    program = [sys.executable, str(ROOT / "run.py"), *overrides, f"paths.outputs={outputs}"]
    told = subprocess.run(
        [*program, "--cfg", "job", "--package", "pipeline"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    stages = [line.lstrip("- ") for line in told.stdout.splitlines() if line.startswith("- ")]
    wall = {}
    for stage in stages:
        begin = time.perf_counter()
        subprocess.run([*program, f"stage={stage}"], stdout=subprocess.DEVNULL, check=True)
        wall[stage] = time.perf_counter() - begin
        print(f"{stage}: {wall[stage]:.1f} s", file=sys.stderr, flush=True)
    (run,) = (path for path in Path(outputs).glob("*/*") if (path / stages[0]).is_dir())
    return read(run, wall)


def table(rows: list[Row]) -> str:
    """One run: where its time goes."""
    whole = sum(row.seconds for row in rows)
    lines = [
        "| stage | s | share | start s | images | s / image | VOC h | COCO h |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        start = "" if row.start is None else f"{row.start:.1f}"
        lines.append(
            f"| {row.stage} | {row.seconds:.1f} | {100 * row.seconds / whole:.0f} % | {start} | "
            f"{row.images:,} | {row.seconds / row.images:.3f} | {row.hours('VOC'):.2f} | "
            f"{row.hours('COCO'):.1f} |"
        )
    start = sum(row.start or 0 for row in rows)
    voc, coco = (sum(row.hours(name) for row in rows) for name in SETS)
    lines.append(f"| all | {whole:.1f} | 100 % | {start:.1f} | | | {voc:.2f} | {coco:.1f} |")
    return "\n".join(lines)


def beside(runs: list[list[Row]]) -> str:
    """Several runs of one chain: seconds of each stage, and how much faster the last one is."""
    found = [{row.stage: row.seconds for row in rows} for rows in runs]
    stages = [row.stage for row in runs[0] if all(row.stage in one for one in found)]
    lines = ["| stage |" + " s |" * len(runs) + " faster |", "|---" * (len(runs) + 2) + "|"]
    for stage in [*stages, "all"]:
        of = [sum(o[s] for s in stages) if stage == "all" else o[stage] for o in found]
        told = " | ".join(f"{seconds:.1f}" for seconds in of)
        lines.append(f"| {stage} | {told} | {of[0] / of[-1]:.1f}x |")
    return "\n".join(lines)


def main() -> None:
    """Run or read, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--read", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--quick", action="store_true", help="generated scenes")
    options, overrides = parser.parse_known_args()
    if options.read:
        runs = [read(run) for run in options.read]
        print(table(runs[0]) if len(runs) == 1 else beside(runs))
        return
    with tempfile.TemporaryDirectory() as outputs:
        print(
            table(work([*(QUICK if options.quick or not overrides else ()), *overrides], outputs))
        )


if __name__ == "__main__":
    main()
