"""Pictures with boxes, for people to look at. Files only: no display is needed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gfl.data.batch import Normalize
from gfl.data.loader import BatchLoader
from gfl.drawing import draw_boxes, draw_dots, enlarged, save_picture, tile_pictures
from gfl.grid import compute_grid
from gfl.models.detector import GFLDetector
from gfl.structures import Batch

# Batches drawn to train_batches/ and images of each, and images drawn with predictions.
NUM_BATCHES, MAX_IMAGES = 3, 16
NUM_PREDICTIONS = 8


def draw_batch(
    batch: Batch, class_names: Sequence[str], positives: list[Tensor] | None = None
) -> np.ndarray:
    """All images of a batch, as the network gets them, with their objects, in one picture.

    Args:
        batch: on the CPU.
        class_names: of the labels.
        positives: of each image, (n, 3) x, y in pixels of the network input and number of the
            level; a dot each.
    """
    pictures = []
    for number in range(len(batch.metas)):
        present = batch.targets.present[number]
        image, factor = enlarged(batch.images[number].permute(1, 2, 0).numpy())
        boxes = (batch.targets.boxes[number][present] * factor).tolist()
        labels = batch.targets.labels[number][present].tolist()
        picture = draw_boxes(image, boxes, labels, class_names)
        if positives is not None:
            mine = positives[number]
            picture = draw_dots(picture, mine[:, :2] * factor, mine[:, 2].int().tolist())
        pictures.append(picture)
    return tile_pictures(pictures)


def find_positives(batch: Batch, detector: GFLDetector, assigner: Callable) -> list[Tensor] | None:
    """Which locations an assigner makes positives, as `draw_batch` takes them.

    None where that depends on what the network predicts.
    """
    if getattr(assigner, "needs_candidates", False):
        return None
    strides = detector.neck.strides
    height, width = batch.images.shape[2:]
    sizes = tuple((-(-height // stride), -(-width // stride)) for stride in strides)
    anchors = detector.head.anchors_per_cell
    grid = compute_grid(sizes, strides, detector.grid_origin, anchors_per_cell=anchors)
    level = torch.arange(len(strides)).repeat_interleave(torch.tensor(grid.level_counts))
    places = torch.cat((grid.centers, level[:, None]), 1)
    return [places[found >= 0] for found in assigner(grid, batch.targets).gt_index]


def save_first_batches(
    loader: BatchLoader,
    class_names: Sequence[str],
    folder: Path,
    positives: Callable[[Batch], list[Tensor] | None] = lambda batch: None,
) -> None:
    """Write pictures of the first augmented batches, made as the loader's workers make them."""
    folder.mkdir(exist_ok=True)
    for number, keys in zip(range(NUM_BATCHES), loader.batch_sampler, strict=False):
        batch = loader.load(keys[:MAX_IMAGES]).to("cpu")
        picture = draw_batch(batch, class_names, positives(batch))
        save_picture(folder / f"batch_{number}.jpg", picture)


@torch.no_grad()
def draw_predictions(
    model: nn.Module,
    loader: BatchLoader,
    postprocess: Callable,
    normalize: Normalize,
    class_names: Sequence[str],
) -> np.ndarray:
    """The first images of a loader with what the model finds in them, in one picture."""
    model.eval()
    keys = [key for batch in loader.batch_sampler for key in batch]
    pictures = []
    for key in keys[:NUM_PREDICTIONS]:
        batch = loader.load([key]).to(normalize.mean.device)
        predictions = model(normalize(batch.images, batch.input_sizes))
        [detections] = postprocess(predictions, batch.metas)
        image, factor = enlarged(loader.dataset.dataset[key.index].image)
        detections = replace(detections, names=tuple(class_names)).filter()
        detections = replace(detections, boxes=detections.boxes * factor)
        pictures.append(detections.draw(image, doubt=False))
    return tile_pictures(pictures)
