"""CLIP-ES as a host, on a tiny tower drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from tests.hosts.clip_es.conftest import CLASSES
from wsss.cli import CONF
from wsss.data.voc import VOC_CLASSES
from wsss.errors import WsssError
from wsss.hosts.clip_es.functional import min_max, refine_by_attention
from wsss.hosts.clip_es.host import CLIPES, CLIPESSettings, sentences
from wsss.hosts.optimizer import OptimizerSettings
from wsss.methods.cpal.branch import CPAL
from wsss.methods.cpal.settings import CPALSettings, CPALTest
from wsss.methods.network import SeedNetwork
from wsss.settings import resolve

Make = Callable[..., CLIPES]
OPTIMIZER = OptimizerSettings(lr=0.1, head_lr=0.1)


def slow_cam(host: CLIPES, image: torch.Tensor, present: list[int], n: int) -> torch.Tensor:
    """Grad-CAM of one class of one image through a tower that keeps its whole graph."""
    visual = host.tower.visual
    kept: dict[str, Any] = {}

    def keep(module: Any, inputs: Any, output: Any) -> Any:
        kept["tokens"] = output.detach().requires_grad_()
        return kept["tokens"]

    hook = visual.transformer.resblocks[-1].ln_1.register_forward_hook(keep)
    trunk = host.tower.trunk(image[None], look=False)
    tokens = trunk.tokens
    block = visual.transformer.resblocks[-1]
    mixed = block.attn(*[block.ln_1(tokens)] * 3, need_weights=False)[0]
    hook.remove()
    tokens = tokens + mixed
    tokens = tokens + block.mlp(block.ln_2(tokens))
    embedding = (visual.ln_post(tokens)[0, 1:].mean(0) @ visual.proj)[None]
    rows = [*present, *range(len(CLASSES), len(host.texts))]
    cosines = F.cosine_similarity(embedding, host.texts[rows])
    score = (host.scale * cosines).softmax(0)[present.index(n)]
    (gradient,) = torch.autograd.grad(score, kept["tokens"])
    f = kept["tokens"].detach()[0, 1:]
    return (f @ gradient[0, 1:].mean(dim=0)).relu().view(trunk.grid)


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_maps_of_a_batch_are_those_of_one_class_at_a_time(
    make_host: Make, size: tuple[int, int]
) -> None:
    host = make_host()
    images = torch.randn(3, 3, *size)
    label = torch.tensor([[1.0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]])
    with torch.no_grad():
        seen = host(images, label)
    assert seen.activation.shape == (3, 4, size[0] // 8, size[1] // 8)
    assert not seen.activation.requires_grad
    for image in range(3):
        present = label[image].nonzero().flatten().tolist()
        assert not seen.activation[image, label[image] == 0].any()
        for n in present:
            wanted = slow_cam(host, images[image], present, n)
            found = seen.activation[image, n]
            assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.max()))
    assert float(seen.activation.amax()) > 1e-3


def test_other_classes_of_the_image_change_a_map(make_host: Make) -> None:
    host, image = make_host(), torch.randn(1, 3, 32, 32)
    alone = host(image, torch.tensor([[1.0, 0, 0, 0]])).activation[0, 0]
    beside = host(image, torch.tensor([[1.0, 0, 1, 0]])).activation[0, 0]
    assert not torch.allclose(alone, beside, rtol=1e-2)


def test_both_kinds_of_one_image(make_host: Make) -> None:
    host, image = make_host(), torch.randn(3, 24, 40)
    label = torch.tensor([1.0, 0, 1, 0])
    network = SeedNetwork(host, None, OPTIMIZER)
    assert not network.learns and list(network.kinds) == ["cam", "caa"]
    found = network.maps(image, label)
    seen = host(image[None], label[None])
    cam = min_max(seen.activation[0, [0, 2]])
    assert torch.allclose(found["cam"], cam, atol=1e-6)
    wanted = refine_by_attention(cam, seen.extra["attention"][0], 0.4)
    assert torch.allclose(found["caa"], wanted, atol=1e-6)
    assert found["caa"].shape == (2, 3, 5)


def test_an_image_without_classes_has_no_maps(make_host: Make) -> None:
    host = make_host()
    found = SeedNetwork(host, None, OPTIMIZER).maps(torch.randn(3, 24, 40), torch.zeros(4))
    assert {kind: tuple(maps.shape) for kind, maps in found.items()} == {
        "cam": (0, 3, 5),
        "caa": (0, 3, 5),
    }
    fused = host.fuse("caa", [found["caa"]], (6, 10), {})
    assert tuple(fused.shape) == (0, 6, 10)


def test_half_precision_changes_maps_little(make_host: Make) -> None:
    host, images = make_host(), torch.randn(2, 3, 32, 32)
    label = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0]])
    exact = host.general(host(images, label))
    with torch.autocast("cpu", torch.bfloat16):
        rough = host.general(host(images, label))
    assert rough.dtype == torch.float32
    assert float((rough - exact).abs().max()) < 0.1
    assert not torch.equal(rough, exact), "the trunk ran in bfloat16"


def test_scales_are_averaged(make_host: Make) -> None:
    small, large = torch.rand(2, 3, 3), torch.rand(2, 6, 6)
    found = make_host().fuse("caa", [small, large], (6, 6), {})
    up = F.interpolate(small[None], size=(6, 6), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(found, (up + large) / 2)


@pytest.mark.parametrize("size", [(375, 500), (8, 1), (17, 16)])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_inputs_are_whole_patches(make_host: Make, size: tuple[int, int], scale: float) -> None:
    found = make_host().test_size(size, scale)
    for side, given in zip(found, size, strict=True):
        assert side % 8 == 0 and given * scale <= side < given * scale + 8


def test_crop_of_parts_of_patches_is_refused(make_host: Make) -> None:
    host = make_host()
    assert host.crop(64, (40, 90)).side == 64
    with pytest.raises(WsssError, match=r"data\.crop_size=100: take a multiple of the patch, 8"):
        host.crop(100, (40, 90))


def test_nothing_of_the_tower_is_in_a_checkpoint(make_host: Make) -> None:
    host = make_host()
    assert not host.state_dict() and not list(host.parameters())
    branch = CPAL(CPALSettings(), host.channels, 4)
    network = SeedNetwork(host, branch, OPTIMIZER)
    assert all(name.startswith("branch.") for name in network.state_dict())
    assert all(value.device.type == "meta" for value in host.to("meta").buffers())


def cpal(host: CLIPES, **options: Any) -> CPAL:
    options = {"warmup_epochs": 0, "projection_dim": 6, "prototypes": "anchor", **options}
    torch.manual_seed(1)
    return CPAL(CPALSettings(**options), host.channels, 4)


def test_cpal_trains_its_projection_alone(make_host: Make) -> None:
    host = make_host().train()
    branch = cpal(host)
    network = SeedNetwork(host, branch, OPTIMIZER).train()
    batch = {
        "image": torch.randn(2, 3, 32, 32),
        "label": torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0]]),
        "valid": torch.ones(2, 32, 32),
    }
    seen = network(batch["image"], batch["label"])
    assert not seen.extra, "no attention is looked at in training"
    branch.bank.clustered_epoch.fill_(0)  # the warm-up is over
    loss = branch.losses(seen, host.general(seen), batch)["self"]
    loss.backward()
    learning = [name for name, p in network.named_parameters() if p.grad is not None]
    assert learning == ["branch.projection.0.weight"]
    assert float(branch.projection[0].weight.grad.abs().sum()) > 0  # type: ignore[union-attr, operator]


def test_pacam_takes_the_place_of_the_grad_cam_before_caa(make_host: Make) -> None:
    host = make_host()
    branch = cpal(host, test=CPALTest(alignment="off")).eval()
    network = SeedNetwork(host, branch, OPTIMIZER).eval()
    image, label = torch.randn(3, 24, 40), torch.tensor([1.0, 0, 1, 0])
    found = network.maps(image, label)
    assert list(found) == ["cam", "caa", "pacam"]
    seen, cam = network.see_pair(image, label)
    own = branch.maps(seen, cam, label)["pacam"]
    single = host(image[None], label[None])
    assert torch.allclose(branch.observe(seen)[0], branch.project(single.features), atol=1e-6)
    wanted = refine_by_attention(min_max(own[1:]), single.extra["attention"][0], 0.4)
    assert torch.allclose(found["pacam"][1:], wanted, atol=1e-5)
    assert torch.allclose(found["pacam"][0], 1 - wanted.amax(0), atol=1e-5)
    none = network.maps(image, torch.zeros(4))
    assert none["pacam"].shape == (1, 3, 5) and bool((none["pacam"] == 1).all())


def test_sentences() -> None:
    options = CLIPESSettings(words={"cat": "cat,kitten"}, background=("sky", "sea"))
    assert sentences(options, ["dog", "cat"]) == [
        "a clean origami dog.",
        "a clean origami cat,kitten.",
        "a clean origami sky.",
        "a clean origami sea.",
    ]
    with pytest.raises(WsssError, match=r"host\.words\.cat: no such class; there are dog, cow"):
        sentences(options, ["dog", "cow"])
    with pytest.raises(WsssError, match="host.prompt=photo: needs"):
        CLIPESSettings(prompt="photo", background=("sky",))
    with pytest.raises(WsssError, match=r"host\.background=\[\]"):
        CLIPESSettings(background=())


def words_of(name: str) -> CLIPESSettings:
    content = OmegaConf.load(CONF / "host/clip_es.yaml")
    if name != "clip_es":
        content = OmegaConf.merge(content, OmegaConf.load(CONF / f"host/{name}.yaml"))
    plain = OmegaConf.to_container(content)
    assert isinstance(plain, dict)
    return resolve(
        CLIPESSettings,
        {str(k): v for k, v in plain.items() if k not in ("_target_", "defaults")},
        "host",
    )


def test_released_words() -> None:
    voc, coco = words_of("clip_es_voc"), words_of("clip_es_coco")
    assert set(voc.words) <= set(VOC_CLASSES)
    assert len(voc.background) == 25 and len(coco.background) == 23
    assert set(voc.background) - set(coco.background) == {"keyboard", "sign"}
    assert (voc.box_threshold, coco.box_threshold) == (0.4, 0.7)
    # Where both sets have a class, its sentence is the same.
    same = {"airplane": "aeroplane", "couch": "sofa", "dining table": "diningtable"}
    same |= {"motorcycle": "motorbike", "potted plant": "pottedplant", "tv": "tvmonitor"}
    for theirs, ours in same.items():
        assert coco.words[theirs] == voc.words.get(ours, ours)
    for both in ("bird", "chair", "person"):
        assert coco.words[both] == voc.words[both]


def test_scores_are_those_of_a_softmax_over_cosines(make_host: Make) -> None:
    """Absent classes take no part: their texts may be anything."""
    host, image = make_host(), torch.randn(1, 3, 32, 32)
    label = torch.tensor([[0.0, 1, 0, 0]])
    before = host(image, label).activation
    assert before.any()
    host.texts[[0, 2, 3]] = host.texts[[2, 3, 0]]
    assert torch.equal(host(image, label).activation, before)
