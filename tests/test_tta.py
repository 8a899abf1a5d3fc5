"""Test-time augmentation: which views there are, turned back, merged."""

import pytest
import torch
from builders import tiny_config, write_coco
from test_tiling import found
from torch import nn

from gfl import build
from gfl.engine.evaluate import detect
from gfl.tta import extra_views


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("data") / "set", {"val": 3})


def test_views_are_other_sizes_and_mirror_images_and_their_merge_is_limited(folder):
    size = {"data.test_size": {"short": 96, "long": 160}, "postprocess.max_per_image": 2}
    config = tiny_config(folder).with_values(size)
    views = extra_views(config, build.build_dataset(config, "val"), True, [48])
    seen = [
        (loader.batch_sampler.batches[0][0].short, loader.dataset.transform, mirrored)
        for loader, mirrored in views.loaders
    ]
    assert [(short, transform.long, turned) for short, transform, turned in seen] == [
        (48, 80, False),
        (96, 160, True),
        (48, 80, True),
    ]
    assert [transform.chances.get("mirrored", 0) for _, transform, _ in seen] == [0, 1, 1]
    first = found(([0, 0, 10, 10], 0.5, 0), ([50, 50, 60, 60], 0.9, 0))
    second = found(([50, 50, 60, 61], 0.8, 0), ([20, 0, 30, 10], 0.7, 0))
    assert views.merge([first, second]).scores.tolist() == pytest.approx([0.9, 0.7])


class FindsTheSame:
    """A post-processing that finds the same detections in every image."""

    def __init__(self, detections):
        self.detections = detections

    def detection_scores(self, predictions):
        return torch.zeros(1)

    def __call__(self, predictions, metas, device):
        return [self.detections] * len(metas)


def test_what_is_found_in_a_mirror_image_is_turned_back(folder):
    config = tiny_config(folder)
    dataset = build.build_dataset(config, "val")
    loader = build.build_eval_loader(config, dataset, mirrored=True)
    same = FindsTheSame(found(([0, 0, 10, 20], 0.5, 0)))
    normalize = build.build_normalize(config, torch.device("cpu"))
    seen, _ = detect(nn.Identity(), loader, same, normalize, mirrored=True)
    widths = dict(zip(dataset.image_ids.tolist(), dataset.sizes[:, 1].tolist(), strict=True))
    assert len(set(widths.values())) == 2  # wide and tall ones
    for image_id, width in widths.items():
        assert seen[image_id].boxes.tolist() == [[width - 10, 0, width, 20]]
