"""Finished networks that answer for photographs."""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wsss.api.photographs import (
    Labels,
    Photo,
    Photograph,
    PhotoSet,
    is_single,
    per_photo,
    photos_of,
    vectors_of,
)
from wsss.api.prediction import Prediction
from wsss.build.blueprint import SeedUse, used_by_segmenter
from wsss.build.components import TARGET
from wsss.build.settings import plain
from wsss.data.datamodule import WholeSet
from wsss.data.masks import VOID, read_mask
from wsss.data.transforms import Pyramid, resize_bilinear
from wsss.errors import WsssError
from wsss.evaluation.seeds import seed_labels
from wsss.files import atomic
from wsss.hosts.given import Given
from wsss.maps.files import ClassMaps, read_class_maps
from wsss.maps.fuse import enlarge
from wsss.methods.network import SeedNetwork
from wsss.refine.crf import crf_from_probabilities, seed_probabilities
from wsss.segmentation.base import SegmentationNetwork
from wsss.segmentation.module import Segmenter
from wsss.segmentation.predict import class_probabilities, label_map, refined_labels
from wsss.segmentation.settings import SegmentationSettings
from wsss.version import __version__

ENDING = ".safetensors"
METADATA = "wsss"  # key of the blueprint in a model file
PRESENT = 0.5  # a class is taken to be in a photograph from this score on


class Model(ABC):
    """What `wsss.load` gives: a network that answers for photographs.

    Attributes:
        classes: foreground class names; class id n + 1 is `classes[n]`.
        blueprint: what the network is built from; None: it was put together by hand, and can't be
            saved.
        settings: how it is used; may be replaced by another one (`dataclasses.replace`).
    """

    classes: tuple[str, ...]
    blueprint: dict[str, Any] | None
    settings: Any

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The network itself, in evaluation mode."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """All tensors that a file must hold, by name."""

    @abstractmethod
    def stream(
        self, images: Photograph | Iterable[Photograph], *, crf: bool = False
    ) -> Iterator[Prediction]:
        """Predictions one after the other, for more photographs than memory holds."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(iter(self.weights().values())).device

    def to(self, device: str | torch.device) -> Self:
        """Move it to a device, such as `cuda`."""
        self.network.to(device)
        return self

    def plan(self) -> dict[str, Any]:
        """The blueprint of a copy that is filled with `weights`.

        Raises:
            WsssError: it was put together by hand.
        """
        if self.blueprint is None:
            raise WsssError(
                "nothing says what this network is built from, as it was put together by hand: "
                "save its state_dict, or train it by stage=train"
            )
        return dict(self.blueprint)

    def save(self, path: str | Path) -> Path:
        """Write it as one file that needs no settings: `.safetensors`, with JSON in its metadata.

        Returns:
            The file.

        Raises:
            WsssError: another ending, or a network put together by hand.
        """
        path = Path(path).expanduser()
        if path.suffix != ENDING:
            raise WsssError(f"{path}: a model is saved as {ENDING}")
        about = {METADATA: json.dumps(self.plan()), "version": __version__, "format": "pt"}
        tensors = {n: value.detach().cpu().contiguous() for n, value in self.weights().items()}
        with atomic(path, durable=True) as temporary:
            save_file(tensors, temporary, metadata=about)
        return path

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.classes)} classes on {self.device})"


class SeedModel(Model):
    """Class maps and seeds by a host and a method (stages make_cam, eval_cam, crf).

    Args:
        network: host and method, trained.
        settings: how maps are made.
        blueprint: what it was built from.
        refreshed: whether the method's state is that of the final weights, see `refresh`.

    Example:
        >>> model = wsss.load("outputs/sipe_folder/default/train")
        >>> result = model.predict("photo.jpg", labels=["dog", "person"])
        >>> result.overlay("dog").save("dog.png")
    """

    settings: SeedUse

    def __init__(
        self,
        network: SeedNetwork,
        settings: SeedUse | None = None,
        blueprint: Mapping[str, Any] | None = None,
        refreshed: bool = False,
    ) -> None:
        self._seeds = network.eval()
        self.settings = settings or SeedUse()
        self.classes = network.host.classes
        self.blueprint = None if blueprint is None else {**blueprint, "refreshed": refreshed}
        self._warned = refreshed or not _wants_refresh(network)
        # Folded below; what is saved is what was trained.
        self._trained = dict(network.state_dict())
        hidden = {n: v for n, v in network.named_buffers() if n not in self._trained}
        self._trained |= hidden
        network.host.folded()

    @property
    def network(self) -> SeedNetwork:
        """Host and method, batch normalization folded into convolutions where the host does so."""
        return self._seeds

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of class map that it makes, the method's own last."""
        return tuple(self._seeds.kinds)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        tensors = (*self._seeds.parameters(), *self._seeds.buffers())
        return tensors[0].device

    def weights(self) -> dict[str, Tensor]:
        """All tensors that a file must hold, by name, as they were trained."""
        return self._trained

    def plan(self) -> dict[str, Any]:
        """The blueprint of a copy that is filled with `weights`, which hold the host's own too."""
        content = super().plan()
        options = plain(self._seeds.host.without_files())
        host = {TARGET: content["host"][TARGET], **options}
        return {**content, "host": host, "use": plain(self.settings)}

    @overload
    def predict(  # type: ignore[overload-overlap]  # a text is a file or folder, no collection
        self,
        images: Photograph,
        labels: Labels | str | None = None,
        *,
        crf: bool = False,
        given: Any = None,
    ) -> Prediction: ...
    @overload
    def predict(
        self,
        images: Iterable[Photograph],
        labels: Any = None,
        *,
        crf: bool = False,
        given: Any = None,
    ) -> list[Prediction]: ...
    def predict(
        self,
        images: Photograph | Iterable[Photograph],
        labels: Any = None,
        *,
        crf: bool = False,
        given: Any = None,
    ) -> Prediction | list[Prediction]:
        """Class maps and seeds of photographs.

        Args:
            images: a file, a Pillow picture or an array (H, W, 3) of uint8 RGB; or a folder or a
                collection of these.
            labels: the classes in a photograph, by name; for several a mapping from file names
                (with or without suffix), a sequence in their order, or a label file
                (`labels.csv`, `labels.json`). None: those that `classify` scores above 0.5. Methods
                are published with given labels: maps of a class that is not there show something
                else.
            crf: whether seeds are refined by the dense CRF of `settings.crf`.
            given: what a host reads beside the photograph: for AMN the label map of its first step,
                an array or a PNG; for `host=given` a class-map file, without which the classifier's
                maps stand in; for several a folder (NAME.png, NAME.npz), a mapping or a sequence.

        Returns:
            One prediction for a file, picture or array; for a folder or collection a list. (Type
            checkers take the path of a folder for that of a file; `stream` tells them better.)

        Raises:
            WsssError: a photograph can't be read, an unknown label, or the host needs labels or
                `given`.
        """
        found = list(self.stream(images, labels, crf=crf, given=given))
        return found[0] if is_single(images) else found

    def stream(
        self,
        images: Photograph | Iterable[Photograph],
        labels: Any = None,
        *,
        crf: bool = False,
        given: Any = None,
    ) -> Iterator[Prediction]:
        """What `predict` answers, one photograph after the other; memory holds one."""
        photos, single = photos_of(images), is_single(images)
        vectors = vectors_of(labels, photos, self.classes, single)
        beside = self._given(given, photos, single)
        if not self._warned:
            self._warned = True
            warnings.warn(
                "maps are made with the bank as the training left it; stage=make_cam refills it "
                "with the final weights first (method.test.refresh_bank): call "
                "model.refresh(photographs, labels) once",
                stacklevel=2,
            )
        for photo, vector, extra in zip(photos, vectors, beside, strict=True):
            yield self._predict(photo, vector, extra, crf)

    def classify(self, image: Photograph) -> dict[str, float]:
        """How sure the classifier is of each class being in a photograph, in [0, 1].

        The mean over the photograph, at the first of `settings.scales`, and its mirror image.

        Raises:
            WsssError: the host does not classify (AMN, CLIP-ES).
        """
        (photo,) = photos_of([image])
        scores = self._classify(self._sample(photo.read(), photo.name, {}))
        return dict(zip(self.classes, scores.tolist(), strict=True))

    def refresh(self, images: str | Path | Iterable[str | Path], labels: Any) -> Self:
        """Bring the method's state to the final weights, as `stage=make_cam` may do first.

        CPAL with `method.test.refresh_bank` (`method=cpal_small`) refills its bank of anchors from
        the training photographs and clusters it. What is saved afterwards holds the new state.

        Args:
            images: files or a folder.
            labels: their classes, see `predict`.
        """
        photos, network = photos_of(images), self._seeds
        vectors = [v for v in vectors_of(labels, photos, self.classes, False) if v is not None]
        if len(vectors) < len(photos):
            raise WsssError("refresh: give the labels of the training photographs")
        if network.host.reads_labels or network.host.reads_maps:
            raise WsssError(
                "refresh: this host reads files of an earlier run; use stage=make_cam for it"
            )
        image_set = PhotoSet(photos, np.stack(vectors).astype(np.uint8), self.classes)
        names = image_set.names("all")
        inputs = self._inputs((1.0,))
        whole = WholeSet(image_set, names, inputs, image_set.labels(names))
        if network.branch is not None:
            network.branch.before_maps(network, whole)
            now = network.branch.state_dict(prefix="branch.")
            self._trained |= {name: value.detach().clone() for name, value in now.items()}
        if self.blueprint is not None:
            self.blueprint["refreshed"] = True
        self._warned = True
        return self

    def _inputs(self, scales: tuple[float, ...]) -> Pyramid:
        host = self._seeds.host
        return Pyramid(
            host.mean, host.std, scales, long_side=self.settings.long_side, size=host.test_size
        )

    def _sample(self, picture: np.ndarray, name: str, extra: Mapping[str, Any]) -> dict[str, Any]:
        device = self.device
        images = [one.to(device) for one in self._inputs(self.settings.scales)(picture)]
        sample = {"images": images, "name": name, "size": torch.tensor(picture.shape[:2])}
        beside = {key: torch.from_numpy(value).to(device) for key, value in extra.items()}
        return sample | beside

    def _classify(self, sample: Mapping[str, Any]) -> Tensor:
        network, nothing = self._seeds, torch.zeros(len(self.classes), device=self.device)
        with torch.inference_mode():
            seen, _ = network.see_pair(sample["images"][0], nothing)
            scores = network.host.image_scores(seen)
        if scores is None:
            raise WsssError(
                f"{sample['name']}: {type(network.host).__name__} does not classify photographs; "
                "give their classes, labels=[...]"
            )
        return scores.mean(dim=0).cpu()

    def _given(self, given: Any, photos: Sequence[Photo], single: bool) -> list[dict[str, Any]]:
        """What the host reads beside each photograph, as it stands in samples."""
        host = self._seeds.host
        if given is None and host.reads_labels:
            raise WsssError(
                f"{type(host).__name__} reads a label map of each photograph, made by its first "
                "step: give it, given=ARRAY, FILE.png or FOLDER"
            )
        if given is None:
            return [{} for _ in photos]
        if not (host.reads_labels or host.reads_maps):
            raise WsssError(f"given: {type(host).__name__} reads nothing beside the photograph")
        end = ".png" if host.reads_labels else ".npz"
        if single:
            given = [given]
        elif isinstance(given, str | Path):
            given = [Path(given).expanduser() / f"{photo.name}{end}" for photo in photos]
        return [self._beside(one) for one in per_photo(given, photos, "given")]

    def _beside(self, one: Any) -> dict[str, Any]:
        host = self._seeds.host
        if host.reads_labels:
            if isinstance(one, str | Path):
                one = read_mask(Path(one).expanduser(), len(self.classes))
            return {"target": np.ascontiguousarray(one, dtype=np.uint8)}
        assert isinstance(host, Given)
        if isinstance(one, str | Path):
            one = read_class_maps(Path(one).expanduser(), host.options.kind)
        if not isinstance(one, ClassMaps):
            raise WsssError(f"given: {type(one).__name__} must be a class-map file (.npz)")
        return {"maps": host.dense(one)}

    def _predict(
        self, photo: Photo, vector: np.ndarray | None, extra: Mapping[str, Any], crf: bool
    ) -> Prediction:
        network, use = self._seeds, self.settings
        picture = photo.read()
        target = extra.get("target")
        if target is not None and target.shape != picture.shape[:2]:
            raise WsssError(
                f"{photo.name}: the label map is {target.shape[0]} x {target.shape[1]}, the "
                f"photograph {picture.shape[0]} x {picture.shape[1]}"
            )
        sample = self._sample(picture, photo.name, extra)
        if vector is None:
            vector = (self._classify(sample) > PRESENT).float().numpy()
        sample["label"] = torch.from_numpy(vector).to(self.device)
        with torch.inference_mode(not network.host.needs_grad):
            found = network.whole_maps(sample, use.stride)
        classes = np.flatnonzero(vector) + 1
        size = picture.shape[0], picture.shape[1]
        maps = ClassMaps(classes, size, {k: v.float().cpu().numpy() for k, v in found.items()})
        kind = use.kind or self.kinds[-1]
        if kind not in maps.maps:
            raise WsssError(f"settings.kind={kind}: there are {', '.join(self.kinds)}")
        full = enlarge(maps.maps[kind], size)
        if crf:
            scores = seed_probabilities(full, classes, use.crf.background, use.crf.power)
            shares = crf_from_probabilities(picture, scores, use.crf)
            labels = np.concatenate([[0], classes])[shares.argmax(axis=0)].astype(np.uint8)
            if use.crf.confidence is not None:
                labels[shares.max(axis=0) < use.crf.confidence] = VOID
        else:
            own = maps.has_background(kind)
            labels, _, _ = seed_labels(full, classes, None if own else use.background)
            labels = labels.astype(np.uint8)
        return Prediction(photo.name, picture, labels, self.classes, maps, kind)


class SegmentationModel(Model):
    """Label maps by a segmentation network (stage seg_predict).

    Args:
        segmenter: the network with its scales, trained.
        settings: how it is used: `eval`, `long_side`, `predict.max_side`.
        blueprint: what it was built from.

    Example:
        >>> model = wsss.load("outputs/sipe_voc/default/seg_train")
        >>> model.predict("photo.jpg", crf=True).save("photo.png")
    """

    settings: SegmentationSettings

    def __init__(
        self,
        segmenter: Segmenter,
        settings: SegmentationSettings | None = None,
        blueprint: Mapping[str, Any] | None = None,
    ) -> None:
        self._segmenter = segmenter.eval()
        self.settings = settings or SegmentationSettings()
        self.classes = segmenter.class_names
        self.blueprint = None if blueprint is None else dict(blueprint)

    @property
    def network(self) -> Segmenter:
        """The network with its scales."""
        return self._segmenter

    def weights(self) -> dict[str, Tensor]:
        """All tensors that a file must hold, by name."""
        return self._segmenter.state_dict()

    def plan(self) -> dict[str, Any]:
        """The blueprint of a copy that is filled with `weights`, with the settings of now."""
        return {**super().plan(), "segmentation": used_by_segmenter(self.settings)}

    @overload
    def predict(  # type: ignore[overload-overlap]  # a text is a file or folder, no collection
        self, images: Photograph, *, crf: bool = False
    ) -> Prediction: ...
    @overload
    def predict(self, images: Iterable[Photograph], *, crf: bool = False) -> list[Prediction]: ...
    def predict(
        self, images: Photograph | Iterable[Photograph], *, crf: bool = False
    ) -> Prediction | list[Prediction]:
        """Label maps of photographs.

        Args:
            images: a file, a Pillow picture or an array (H, W, 3) of uint8 RGB; or a folder or a
                collection of these.
            crf: whether they are refined by the dense CRF of `settings.eval.crf`.

        Returns:
            One prediction for a file, picture or array; for a folder or collection a list. (Type
            checkers take the path of a folder for that of a file; `stream` tells them better.)

        Raises:
            WsssError: a photograph can't be read.
        """
        found = list(self.stream(images, crf=crf))
        return found[0] if is_single(images) else found

    def stream(
        self, images: Photograph | Iterable[Photograph], *, crf: bool = False
    ) -> Iterator[Prediction]:
        """What `predict` answers, one photograph after the other; memory holds one."""
        use, network = self.settings, self._segmenter.network
        assert isinstance(network, SegmentationNetwork)
        inputs = Pyramid(
            network.mean,
            network.std,
            long_side=use.long_side,
            max_side=use.predict.max_side,
            resize=resize_bilinear,
        )
        for photo in photos_of(images):
            picture = photo.read()
            (image,) = inputs(picture)
            with torch.inference_mode():
                shares = class_probabilities(
                    self._segmenter.logits, image.to(self.device), use.eval
                )
                labels = label_map(shares, (picture.shape[0], picture.shape[1])).cpu().numpy()
            probabilities = shares.cpu().numpy()
            if crf:
                labels = refined_labels(picture, probabilities, use.eval.crf)
            yield Prediction(photo.name, picture, labels, self.classes, probabilities=probabilities)


def _wants_refresh(network: SeedNetwork) -> bool:
    """Whether a branch asks for its bank to be renewed before maps."""
    tests = [getattr(getattr(m, "options", None), "test", None) for m in network.modules()]
    return any(getattr(test, "refresh_bank", False) for test in tests)
