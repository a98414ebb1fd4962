"""The branch on hosts that it knows nothing of, against a loop over images and classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from wsss.errors import WsssError
from wsss.maps.functional import normalize_cam
from wsss.methods.cpal.branch import CPAL
from wsss.methods.cpal.settings import CPALSettings
from wsss.settings import resolve

N, CHANNELS, DIM = 4, (6, 8), 5
LABEL = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 1]])


def make_branch(**options) -> CPAL:
    torch.manual_seed(0)
    bank = {"size": 20, "clusters": 4, **options.pop("bank", {})}
    options = {"projection_dim": DIM, "side_channels": (3, 4), "neighbors": 2, **options}
    return CPAL(resolve(CPALSettings, {**options, "bank": bank}, "method"), CHANNELS, N)


def fill(branch: CPAL, classes=(0, 1, 2), per_class: int = 12) -> None:
    generator = torch.Generator().manual_seed(7)
    index = torch.tensor(classes).repeat_interleave(per_class)
    anchors = torch.randn(len(index), branch.shift.shape[1], generator=generator)
    branch.bank.push(anchors + 0.3 * index[:, None], index)
    branch.bank.recluster(0)
    branch.bank.clustered_epoch.fill_(1)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(3, c, 4, 6, generator=generator) for c in CHANNELS]
    cam = normalize_cam(torch.randn(3, N, 4, 6, generator=generator))
    valid = torch.ones(3, 64, 96)
    valid[0, :, 48:] = 0
    return features, cam, valid


def cosine(a, b) -> float:
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def slow_z(branch: CPAL, features) -> np.ndarray:
    """Projected features; both feature maps have the working grid already."""
    sides = []
    for head, feature in zip(branch.projection, features[-len(branch.projection) :], strict=True):
        weight = head.weight.detach()[:, :, 0, 0].numpy()
        sides.append(np.einsum("dc,bchw->bdhw", weight, feature.detach().numpy()))
    if branch.options.features == "layer4":
        return sides[0]
    return np.concatenate([s / (np.linalg.norm(s, axis=1, keepdims=True) + 1e-5) for s in sides], 1)


def slow_mask(branch: CPAL, full, feature, window, present) -> np.ndarray:
    """Weights of the positions of each anchor (N+1, h, w), background first (eq. 4)."""
    options, (h, w) = branch.options, window.shape
    valid = np.stack([window, *(window * y for y in present)])
    if options.anchor != "seeds":
        mask = np.zeros_like(full)
        mask[0] = (full[0] > full[1:].max(0)) * window
        mask[1:] = (full[1:] > options.tau) * valid[1:]
        return mask
    maps, mask = full * valid, np.zeros_like(full)
    for y in range(h):
        for x in range(w):
            structure = np.array(
                [
                    [max(0.0, cosine(feature[:, y, x], feature[:, v, u])) for u in range(w)]
                    for v in range(h)
                ]
            )
            ious = []
            for n in range(N + 1):
                inter = (structure * maps[n]).sum()
                ious.append(inter / (structure.sum() + maps[n].sum() - inter))
            ious[0] *= options.seed_attenuation
            best = int(np.argmax(ious))
            mask[best, y, x] = valid[best, y, x]
    return mask


def slow_response(options, z, anchor, candidates, shift) -> np.ndarray:
    """Eq. 6, 7 and 13 for one image and class, (h, w), not normalized."""
    moved = z + shift[:, None, None] if options.alignment in ("pixel", "both") else z
    query = anchor + shift if options.alignment in ("anchor", "both") else anchor
    count = len(candidates) if options.neighbors == "all" else options.neighbors
    nearest = sorted(candidates, key=lambda p: -cosine(query, p))[:count]
    weight = [1.0] * len(nearest)
    if options.positiveness:
        similar = {
            "dot": lambda p: float(query @ p),
            "cosine": lambda p: cosine(query, p),
            "l1": lambda p: -float(abs(query - p).sum()),
            "l2": lambda p: -math.sqrt(((query - p) ** 2).sum()),
        }[options.similarity]
        divisor = options.temperature or math.sqrt(len(query))
        score = [math.exp(similar(p) / divisor) for p in nearest]
        weight = [s / sum(score) for s in score]
    result = np.zeros(z.shape[1:])
    for y in range(z.shape[1]):
        for x in range(z.shape[2]):
            cos = [cosine(moved[:, y, x], p) for p in nearest]
            pairs = list(zip(weight, cos, strict=True))
            result[y, x] = max(0.0, sum(w * c for w, c in pairs) / sum(weight))
    return result


def slow_pacam(branch: CPAL, features, cam, valid) -> tuple[np.ndarray, float]:
    """Equations 4 to 14 with any options, written as they are read."""
    options, bank = branch.options, branch.bank
    z = slow_z(branch, features)
    window = valid[:, ::16, ::16].numpy()
    cam = cam.detach().numpy()
    full = np.concatenate([1 - cam.max(1, keepdims=True), cam], 1)
    feature = features[-1].detach().numpy()
    anchors = {}
    for b in range(3):
        mask = slow_mask(branch, full[b], feature[b], window[b], LABEL[b].numpy())
        for channel in range(N + 1):
            if (channel or options.background != "complement") and mask[channel].sum() > 0:
                share = mask[channel] / mask[channel].sum()
                anchors[b, (channel - 1) % (N + 1)] = (z[b] * share).sum((1, 2))
    # A present class shows its CAM until prototypes answer.
    pacam = np.zeros((3, N + 1, 4, 6))
    pacam[:, 1:] = cam * window[:, None] * LABEL.numpy()[..., None, None]
    has = np.zeros((3, N + 1), dtype=bool)
    for (b, n), anchor in anchors.items():
        if n == N and options.background == "prototype":
            continue
        entries = bank.entries[n, : int(bank.count[n])].numpy()
        context = bank.context[n, : int(bank.cluster_count[n])].numpy()
        able = {"context": len(context), "mean": len(entries), "anchor": 1}[options.prototypes]
        if not able:
            continue
        of_class = [anchors[pair] for pair in anchors if pair[1] == n]
        shift = np.zeros(len(anchor))
        if len(entries) and options.alignment != "off":
            shift = entries.mean(0) - np.mean(of_class, axis=0)
        candidates = {"context": list(context), "anchor": [anchor]}.get(options.prototypes)
        candidates = [entries.mean(0)] if candidates is None else candidates
        if options.own_prototype:
            candidates = [*candidates, anchor]
        response = slow_response(options, z[b], anchor, candidates, shift)
        channel = (n + 1) % (N + 1)
        pacam[b, channel] = response / (response.max() + 1e-5)
        has[b, channel] = True
    complement = 1 - pacam[:, 1:].max(1)
    for b in range(3):
        if options.background == "prototype" and (b, N) in anchors:
            response = np.array(
                [
                    [max(0.0, cosine(z[b, :, y, x], anchors[b, N])) for x in range(6)]
                    for y in range(4)
                ]
            )
            pacam[b, 0] = response / (response.max() + 1e-5)
        elif not has[b, 0]:
            pacam[b, 0] = complement[b]
        has[b, 0] = has[b, 1:].any()
    valid_mask = (
        window[:, None] * np.concatenate([np.ones((3, 1)), LABEL.numpy()], 1)[..., None, None]
    )
    loss = (abs(full - pacam) * valid_mask * has[..., None, None]).sum()
    channels = int(has.sum()) if options.reduction == "present" else 3 * (N + 1)
    return pacam, loss / (channels * 24)


OPTIONS = [
    {},
    {"features": "hierarchical"},
    {"anchor": "seeds"},
    {"anchor": "seeds", "seed_attenuation": 0.6},
    {"prototypes": "mean"},
    {"prototypes": "anchor"},
    {"own_prototype": True, "neighbors": "all"},
    {"own_prototype": True, "prototypes": "mean"},
    {"neighbors": 1},
    {"positiveness": False},
    {"similarity": "cosine"},
    {"similarity": "l1"},
    {"similarity": "l2"},
    {"temperature": 0.1},
    {"alignment": "anchor"},
    {"alignment": "both"},
    {"alignment": "off"},
    {"background": "prototype"},
    {"background": "prototype", "anchor": "seeds"},
    {"background": "bank"},
    {"bank": {"clusters": "auto", "max_clusters": 3, "entries_per_cluster": 6}},
    {"tau": 0.5},
    {"reduction": "present"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_reading_against_loops(batch, options):
    features, cam, valid = batch
    branch = make_branch(**options)
    fill(branch, (0, 1, 2, 4) if options.get("background") == "bank" else (0, 1, 2))
    expected, loss = slow_pacam(branch, features, cam, valid)
    answer = branch(features, cam, LABEL, valid)
    window = valid[:, None, ::16, ::16]
    torch.testing.assert_close(
        answer.pacam * window, torch.from_numpy(expected).float() * window, atol=1e-4, rtol=1e-4
    )
    assert float(answer.loss.detach()) == pytest.approx(loss, rel=1e-4)
    answer.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in branch.parameters())


def test_channels_with_prototypes(batch):
    branch = make_branch()
    fill(branch)
    # Class index 3 is present in image 2 but has no context prototypes.
    features, cam, valid = batch
    assert branch(features, cam, LABEL, valid).has_prototypes.tolist() == [
        [True, True, False, True, False],
        [True, False, True, False, False],
        [True, True, False, False, False],
    ]


@pytest.mark.parametrize("prototypes", ["mean", "anchor"])
def test_what_needs_no_clusters_supervises_without_them(batch, prototypes):
    features, cam, valid = batch
    branch = make_branch(prototypes=prototypes, recluster="never")
    fill(branch)
    branch.bank.cluster_count.zero_()
    assert float(branch(features, cam, LABEL, valid).loss.detach()) > 0
    branch.bank.clustered_epoch.fill_(-1)  # as in the warm-up
    assert float(branch(features, cam, LABEL, valid).loss.detach()) == 0


class ToyHost(nn.Module):
    """Any network with features and class maps; it has never heard of prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, CHANNELS[0], 3, stride=8, padding=1)
        self.second = nn.Conv2d(CHANNELS[0], CHANNELS[1], 3, stride=2, padding=1)
        self.classify = nn.Conv2d(CHANNELS[1], N, 1, bias=False)

    def forward(self, image):
        first = self.first(image).relu()
        second = self.second(first).relu()
        return [first, second], self.classify(second)


@pytest.mark.parametrize("features", ["layer4", "hierarchical"])
def test_a_toy_host_trains_with_the_branch(features):
    torch.manual_seed(3)
    host, branch = ToyHost(), make_branch(features=features)
    parameters = [*host.parameters(), *branch.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    image, valid = torch.randn(3, 3, 64, 64), torch.ones(3, 64, 64)
    losses = []
    for step in range(25):
        maps, activation = host(image)
        answer = branch(maps, normalize_cam(activation), LABEL, valid)
        branch.bank.push(*branch.take_anchors())
        if step == 4:
            branch.bank.recluster(0)
        losses.append(float(answer.loss.detach()))
        if step > 4:
            optimizer.zero_grad()
            answer.loss.backward()
            optimizer.step()
    assert losses[:5] == [0.0] * 5
    assert 0 < losses[-1] < 0.9 * losses[5]


def test_gradient_goes_where_the_options_say(batch):
    features, cam, valid = batch
    features = [feature.requires_grad_() for feature in features]

    def gradients(**options):
        branch = make_branch(**options)
        fill(branch)
        source = cam.detach().requires_grad_()
        for feature in features:
            feature.grad = None
        branch(features, source, LABEL, valid).loss.backward()
        reached = [branch.projection[0].weight.grad, source.grad, features[-1].grad]
        return [grad is not None and bool((grad != 0).any()) for grad in reached]

    assert gradients() == [True, True, False]
    assert gradients(detach_cam=True) == [True, False, False]
    assert gradients(detach_features=False) == [True, True, True]
    # With L_self over nothing but the anchor's weights held constant, z still learns.
    assert gradients(detach_anchor=True) == [True, True, False]


def test_absent_classes_stay_untouched(batch):
    features, cam, valid = batch
    branch = make_branch()
    fill(branch, classes=(0, 1, 2, 3))
    source = cam.clone().requires_grad_()
    answer = branch(features, source, LABEL, valid)
    absent = LABEL == 0
    assert (answer.pacam[:, 1:][absent] == 0).all()
    assert not answer.has_prototypes[:, 1:][absent].any()
    anchors, classes = branch.take_anchors()
    assert len(anchors) == int(LABEL.sum())
    assert sorted(classes.tolist()) == [0, 0, 1, 2, 3]


def test_an_empty_bank_contributes_nothing(batch):
    features, cam, valid = batch
    source = cam.clone().requires_grad_()
    for background in ("complement", "prototype", "bank"):
        branch = make_branch(background=background)
        answer = branch(features, source, LABEL, valid)
        assert float(answer.loss.detach()) == 0 and not answer.has_prototypes.any()
        answer.loss.backward()
        assert (source.grad == 0).all()


def test_padding_reaches_neither_anchors_nor_loss(batch):
    features, cam, valid = batch
    branch = make_branch(alignment="off")
    fill(branch)
    before = branch(features, cam, LABEL, valid).loss
    anchors, _ = branch.take_anchors()
    spoiled = cam.clone()
    spoiled[0, :, :, 3:] = torch.rand(N, 4, 3)
    after = branch(features, spoiled, LABEL, valid).loss
    torch.testing.assert_close(before, after)
    assert torch.equal(anchors, branch.take_anchors()[0])


def test_anchors_are_taken_once():
    branch = make_branch()
    anchors, classes = branch.take_anchors()
    assert anchors.shape == (0, DIM) and classes.shape == (0,)
    assert classes.dtype == torch.long


def test_shift_in_training_carries_the_anchors_to_the_bank(batch):
    features, cam, valid = batch
    branch = make_branch()
    fill(branch)
    branch(features, cam, LABEL, valid)
    anchors, classes = branch.take_anchors()
    for n in (0, 1, 2):
        shifted = (anchors[classes == n] + branch.shift[n]).mean(0)
        torch.testing.assert_close(shifted, branch.bank.mean()[n])
    assert branch.shift_known.tolist() == [True, True, True, False]


def test_moving_average_of_the_shift(batch):
    features, cam, valid = batch
    branch = make_branch(ema_momentum=0.75)
    fill(branch)
    branch(features, cam, LABEL, valid)
    first = branch.shift.clone()
    features = [feature * 2 for feature in features]
    branch(features, cam, LABEL, valid)
    anchors, classes = branch.take_anchors()
    second = branch.bank.mean()[0] - anchors[classes == 0].mean(0)
    torch.testing.assert_close(branch.shift[0], 0.75 * first[0] + 0.25 * second)


def test_test_time_alignment(batch):
    features, cam, _ = batch

    def maps(where, training="pixel"):
        branch = make_branch(test={"alignment": where}, alignment=training)
        fill(branch)
        branch.shift.copy_(torch.randn(branch.shift.shape, generator=torch.Generator()))
        z = branch.project(features)
        return branch.predict(z, features[-1], cam, LABEL).pacam

    off, ema, batchwise = maps("off"), maps("ema"), maps("batch")
    assert not torch.allclose(off, ema) and not torch.allclose(off, batchwise)
    assert not torch.allclose(ema, maps("ema", training="anchor"))


def test_at_test_time_a_class_without_prototypes_shows_its_cam(batch):
    features, cam, _ = batch
    branch = make_branch()
    fill(branch)
    answer = branch.predict(branch.project(features), features[-1], cam, LABEL)
    torch.testing.assert_close(answer.pacam[2, 4], cam[2, 3])
    assert not torch.allclose(answer.pacam[2, 1], cam[2, 0])
    assert (answer.pacam[:, 1:][LABEL == 0] == 0).all()
    torch.testing.assert_close(answer.pacam[:, 0], 1 - answer.pacam[:, 1:].amax(1))


def test_background_bank_is_one_more_class(batch):
    features, cam, valid = batch
    branch = make_branch(background="bank")
    branch(features, cam, LABEL, valid)
    anchors, classes = branch.take_anchors()
    assert (classes == N).sum() == 3
    branch.bank.push(anchors, classes)
    branch.bank.recluster(0)
    answer = branch(features, cam, LABEL, valid)
    assert answer.has_prototypes[:, 0].all()
    assert not torch.allclose(answer.pacam[:, 0], 1 - answer.pacam[:, 1:].amax(1))


def seeds_branch(**test) -> CPAL:
    branch = make_branch(features="hierarchical", anchor="seeds", background="prototype", test=test)
    fill(branch)
    return branch.eval()


def test_structure_from_z_is_structure_from_f_when_f_is_z(batch):
    features, cam, _ = batch
    of_f, of_z = seeds_branch(), seeds_branch(structure="z")
    z = of_f.project(features)
    expected = of_f.predict(z, z, cam, LABEL)
    got = of_z.predict(z, features[-1], cam, LABEL)
    torch.testing.assert_close(got.pacam, expected.pacam)
    other = of_f.predict(z, features[-1], cam, LABEL)
    assert not torch.allclose(other.pacam, expected.pacam)


def test_background_over_present_classes_does_not_see_absent_ones(batch):
    features, cam, _ = batch
    branch = seeds_branch(background_classes="present")
    z = branch.project(features)
    expected = branch.predict(z, features[-1], cam, LABEL).pacam
    loud = torch.where(LABEL[:, :, None, None] > 0, cam, torch.ones_like(cam))
    torch.testing.assert_close(branch.predict(z, features[-1], loud, LABEL).pacam, expected)
    over_all = seeds_branch()
    quiet_maps = over_all.predict(z, features[-1], cam, LABEL).pacam
    loud_maps = over_all.predict(z, features[-1], loud, LABEL).pacam
    assert not torch.allclose(quiet_maps, loud_maps)


def test_responses_are_the_cosines_of_the_context_prototypes(batch):
    features, _, _ = batch
    branch = make_branch()
    fill(branch)
    z = branch.project(features)[0].detach()
    ours = branch.responses(z, 1)
    assert ours.shape == (4, 4, 6)
    for j in range(4):
        expected = max(0.0, cosine(z[:, 2, 3].numpy(), branch.bank.context[1, j].numpy()))
        assert float(ours[j, 2, 3]) == pytest.approx(expected, abs=1e-5)


def test_class_maps_of_another_grid_are_resized(batch):
    features, cam, valid = batch
    branch = make_branch()
    fill(branch)
    large = torch.nn.functional.interpolate(cam, size=(8, 12), mode="nearest")
    assert branch(features, large, LABEL, valid).pacam.shape == (3, N + 1, 4, 6)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"features": "layer3"}, "method.features=layer3"),
        ({"alignment": "sideways"}, "method.alignment=sideways"),
        ({"test": {"alignment": "pixel"}}, "method.test.alignment=pixel"),
        ({"similarity": "l3"}, "method.similarity=l3"),
        ({"neighbors": 0}, "method.neighbors=0"),
        ({"neighbors": "many"}, "method.neighbors=many"),
        ({"tau": 1.0}, "method.tau=1.0"),
        ({"features": "hierarchical", "side_channels": (1, 2, 3)}, "method.side_channels"),
        ({"recluster": "never"}, "method.recluster=never"),
        ({"warmup_epochs": -1}, "method.warmup_epochs=-1"),
        ({"refill": "always"}, "method.refill=always"),
    ],
)
def test_wrong_options_are_named(options, named):
    with pytest.raises(WsssError, match=named):
        make_branch(**options)
