"""True blur of edges, where a COCO json states it: `edge_blur`, as the drawn sample does."""

import json
from pathlib import Path

import numpy as np


def read_edge_blur(files: tuple[str, ...]) -> dict[tuple, list[float]]:
    """What annotation files say about the blur of each object's edges.

    Args:
        files: annotation files or folders; those that are no COCO json say nothing.

    Returns:
        (image id, x, y, w, h) to [left, top, right, bottom], standard deviations in pixels.
    """
    blur = {}
    for file in files:
        path = Path(file)
        if path.suffix != ".json" or not path.is_file():
            continue
        content = path.read_bytes()
        if b'"edge_blur"' not in content:
            continue
        for entry in json.loads(content)["annotations"]:
            values = entry.get("edge_blur") if isinstance(entry, dict) else None
            if _is_four_numbers(values) and _is_four_numbers(entry.get("bbox")):
                blur[(entry.get("image_id"), *entry["bbox"])] = values
    return blur


def _is_four_numbers(values) -> bool:
    if not isinstance(values, list) or len(values) != 4:
        return False
    return all(isinstance(v, int | float) for v in values) and bool(np.isfinite(values).all())
