"""Pictures with boxes, for people to look at. Files only: no display is needed."""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from gfl.data.batch import Normalize
from gfl.data.loader import BatchLoader
from gfl.structures import Batch, Detections

# Batches drawn to train_batches/ and images of each, images drawn with predictions, and the score
# from which predictions are drawn.
NUM_BATCHES, MAX_IMAGES = 3, 16
NUM_PREDICTIONS = 8
DRAW_THRESHOLD = 0.3

# Distinct on light and dark pictures, RGB.
COLORS = (
    (230, 60, 50), (60, 120, 240), (40, 170, 80), (240, 170, 20), (170, 70, 200),
    (20, 180, 190), (250, 110, 170), (140, 110, 60), (120, 200, 40), (100, 100, 220),
)  # fmt: skip


def draw_boxes(
    image: np.ndarray,
    boxes: Sequence,
    labels: Sequence[int],
    class_names: Sequence[str],
    scores: Sequence[float] | None = None,
) -> np.ndarray:
    """A copy of an (H, W, 3) uint8 RGB image with xyxy boxes in its own pixels."""
    image = np.ascontiguousarray(image.copy())
    for row, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        color = COLORS[int(label) % len(COLORS)]
        x1, y1, x2, y2 = (round(float(v)) for v in box)
        cv2.rectangle(image, (x1, y1), (x2, y2), color, 1, cv2.LINE_AA)
        text = class_names[int(label)]
        if scores is not None:
            text += f" {float(scores[row]):.2f}"
        (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.35, 1)
        top = max(y1 - height - base, 0)
        cv2.rectangle(image, (x1, top), (x1 + width, top + height + base), color, -1)
        place = (x1, top + height)
        white = (255, 255, 255)
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.35, white, 1, cv2.LINE_AA)
    return image


def draw_batch(batch: Batch, class_names: Sequence[str]) -> np.ndarray:
    """All images of a batch, as the network gets them, with their objects, in one picture."""
    pictures = []
    for number in range(len(batch.metas)):
        present = batch.targets.present[number]
        image = batch.images[number].permute(1, 2, 0).numpy()
        boxes = batch.targets.boxes[number][present].tolist()
        labels = batch.targets.labels[number][present].tolist()
        pictures.append(draw_boxes(image, boxes, labels, class_names))
    return tile(pictures)


def draw_detections(
    image: np.ndarray, detections: Detections, class_names: Sequence[str]
) -> np.ndarray:
    """The detections above `DRAW_THRESHOLD`, on their original image."""
    kept = detections.scores > DRAW_THRESHOLD
    return draw_boxes(
        image,
        detections.boxes[kept].tolist(),
        detections.labels[kept].tolist(),
        class_names,
        detections.scores[kept].tolist(),
    )


def tile(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures side by side, about as wide as high, on black."""
    columns = int(np.ceil(np.sqrt(len(pictures))))
    height = max(picture.shape[0] for picture in pictures)
    width = max(picture.shape[1] for picture in pictures)
    rows = -(-len(pictures) // columns)
    canvas = np.zeros((rows * height, columns * width, 3), np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * height, number % columns * width
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


def save_picture(path, image: np.ndarray) -> None:
    """Write an RGB picture; the ending decides the format."""
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def save_first_batches(loader: BatchLoader, class_names: Sequence[str], folder: Path) -> None:
    """Write pictures of the first augmented batches, made as the loader's workers make them."""
    folder.mkdir(exist_ok=True)
    for number, keys in zip(range(NUM_BATCHES), loader.batch_sampler, strict=False):
        batch = loader.load(keys[:MAX_IMAGES])
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
        image = loader.dataset.dataset[key.index].image
        pictures.append(draw_detections(image, detections, class_names))
    return tile(pictures)
