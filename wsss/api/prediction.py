"""What a model answers for one photograph."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from wsss.data.masks import VOID, write_mask
from wsss.errors import WsssError
from wsss.files import atomic
from wsss.maps.files import ClassMaps, write_class_maps
from wsss.maps.fuse import enlarge
from wsss.show.legend import overlay_with_legend
from wsss.show.overlays import class_overlay


@dataclass(frozen=True)
class Prediction:
    """What a model answers for one photograph.

    Attributes:
        name: file name of the photograph without its suffix, or what stands for it.
        picture: the photograph, (H, W, 3) uint8 RGB, upright.
        labels: label map, (H, W) uint8: 0 background, `classes[n]` is n + 1, 255 void.
        classes: names of the foreground classes that the model knows.
        maps: of a seed network: class maps of the image's classes by kind, float32 in [0, 1].
        kind: of a seed network: the kind of map that `labels` comes from.
        probabilities: of a segmentation network: (C, h, w) float32, background first, at the size
            that the photograph was looked at.
    """

    name: str
    picture: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    maps: ClassMaps | None = None
    kind: str | None = None
    probabilities: np.ndarray | None = None

    @property
    def found(self) -> tuple[str, ...]:
        """Classes in the label map, by their share of it, the largest first."""
        area = np.bincount(self.labels.ravel(), minlength=256)
        ids = [int(i) for i in np.argsort(-area, kind="stable") if area[i] and 0 < i < VOID]
        return tuple(self.classes[i - 1] for i in ids)

    def map_of(self, name: str, kind: str | None = None) -> np.ndarray:
        """The map of one class at the photograph's size, (H, W) float32 in [0, 1].

        Args:
            name: a class, or `background` where there is a map of it.
            kind: of a seed network: which kind; None: `self.kind`.

        Raises:
            WsssError: there is no such map.
        """
        size = self.labels.shape[0], self.labels.shape[1]
        if self.maps is None:
            assert self.probabilities is not None
            names = ["background", *self.classes]
            values = self.probabilities
        else:
            kind = kind or self.kind
            if kind not in self.maps.maps:
                raise WsssError(f"kind={kind}: there are {', '.join(self.maps.maps)}")
            names = [self.classes[i - 1] for i in self.maps.classes]
            names = ["background"] * self.maps.has_background(kind) + names
            values = self.maps.maps[kind]
        if name not in names:
            raise WsssError(f"{self.name}: no map of '{name}'; there are {', '.join(names)}")
        row = names.index(name)
        return enlarge(values[row : row + 1], size)[0]

    def overlay(self, name: str | None = None, kind: str | None = None) -> Image.Image:
        """The label map over the photograph with a legend, or the map of one class over it.

        Args:
            name: a class; None: the label map.
            kind: see `map_of`.

        Returns:
            A picture of 1280 pixels at most on its longer side, the legend apart.
        """
        if name is None:
            return Image.fromarray(overlay_with_legend(self.picture, self.labels, self.classes))
        label = self.classes.index(name) + 1 if name in self.classes else 0
        shown = class_overlay(self.picture, self.map_of(name, kind), label)
        picture = Image.fromarray(shown)
        picture.thumbnail((1280, 1280))
        return picture

    def save(self, path: str | Path) -> list[Path]:
        """Write what its ending says, or all into a folder.

        Args:
            path: `.png`: the label map as palette PNG; `.jpg`: the overlay; `.npz`: class maps, as
                `stage=make_cam` stores them (`wsss.read_maps` reads them). Without ending a
                folder, which gets NAME.png, NAME.jpg and, of a seed network, NAME.npz.

        Returns:
            The files.

        Raises:
            WsssError: another ending, or no class maps to write.
        """
        path = Path(path).expanduser()
        suffix = path.suffix.lower()
        if path.is_dir() or not suffix:
            endings = [".png", ".jpg"] + [".npz"] * (self.maps is not None)
            return [one for end in endings for one in self.save(path / f"{self.name}{end}")]
        if suffix == ".png":
            write_mask(path, self.labels)
        elif suffix in (".jpg", ".jpeg"):
            with atomic(path) as temporary:
                self.overlay().save(temporary, format="JPEG", quality=92)
        elif suffix == ".npz":
            if self.maps is None:
                raise WsssError(f"{path}: a segmentation network has no class maps; take .png")
            write_class_maps(path, self.maps, "float16")
        else:
            raise WsssError(f"{path}: give .png (label map), .jpg (overlay), .npz or a folder")
        return [path]

    def _repr_png_(self) -> bytes:
        """The overlay, for notebooks."""
        buffer = io.BytesIO()
        self.overlay().save(buffer, format="PNG")
        return buffer.getvalue()

    def __repr__(self) -> str:
        height, width = self.labels.shape
        found = ", ".join(self.found) or "background only"
        return f"Prediction({self.name}, {height} x {width}: {found})"
