"""The head's outputs: which channel of which place becomes which row, in all its forms."""

import pytest
import torch
from conftest import assert_close
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import gfl.models.conv_blocks
from gfl.models.conv_blocks import BlockOptions, Tower
from gfl.models.head import GFLHead
from gfl.models.quality import DistributionQuality

# Two levels of 2 x 3 and 1 x 2 places; the first feature numbers the places.
SIZES, NUM_PLACES = ((2, 3), (1, 2)), 8


def numbered_levels(images: int = 2) -> list[torch.Tensor]:
    """(B, 2, h, w) levels: 10 times the number of the place, and 1000 times that of the image."""
    levels, first = [], 0
    for height, width in SIZES:
        places = torch.arange(first, first + height * width).float().view(1, 1, height, width)
        image = torch.arange(images).float().view(-1, 1, 1, 1).expand(-1, 1, height, width)
        levels.append(torch.cat((10.0 * places.expand(images, -1, -1, -1), 1000.0 * image), 1))
        first += height * width
    return levels


def known(head: GFLHead) -> GFLHead:
    """The head without towers, whose output k is the place's number + k / 100."""
    head.cls_tower = head.box_tower = nn.Identity()
    for conv in filter(None, (head.cls_out, head.box_out, head.quality_out)):
        with torch.no_grad():
            conv.weight.zero_()
            conv.weight[:, :, 1, 1] = 1
            conv.bias.copy_(torch.arange(len(conv.bias)) / 100)
    return head


def expected(images: int, anchors: int, channels: int) -> torch.Tensor:
    """(B, places * anchors, channels): channel block a of a place is its location a."""
    rows = [
        [
            [1000 * image + 10 * place + (anchor * channels + channel) / 100]
            for channel in range(channels)
        ]
        for image in range(images)
        for place in range(NUM_PLACES)
        for anchor in range(anchors)
    ]
    return torch.tensor(rows).view(images, NUM_PLACES * anchors, channels)


@pytest.mark.parametrize("anchors", [1, 3, 9])
@pytest.mark.parametrize("branch", [False, True])
def test_location_of_an_anchor_is_its_block_of_channels_at_its_place(anchors, branch):
    head = known(
        GFLHead(2, 3, 8, 2, channels=2, stacked_convs=0, quality_branch=branch,
                anchors_per_cell=anchors)
    )  # fmt: skip
    with torch.no_grad():
        outputs = head(numbered_levels())
    assert_close(outputs.cls_logits, expected(2, anchors, 3), atol=1e-3)
    assert_close(outputs.box_logits, expected(2, anchors, 8), atol=1e-3)
    if branch:
        assert_close(outputs.quality_logits, expected(2, anchors, 1), atol=1e-3)
    else:
        assert outputs.quality_logits is None


def test_scales_are_those_of_the_levels_and_touch_the_boxes_alone():
    head = known(GFLHead(2, 3, 4, 2, channels=2, stacked_convs=0, quality_branch=True))
    with torch.no_grad():
        head.scales[1].scale.fill_(-2.0)
        outputs = head(numbered_levels(1))
    factor = torch.tensor([1.0] * 6 + [-2.0] * 2)[:, None]
    assert_close(outputs.box_logits[0], expected(1, 1, 4)[0] * factor, atol=1e-3)
    assert_close(outputs.cls_logits, expected(1, 1, 3), atol=1e-3)
    assert_close(outputs.quality_logits, expected(1, 1, 1), atol=1e-3)


@pytest.mark.parametrize("anchors", [1, 3])
def test_predictor_judges_each_anchor_by_its_own_sides(anchors):
    torch.manual_seed(1)
    predictor = DistributionQuality(top_k=2, channels=8)
    for conv in (predictor.net[0], predictor.net[2]):
        nn.init.normal_(conv.weight, std=1.0)
    head = GFLHead(4, 3, 20, 2, channels=32, stacked_convs=1, quality=predictor,
                   anchors_per_cell=anchors)  # fmt: skip
    nn.init.normal_(head.box_out.weight, std=1.0)
    with torch.no_grad():
        outputs = head([torch.randn(2, 4, *size) for size in SIZES])
        rows = outputs.box_logits.flatten(0, 1)[:, :, None, None]
        alone = predictor(rows).view(2, -1, 1)
    assert outputs.quality_logits.shape == (2, NUM_PLACES * anchors, 1)
    assert outputs.quality_logits.std() > 1e-3
    assert_close(outputs.quality_logits, alone, rtol=1e-4, atol=1e-5)


def test_first_scores_are_one_in_a_hundred_for_every_anchor():
    head = GFLHead(4, 3, 4, 2, channels=32, stacked_convs=1, quality_branch=True,
                   anchors_per_cell=3)  # fmt: skip
    nn.init.zeros_(head.cls_out.weight)
    with torch.no_grad():
        outputs = head([torch.randn(1, 4, *size) for size in SIZES])
    assert_close(outputs.cls_logits.sigmoid(), torch.full((1, 24, 3), 0.01), rtol=1e-4)
    assert head.quality_out.bias.tolist() == [0, 0, 0]


@pytest.mark.parametrize("conv", ["plain", "depthwise"])
def test_a_tower_computes_norms_again_and_nothing_else_twice(conv, monkeypatch):
    """Training keeps less than testing, with the same gradients from the same convolutions."""
    torch.manual_seed(0)
    tower = Tower([32, 64, 64, 64], BlockOptions(conv=conv))
    # The second is smaller than what is worth computing again.
    levels = [torch.randn(2, 32, side, side) for side in (96, 4)]

    def step() -> tuple[int, int, list[torch.Tensor]]:
        tower.zero_grad()
        kept: dict[int, int] = {}

        def note(x: torch.Tensor) -> torch.Tensor:
            kept[x.data_ptr()] = x.numel()
            return x

        with FlopCounterMode(display=False) as flops:
            with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
                loss = sum(y.square().sum() for y in tower(levels))
            loss.backward()
        gradients = [parameter.grad.clone() for parameter in tower.parameters()]
        return sum(kept.values()), flops.get_total_flops(), gradients

    recomputed, flops, gradients = step()
    with monkeypatch.context() as patch:
        patch.setattr(gfl.models.conv_blocks, "FEWEST_RECOMPUTED", 0)
        assert step()[0] < recomputed
    tower.eval()
    plain, plain_flops, plain_gradients = step()
    assert recomputed < 0.75 * plain
    assert flops == plain_flops
    for ours, expected in zip(gradients, plain_gradients, strict=True):
        assert torch.equal(ours, expected)
