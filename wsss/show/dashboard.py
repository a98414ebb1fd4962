"""What a stage shows: figures in its folder whatever the logger, and the same on dashboards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from wsss.show.charts import draw_class_bars, draw_confusion, draw_threshold_curves
from wsss.show.layout import Cell, compose, entries_of

ROW_HEIGHT = 240  # pixels of a picture in the rows that dashboards show

# What is logged of a row of scores, where the row has it; percent, thresholds apart.
SCALARS = (
    "miou",
    "miou_best_threshold",
    "best_threshold",
    "false_positive",
    "false_negative",
    "precision",
    "recall",
)


def wandb_runs(loggers: Sequence[Logger]) -> list[Any]:
    """The open W&B runs among the loggers; none unless `logger=wandb`."""
    return [logger.experiment for logger in loggers if isinstance(logger, WandbLogger)]


def tensorboards(loggers: Sequence[Logger]) -> list[Any]:
    """The writers of TensorBoard's files among the loggers."""
    return [logger.experiment for logger in loggers if isinstance(logger, TensorBoardLogger)]


def shows_pictures(loggers: Sequence[Logger]) -> bool:
    """Whether one of the loggers is a dashboard that shows pictures."""
    return any(isinstance(logger, TensorBoardLogger | WandbLogger) for logger in loggers)


def show_scores(
    loggers: Sequence[Logger], folder: Path, rows: Mapping[str, Mapping[str, Any]], main: str
) -> list[Path]:
    """Log scores against masks, and draw them.

    PNG files: `per_class.png`, `confusion.png` (of the main row) and, where rows have a curve,
    `threshold_curve.png`. Scalars for every logger: `eval/<row>_<score>`, and `eval/miou` of the
    main row. TensorBoard also gets the figures, W&B the tables `per_class`, `confusion` (as a
    chart) and `threshold_curve` (as a chart).

    Args:
        loggers: the stage's loggers.
        folder: the stage's folder.
        rows: what was scored (kinds of map, or steps of refinement) with the figures of
            `Scores.as_dict`, `confusion` (L, L) and perhaps `curve`.
        main: the row that the stage is about.

    Returns:
        The files.
    """
    names = list(rows[main]["iou"])
    matrix = np.asarray(rows[main]["confusion"], dtype=np.int64)
    curves = {row: scores for row, scores in rows.items() if "curve" in scores}
    files = [
        draw_class_bars(rows, folder / "per_class.png"),
        draw_confusion(matrix, names, folder / "confusion.png", main),
    ]
    if curves:
        files.append(draw_threshold_curves(curves, folder / "threshold_curve.png"))
    values = {
        f"eval/{row}_{key}": scores[key]
        for row, scores in rows.items()
        for key in SCALARS
        if key in scores
    }
    for logger in loggers:
        logger.log_metrics({**values, "eval/miou": rows[main]["miou"]})
        logger.save()
    for board in tensorboards(loggers):
        for path in files:
            with Image.open(path) as file:
                board.add_image(path.stem, np.asarray(file.convert("RGB")), dataformats="HWC")
        board.flush()
    for run in wandb_runs(loggers):
        run.log({**_tables(rows, names, matrix), **_curve_chart(curves)})
    return files


def show_facts(loggers: Sequence[Logger], stage: str, facts: Mapping[str, float | None]) -> None:
    """Log what a stage without scores has to tell, as `STAGE/KEY`; what is None is left out.

    Args:
        loggers: the stage's loggers.
        stage: its name.
        facts: figures by key.
    """
    values = {f"{stage}/{key}": value for key, value in facts.items() if value is not None}
    for logger in loggers:
        logger.log_metrics(values)
        logger.save()


def show_pictures(
    loggers: Sequence[Logger],
    rows: Sequence[Sequence[Cell]],
    headings: Sequence[str],
    captions: Sequence[str],
    classes: Sequence[str] = (),
    step: int | None = None,
) -> None:
    """Put the rows of a contact sheet on W&B, under the key `pictures`, and on TensorBoard.

    Each row is one picture, with headings, caption and legend in it, as in the sheet.

    Args:
        loggers: the stage's loggers; others than those two show no pictures.
        rows: for each image its pictures, shown side by side.
        headings: what the pictures of a row are.
        captions: one for each row, none twice: the image's name.
        classes: foreground class names, for legends; without them no legends.
        step: of the training that they were made in, if in one.
    """
    if not shows_pictures(loggers):
        return
    runs, boards = wandb_runs(loggers), tensorboards(loggers)
    pictures = [
        compose([row], headings, [caption], classes, ROW_HEIGHT)
        for row, caption in zip(rows, captions, strict=True)
    ]
    for board in boards:
        for picture, caption in zip(pictures, captions, strict=True):
            board.add_image(f"pictures/{caption}", picture, step, dataformats="HWC")
        board.flush()
    for run in runs:
        from wandb import Image as Shown

        shown = " | ".join(headings)
        images = [
            Shown(picture, caption=f"{_told(row, caption, classes)}\n{shown}")
            for picture, row, caption in zip(pictures, rows, captions, strict=True)
        ]
        run.log({"pictures": images} | ({} if step is None else {"trainer/global_step": step}))


def _told(row: Sequence[Cell], caption: str, classes: Sequence[str]) -> str:
    """A row's caption and the names in its legend."""
    names = [name for _, name in entries_of(row, classes)] if classes else []
    return f"{caption}: {', '.join(names)}" if names else caption


def _tables(
    rows: Mapping[str, Mapping[str, Any]], names: Sequence[str], matrix: np.ndarray
) -> dict[str, Any]:
    """W&B's table of each class's IoU and its chart of a confusion matrix (pixels)."""
    import wandb

    per_class = [[name, *(scores["iou"][name] for scores in rows.values())] for name in names]
    cells = [
        [true, predicted, int(matrix[i, j])]
        for i, true in enumerate(names)
        for j, predicted in enumerate(names)
    ]
    columns: list[str | int] = ["Actual", "Predicted", "nPredictions"]
    return {
        "per_class": wandb.Table(columns=["class", *rows], data=per_class),
        "confusion": wandb.plot_table(
            "wandb/confusion_matrix/v1",
            wandb.Table(columns=columns, data=cells),
            {str(column): str(column) for column in columns},
            {"title": "pixels by true and predicted class"},
        ),
    }


def _curve_chart(curves: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """W&B's chart of mIoU over the threshold; nothing without curves."""
    import wandb

    if not curves:
        return {}
    chart = wandb.plot.line_series(
        xs=[scores["curve"]["threshold"] for scores in curves.values()],
        ys=[scores["curve"]["miou"] for scores in curves.values()],
        keys=list(curves),
        title="mIoU by background threshold",
        xname="threshold",
    )
    return {"threshold_curve": chart}
