"""The branch on hosts that it knows nothing of, against a loop over images and classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from wsss.errors import WsssError
from wsss.maps.functional import normalize_cam
from wsss.methods.cpal.branch import CPALBranch

N, CHANNELS, DIM = 4, (6, 8), 5
LABEL = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 1]])


def make_branch(**options) -> CPALBranch:
    torch.manual_seed(0)
    bank = {"size": 20, "clusters": 4, **options.pop("bank", {})}
    options = {"projection_dim": DIM, "side_channels": (3, 4), "neighbours": 2, **options}
    return CPALBranch(CHANNELS, N, bank=bank, **options)


def fill(branch: CPALBranch, classes=(0, 1, 2), per_class: int = 12) -> None:
    generator = torch.Generator().manual_seed(7)
    index = torch.tensor(classes).repeat_interleave(per_class)
    anchors = torch.randn(len(index), branch.shift.shape[1], generator=generator)
    branch.bank.push(anchors + 0.3 * index[:, None], index)
    branch.bank.recluster(0)


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


def slow_pacam(branch: CPALBranch, features, cam, valid) -> tuple[np.ndarray, float]:
    """Equations 4 to 14 with the default options, written as they are read."""
    weight = branch.projection[0].weight.detach()[:, :, 0, 0].numpy()
    z = np.einsum("dc,bchw->bdhw", weight, features[-1].numpy())
    window = valid[:, ::16, ::16].numpy()
    cam, bank = cam.detach().numpy(), branch.bank
    anchors = {}
    for b in range(3):
        for n in range(N):
            mask = (cam[b, n] > branch.tau) & (window[b] == 1)
            if LABEL[b, n] == 1 and mask.any():
                anchors[b, n] = z[b][:, mask].mean(1)
    pacam = np.zeros((3, N + 1, 4, 6))
    answered = np.zeros((3, N + 1), dtype=bool)
    for b, n in anchors:
        if bank.cluster_count[n] == 0:
            pacam[b, n + 1] = cam[b, n] * window[b]
            continue
        entries = bank.entries[n, : int(bank.count[n])].numpy()
        of_class = [anchors[pair] for pair in anchors if pair[1] == n]
        shift = entries.mean(0) - np.mean(of_class, axis=0)
        context = bank.context[n, : int(bank.cluster_count[n])].numpy()
        nearest = sorted(context, key=lambda p: -cosine(anchors[b, n], p))[: branch.neighbours]
        score = [math.exp(float(anchors[b, n] @ p) / math.sqrt(DIM)) for p in nearest]
        for y in range(4):
            for x in range(6):
                total = sum(
                    w * cosine(z[b, :, y, x] + shift, p)
                    for w, p in zip(score, nearest, strict=True)
                )
                pacam[b, n + 1, y, x] = max(0.0, total / sum(score))
        pacam[b, n + 1] /= pacam[b, n + 1].max() + 1e-5
        answered[b, n + 1] = answered[b, 0] = True
    pacam[:, 0] = 1 - pacam[:, 1:].max(1)
    loss = 0.0
    for b in range(3):
        full = np.concatenate([1 - cam[b].max(0, keepdims=True), cam[b]])
        for channel in range(N + 1):
            if answered[b, channel]:
                loss += (abs(full[channel] - pacam[b, channel]) * window[b]).sum()
    return pacam, loss / (3 * (N + 1) * 24)


def test_pacam_and_loss_against_loops(batch):
    features, cam, valid = batch
    branch = make_branch()
    fill(branch)
    expected, loss = slow_pacam(branch, features, cam, valid)
    answer = branch(features, cam, LABEL, valid)
    window = valid[:, None, ::16, ::16]
    torch.testing.assert_close(
        answer.pacam * window, torch.from_numpy(expected).float() * window, atol=1e-4, rtol=1e-4
    )
    assert float(answer.loss.detach()) == pytest.approx(loss, rel=1e-4)
    # Class index 3 is present in image 2 but has no context prototypes.
    assert answer.answered.tolist() == [
        [True, True, False, True, False],
        [True, False, True, False, False],
        [True, True, False, False, False],
    ]


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
    assert not answer.answered[:, 1:][absent].any()
    anchors, classes = branch.take_anchors()
    assert len(anchors) == int(LABEL.sum())
    assert sorted(classes.tolist()) == [0, 0, 1, 2, 3]


def test_an_empty_bank_contributes_nothing(batch):
    features, cam, valid = batch
    source = cam.clone().requires_grad_()
    for background in ("complement", "prototype", "bank"):
        branch = make_branch(background=background)
        answer = branch(features, source, LABEL, valid)
        assert float(answer.loss.detach()) == 0 and not answer.answered.any()
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
        return branch.predict(z, cam, LABEL, features[-1]).pacam

    off, ema, batchwise = maps("off"), maps("ema"), maps("batch")
    assert not torch.allclose(off, ema) and not torch.allclose(off, batchwise)
    torch.testing.assert_close(off, maps(False))
    assert not torch.allclose(ema, maps("ema", training="anchor"))


def test_at_test_time_a_class_without_prototypes_shows_its_cam(batch):
    features, cam, _ = batch
    branch = make_branch()
    fill(branch)
    answer = branch.predict(branch.project(features), cam, LABEL, features[-1])
    torch.testing.assert_close(answer.pacam[2, 4], cam[2, 3])
    assert not torch.allclose(answer.pacam[2, 1], cam[2, 0])
    assert (answer.pacam[:, 1:][LABEL == 0] == 0).all()
    torch.testing.assert_close(answer.pacam[:, 0], 1 - answer.pacam[:, 1:].amax(1))


OPTIONS = [
    {"features": "hierarchical"},
    {"anchor": "soft"},
    {"anchor": "seeds"},
    {"prototypes": "mean"},
    {"prototypes": "anchor"},
    {"own_prototype": True, "neighbours": "all"},
    {"neighbours": 1},
    {"positiveness": False},
    {"similarity": "cosine"},
    {"similarity": "l1"},
    {"similarity": "l2"},
    {"temperature": 0.1},
    {"alignment": "anchor"},
    {"alignment": "both"},
    {"alignment": "off"},
    {"aggregation": "relu"},
    {"aggregation": "max"},
    {"background": "prototype"},
    {"background": "bank"},
    {"bank": {"clusters": "auto", "max_clusters": 3, "entries_per_cluster": 6}},
    {"tau": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_reading_trains_and_differs_from_the_default(batch, options):
    features, cam, valid = batch

    def run(**given):
        branch = make_branch(**given)
        classes = (0, 1, 2, 4) if given.get("background") == "bank" else (0, 1, 2)
        fill(branch, classes)
        answer = branch(features, cam, LABEL, valid)
        answer.loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in branch.parameters())
        branch.bank.push(*branch.take_anchors())
        assert answer.pacam.min() >= 0 and answer.pacam.max() <= 1
        return answer.pacam.detach()

    assert not torch.allclose(run(), run(**options), atol=1e-4)


def test_reduction_over_present_channels(batch):
    features, cam, valid = batch
    losses = []
    for reduction in ("all", "present"):
        branch = make_branch(reduction=reduction)
        fill(branch)
        losses.append(float(branch(features, cam, LABEL, valid).loss.detach()))
    # 7 of 15 channels answer: images 0, 1, 2 with 2, 1, 1 classes and their backgrounds.
    assert losses[1] == pytest.approx(losses[0] * 15 / 7, rel=1e-5)


def test_image_specific_background_prototype_against_a_loop(batch):
    features, cam, valid = batch
    branch = make_branch(background="prototype")
    fill(branch)
    answer = branch(features, cam, LABEL, valid)
    z = branch.project(features).detach().numpy()
    full = np.concatenate([1 - cam.numpy().max(1, keepdims=True), cam.numpy()], 1)
    for b in range(3):
        mask = (full[b].argmax(0) == 0) & (valid[b, ::16, ::16].numpy() == 1)
        prototype = z[b][:, mask].mean(1)
        expected = np.array(
            [[max(0.0, cosine(z[b, :, y, x], prototype)) for x in range(6)] for y in range(4)]
        )
        expected /= expected.max() + 1e-5
        np.testing.assert_allclose(answer.pacam[b, 0].detach(), expected, atol=1e-4)


def test_background_bank_is_one_more_class(batch):
    features, cam, valid = batch
    branch = make_branch(background="bank")
    branch(features, cam, LABEL, valid)
    anchors, classes = branch.take_anchors()
    assert (classes == N).sum() == 3
    branch.bank.push(anchors, classes)
    branch.bank.recluster(0)
    answer = branch(features, cam, LABEL, valid)
    assert answer.answered[:, 0].all()
    assert not torch.allclose(answer.pacam[:, 0], 1 - answer.pacam[:, 1:].amax(1))


def seeds_branch(**test) -> CPALBranch:
    branch = make_branch(features="hierarchical", anchor="seeds", background="prototype", test=test)
    fill(branch)
    return branch.eval()


def test_structure_from_z_is_structure_from_f_when_f_is_z(batch):
    features, cam, _ = batch
    of_f, of_z = seeds_branch(), seeds_branch(structure="z")
    z = of_f.project(features)
    expected = of_f.predict(z, cam, LABEL, structure=z)
    got = of_z.predict(z, cam, LABEL, structure=features[-1])
    torch.testing.assert_close(got.pacam, expected.pacam)
    other = of_f.predict(z, cam, LABEL, structure=features[-1])
    assert not torch.allclose(other.pacam, expected.pacam)


def test_background_over_present_classes_does_not_see_absent_ones(batch):
    features, cam, _ = batch
    branch = seeds_branch(background_classes="present")
    z = branch.project(features)
    expected = branch.predict(z, cam, LABEL, features[-1]).pacam
    loud = torch.where(LABEL[:, :, None, None] > 0, cam, torch.ones_like(cam))
    torch.testing.assert_close(branch.predict(z, loud, LABEL, features[-1]).pacam, expected)
    over_all = seeds_branch()
    quiet_maps = over_all.predict(z, cam, LABEL, features[-1]).pacam
    loud_maps = over_all.predict(z, loud, LABEL, features[-1]).pacam
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
        ({"neighbours": 0}, "method.neighbours=0"),
        ({"neighbours": "many"}, "method.neighbours=many"),
        ({"tau": 1.0}, "method.tau=1.0"),
        ({"gamma": 0.0}, "method.gamma=0.0"),
        ({"features": "hierarchical", "side_channels": (1, 2, 3)}, "method.side_channels"),
    ],
)
def test_wrong_options_are_named(options, named):
    with pytest.raises(WsssError, match=named):
        make_branch(**options)
