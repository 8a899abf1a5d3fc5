"""Pictures with boxes, for people to look at. Files only: no display is needed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gfl.data.batch import Normalize
from gfl.data.loader import BatchLoader
from gfl.drawing import draw_boxes, enlarged, save_picture, tile_pictures
from gfl.structures import Batch

# Batches drawn to train_batches/ and images of each, and images drawn with predictions.
NUM_BATCHES, MAX_IMAGES = 3, 16
NUM_PREDICTIONS = 8


def draw_batch(batch: Batch, class_names: Sequence[str]) -> np.ndarray:
    """All images of a batch, as the network gets them, with their objects, in one picture."""
    pictures = []
    for number in range(len(batch.metas)):
        present = batch.targets.present[number]
        image, factor = enlarged(batch.images[number].permute(1, 2, 0).numpy())
        boxes = (batch.targets.boxes[number][present] * factor).tolist()
        labels = batch.targets.labels[number][present].tolist()
        pictures.append(draw_boxes(image, boxes, labels, class_names))
    return tile_pictures(pictures)


def save_first_batches(loader: BatchLoader, class_names: Sequence[str], folder: Path) -> None:
    """Write pictures of the first augmented batches, made as the loader's workers make them."""
    folder.mkdir(exist_ok=True)
    for number, keys in zip(range(NUM_BATCHES), loader.batch_sampler, strict=False):
        batch = loader.load(keys[:MAX_IMAGES]).to("cpu")
        save_picture(folder / f"batch_{number}.jpg", draw_batch(batch, class_names))


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
