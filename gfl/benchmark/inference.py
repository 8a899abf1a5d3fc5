"""Inference beside its rivals, and post-processing beside the forward."""

from collections.abc import Callable
from functools import partial

import torch

from gfl import build
from gfl.benchmark.peer import OURS, Peer
from gfl.benchmark.record import Record, Spread, not_measured, record
from gfl.benchmark.setting import NUM_CLASSES, Setting
from gfl.benchmark.subjects import (
    LAYOUT,
    RIVALS,
    half,
    our_detector,
    random_batch,
    rival_inputs,
    rival_network,
    rivals,
)
from gfl.benchmark.timing import interleaved
from gfl.predictor import Detector
from gfl.structures import Predictions

FIGURE = "infer"
# Post-processing over the forward, at the default threshold and where every candidate passes.
USUAL, WORST = 0.02, 0.10
# (location, class) pairs of an image whose score passes the default threshold.
CANDIDATES = 1000


@torch.inference_mode()
def inference(setting: Setting, peer: Peer | None = None) -> list[Record]:
    """Milliseconds of images on the device to logits, and of logits to detections.

    Ours is the network as `gfl.load` makes it: batch norm folded, channels last. Untrained networks
    find nothing, so decoding is timed by itself, on logits that are made for it.
    """
    ours = our_detector(setting)
    config = ours.config
    others = {name: other.eval() for name, other in rivals(setting, LAYOUT).items()}
    rows, rates = [], {}
    for count in setting.batches:
        spreads = _forward(setting, ours, others, count, peer if count == 1 else None)
        rows += _forward_rows(setting, spreads, count)
        for name, spread in spreads.items():
            rates.setdefault(name, {})[count] = spread.per(count)
    rows += _throughput(rates)
    rows += _whole(setting, ours, others, config)
    for count in dict.fromkeys((setting.batches[0], setting.batches[-1])):
        rows += _postprocess(setting, ours, config, count)
    return rows


def _forward(
    setting: Setting, ours: Detector, others: dict, count: int, peer: Peer | None
) -> dict[str, Spread]:
    """Seconds of each network alone: backbone, pyramid, head."""
    batch = random_batch(setting, count)
    images = ours.normalize(batch.images, batch.input_sizes).contiguous(memory_format=LAYOUT)
    works = {"gfl": partial(_in_half, setting, partial(ours.model, images))}
    for name, other in others.items():
        works[name] = partial(_in_half, setting, partial(rival_network, other, images))
    if peer is not None:
        works[OURS] = lambda: peer.seconds("infer")
    return interleaved(works, setting.repeats, setting.warmup, setting.device)


def _forward_rows(setting: Setting, spreads: dict[str, Spread], count: int) -> list[Record]:
    height, width = setting.size
    where = f"{setting.backbone}, {height} x {width}, batch {count}, {setting.precision}"
    mine = spreads["gfl"].times(1000)
    rows = [record(FIGURE, f"gfl forward, {where}", "ms", mine)]
    for name, spread in list(spreads.items())[1:]:
        text = f"{name} forward, batch {count}"
        rows.append(record(FIGURE, text, "ms", spread.times(1000), mine, "gfl forward"))
    why = f"torchvision has no {setting.backbone}"
    missing = [name for name in RIVALS if name not in spreads]
    return rows + [not_measured(FIGURE, f"{name} forward, batch {count}", why) for name in missing]


def _throughput(rates: dict[str, dict[int, Spread]]) -> list[Record]:
    """Each network at the batch size that suits it best.

    Args:
        rates: images a second by network and batch size, ours first. Those that were not measured
            at every size are left out.
    """
    rows, limit = [], ()
    for name, of_batch in rates.items():
        if len(of_batch) < len(next(iter(rates.values()))):
            continue
        count = max(of_batch, key=lambda count: of_batch[count].median)
        text = f"{name} throughput at its best batch, {count}"
        rows.append(record(FIGURE, text, "images/s", of_batch[count], *limit))
        limit = limit or (of_batch[count], "gfl throughput")
    return rows


def _whole(setting: Setting, ours: Detector, others: dict, config) -> list[Record]:
    """Pictures of one batch on the device to detections: normalisation, network, decoding."""
    batch = random_batch(setting, 1)
    pictures, _ = rival_inputs(batch)
    postprocess = build.build_postprocess(config)

    def detect() -> None:
        images = ours.normalize(batch.images, batch.input_sizes)
        with half(setting):
            predictions = ours.model(images.contiguous(memory_format=LAYOUT))
        postprocess(predictions, batch.metas, device="cpu")

    works = {"gfl": detect}
    works |= {n: partial(_in_half, setting, partial(m, pictures)) for n, m in others.items()}
    spreads = interleaved(works, setting.repeats, setting.warmup, setting.device)
    mine = spreads.pop("gfl").times(1000)
    rows = [record(FIGURE, "gfl whole, batch 1", "ms", mine, note="untrained: nothing is found")]
    for name, spread in spreads.items():
        text = f"{name} whole, batch 1"
        rows.append(record(FIGURE, text, "ms", spread.times(1000), mine, "gfl whole"))
    return rows


def _in_half(setting: Setting, work: Callable) -> None:
    with half(setting):
        work()


def _postprocess(setting: Setting, ours: Detector, config, images: int) -> list[Record]:
    """Decoding of a batch beside its forward."""
    batch = random_batch(setting, images)
    inputs = ours.normalize(batch.images, batch.input_sizes).contiguous(memory_format=LAYOUT)

    def network():
        with half(setting):
            return ours.model(inputs)

    grid = network().grid
    usual, worst = build.build_postprocess(config), build.build_postprocess(config)
    worst.score_threshold = 0.0
    some, all_pass = _some_candidates(grid, config, images), _random(grid, config, images)
    works = {
        "forward": lambda: network() and None,
        "usual": lambda: usual(some, batch.metas, device="cpu") and None,
        "worst": lambda: worst(all_pass, batch.metas, device="cpu") and None,
    }
    spreads = interleaved(works, setting.repeats, setting.warmup, setting.device)
    forward = spreads["forward"].times(1000)
    count = min(CANDIDATES, some.cls_logits[0].numel())
    threshold = usual.score_threshold
    where = f"batch {images}"
    names = {
        "usual": (f"post-processing, {where}, {count} candidates above {threshold:g} each", USUAL),
        "worst": (f"post-processing, {where}, every candidate passes", WORST),
    }
    limit = (forward, f"gfl forward, {where}")
    return [
        record(FIGURE, text, "ms", spreads[key].times(1000), *limit, goal)
        for key, (text, goal) in names.items()
    ]


def _random(grid, config, images: int) -> Predictions:
    rng = torch.Generator().manual_seed(0)
    count, bins = grid.strides.shape[0], config.model.reg_max + 1
    scores = torch.randn(images, count, NUM_CLASSES, generator=rng) - 4
    boxes = torch.randn(images, count, 4 * bins, generator=rng)
    device = grid.strides.device
    return Predictions(scores.to(device), boxes.to(device), grid)


def _some_candidates(grid, config, images: int) -> Predictions:
    """`CANDIDATES` pairs an image with scores above the threshold, all others far below it."""
    given = _random(grid, config, images)
    rng = torch.Generator().manual_seed(1)
    logits = torch.full_like(given.cls_logits, -8.0).flatten(1)
    low = config.postprocess.score_threshold
    for own in logits:
        chosen = torch.randperm(len(own), generator=rng)[:CANDIDATES]
        scores = low + 0.01 + (0.98 - low) * torch.rand(len(chosen), generator=rng)
        own[chosen.to(own.device)] = scores.logit().to(own.device)
    return Predictions(logits.view_as(given.cls_logits), given.box_logits, grid)
