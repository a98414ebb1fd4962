"""A trained segmentation network as one file that needs nothing of this project."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import AvgPool2dSame, Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor, nn

from wsss.errors import WsssError
from wsss.files import atomic
from wsss.segmentation.module import Segmenter

FORMATS = {"torch": "segmenter.pt2", "onnx": "segmenter.onnx"}
LARGEST = 4096  # pixels; height and width of images that the exported program takes


class ExportedSegmenter(nn.Module):
    """From a photograph to logits at its size: what is exported.

    Args:
        network: the trained network with its scales.
        mean: mean per RGB channel in [0, 1].
        std: standard deviation per RGB channel in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Segmenter, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = copy.copy(network)  # shares its weights
        self.network.for_export = True
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Logits (1, C, H, W) float32 of an RGB image (1, 3, H, W), float32 in 0..1."""
        logits: Tensor = self.network.logits((image - self.mean) / self.std)
        size = image.shape[-2], image.shape[-1]
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)

    @property
    def smallest(self) -> int:
        """Least height and width, pixels, that the exported program takes.

        Two cells of the logits at the smallest scale: the exporter treats a size of 1 apart.
        """
        cells = 2 * self.network.network.output_stride
        return max(32, math.ceil(cells / min(self.network.scales)))


def check_format(file_format: str) -> None:
    """Check that a format can be written here.

    Raises:
        WsssError: if it is unknown, or its packages are not installed.
    """
    if file_format not in FORMATS:
        raise WsssError(f"segmentation.export.format={file_format}: choose {' or '.join(FORMATS)}")
    if file_format == "onnx":
        absent = [p for p in ("onnx", "onnxscript") if importlib.util.find_spec(p) is None]
        if absent:
            raise WsssError(
                f"segmentation.export.format=onnx needs {' and '.join(absent)}: "
                f"pip install -c constraints.txt -e '.[onnx]', or take format=torch"
            )


def for_any_size(network: nn.Module) -> None:
    """Put layers whose padding depends on the size of their input into a form for any size.

    The exporter ties them to the even or odd sizes that it sees. Values stay the same:

    - pooling that rounds sizes up: further rows and columns and sizes rounded down,
      floor((H + s - 1) / s) = ceil(H / s);
    - TensorFlow's "same" padding of timm's layers, as an expression of the size.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            form = _form_for_any_size(child)
            if form is not None:
                setattr(parent, name, form)


def _form_for_any_size(layer: nn.Module) -> nn.Module | None:
    """Another form of a layer; None: it needs none, or there is none."""
    for same, plain in _SAME.items():
        if isinstance(layer, same):
            return _SamePadding(layer, plain)
    if not getattr(layer, "ceil_mode", False):
        return None
    if isinstance(layer, nn.MaxPool2d) and isinstance(layer.stride, int) and layer.dilation == 1:
        kernel, stride = layer.kernel_size, layer.stride
        if isinstance(kernel, int) and kernel >= stride:
            pad = nn.ConstantPad2d((0, stride - 1, 0, stride - 1), -float("inf"))
            return nn.Sequential(pad, nn.MaxPool2d(kernel, stride, layer.padding))
    if isinstance(layer, nn.AvgPool2d) and layer.padding == 0 and layer.kernel_size == 2:
        if layer.stride == 1:
            return nn.AvgPool2d(2, 1)
        if layer.stride == 2:
            # At an odd edge the mean is over one column: that of the column and its copy.
            return nn.Sequential(nn.ReplicationPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, 2))
    return None


# Layers of timm with "same" padding, and what they are without.
_SAME: dict[type[nn.Module], type[nn.Module]] = {
    Conv2dSame: nn.Conv2d,
    MaxPool2dSame: nn.MaxPool2d,
    AvgPool2dSame: nn.AvgPool2d,
}


class _SamePadding(nn.Module):
    """TensorFlow's "same" padding before a layer: ceil(H / stride) cells, the rest of it behind.

    Args:
        layer: one of timm's; it is changed.
        plain: its class without padding.
    """

    def __init__(self, layer: Any, plain: type[nn.Module]) -> None:
        super().__init__()
        dilation = _pair(getattr(layer, "dilation", 1))
        reach = [d * (k - 1) + 1 for k, d in zip(_pair(layer.kernel_size), dilation, strict=True)]
        self.reach, self.stride = reach, _pair(layer.stride)
        self.value = -float("inf") if plain is nn.MaxPool2d else 0.0
        layer.__class__ = plain
        if max(self.stride) == 1 and hasattr(layer, "ceil_mode"):
            layer.ceil_mode = False
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Pad (B, C, H, W), then the layer."""
        pads: list[Any] = []
        for axis in (1, 0):
            length, stride, reach = x.shape[axis + 2], self.stride[axis], self.reach[axis]
            total = -length % stride + reach - stride if reach >= stride else 0
            pads += [total // 2, total - total // 2]
        return self.layer(F.pad(x, pads, value=self.value))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def export(program: ExportedSegmenter, path: Path, file_format: str = "torch") -> None:
    """Write the network for images of any height and width.

    Args:
        program: what to export; it is not changed.
        path: file to write.
        file_format: torch (a program of torch.export) or onnx.

    Raises:
        WsssError: if the network can't be exported.
    """
    check_format(file_format)
    program = copy.deepcopy(program).to("cpu", torch.float32).eval().requires_grad_(False)
    program.to(memory_format=torch.contiguous_format)
    for_any_size(program)
    smallest = program.smallest
    size = 2 * smallest + 33, 2 * smallest + 67
    example = (torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)),)
    limits = {"min": smallest, "max": LARGEST}
    sides = {2: torch.export.Dim("height", **limits), 3: torch.export.Dim("width", **limits)}
    try:
        with atomic(path) as temporary, _quiet(), torch.no_grad():
            exported = torch.export.export(program, example, dynamic_shapes={"image": sides})
            if file_format == "torch":
                torch.export.save(exported, temporary)
            else:
                torch.onnx.export(
                    exported,
                    f=temporary,
                    input_names=["image"],
                    output_names=["logits"],
                    external_data=False,
                )
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WsssError(
            f"this network can't be exported as {file_format}: {first[:300]}"
        ) from error


def load_exported(path: Path) -> Callable[[Tensor], Tensor]:
    """An exported file as a function from images (1, 3, H, W) in 0..1 to logits (1, C, H, W).

    Raises:
        WsssError: if the file can't be read, or is ONNX and onnxruntime is not installed.
    """
    if path.suffix == ".pt2":
        try:
            # The file's head is read back by PyTorch under a name of its own choosing.
            return torch.export.load(path).module()
        except Exception as error:
            raise WsssError(f"{path}: can't be read as an exported program ({error})") from error
    if importlib.util.find_spec("onnxruntime") is None:
        raise WsssError(f"{path}: reading it needs onnxruntime: pip install onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def disagreement(expected: Tensor, found: Tensor, tolerance: float = 1e-3) -> float:
    """Share of pixels whose best class differs although it is not a near tie.

    Args:
        expected: logits (1, C, H, W).
        found: logits of the same shape.
        tolerance: a pixel is a near tie when its two best logits differ by less than this share of
            the highest absolute logit: sums in another order may then turn it.
    """
    if expected.shape != found.shape:
        raise WsssError(
            f"the exported network answers {tuple(found.shape)} instead of {tuple(expected.shape)}"
        )
    best = expected.topk(2, dim=1).values
    clear = best[:, 0] - best[:, 1] > tolerance * expected.abs().max()
    return float(((expected.argmax(1) != found.argmax(1)) & clear).float().mean())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notices, which tell a user nothing about this network."""
    loggers = [
        logging.getLogger(name) for name in ("torch.export", "torch.onnx", "onnxscript", "onnx_ir")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
