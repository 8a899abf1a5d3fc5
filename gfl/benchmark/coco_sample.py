"""A drawn ground truth of COCO's proportions, and detections as a trained detector makes them."""

import numpy as np
from pycocotools.coco import COCO

from gfl.data.coco_truth import coco_of

CLASSES = 80
# COCO val2017 has 36,781 annotations in 5,000 images, about 1 % of them crowd regions.
OBJECTS_PER_IMAGE = 7.36
CROWD_SHARE = 0.012
SIZE = (480, 640)


def coco_truth(num_images: int, seed: int = 0) -> COCO:
    """Objects of 80 classes of uneven frequency, few kinds in each image, many of them small."""
    rng = np.random.default_rng(seed)
    height, width = SIZE
    frequency = 1 / np.arange(2, CLASSES + 2)
    frequency /= frequency.sum()
    annotations = []
    for image_id in range(1, num_images + 1):
        kinds = rng.choice(CLASSES, size=rng.integers(1, 5), replace=False, p=frequency)
        for _ in range(rng.poisson(OBJECTS_PER_IMAGE)):
            side = np.exp(rng.normal(3.9, 1.0))
            w, h = np.clip(side * np.exp(rng.normal(0, 0.3, 2)), 4, (width - 1, height - 1))
            x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.choice(kinds)) + 1,
                    "bbox": [round(float(v), 2) for v in (x, y, w, h)],
                    "area": float(w * h) * 0.6,
                    "iscrowd": int(rng.random() < CROWD_SHARE),
                }
            )
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": width, "height": height}
            for i in range(1, num_images + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, CLASSES + 1)],
    }
    return coco_of(content)


def coco_detections(truth: COCO, per_image: int = 100, seed: int = 1) -> list[dict]:
    """Result entries: two thirds of the objects found well, doubles, and false ones of low score.

    Args:
        truth: of `coco_truth`.
        per_image: entries of an image; COCO counts 100.
    """
    rng = np.random.default_rng(seed)
    height, width = SIZE
    results = []
    for image_id in truth.getImgIds():
        objects = truth.imgToAnns[image_id]
        entries = []
        for item in objects:
            found = rng.random() < 0.67
            copies = (1 if found else 0) + rng.integers(0, 3)
            for copy in range(copies):
                spread = 0.04 if found and not copy else 0.2
                x, y, w, h = item["bbox"]
                noise = rng.normal(0, spread, 4)
                box = (x + noise[0] * w, y + noise[1] * h, *(np.exp(noise[2:]) * (w, h)))
                score = rng.beta(5, 3) if found and not copy else rng.beta(1.2, 8)
                category = item["category_id"]
                if rng.random() < 0.1:
                    category = int(rng.integers(1, CLASSES + 1))
                entries.append((category, box, score))
        kinds = rng.integers(1, CLASSES + 1, 12)
        while len(entries) < per_image:
            w, h = np.exp(rng.normal(3.9, 1.0, 2)).clip(4, (width - 1, height - 1))
            box = (rng.uniform(0, width - w), rng.uniform(0, height - h), w, h)
            entries.append((int(rng.choice(kinds)), box, rng.beta(1, 12)))
        entries.sort(key=lambda entry: -entry[2])
        results += [
            {
                "image_id": image_id,
                "category_id": category,
                "bbox": [float(v) for v in box],
                "score": float(score),
            }
            for category, box, score in entries[:per_image]
        ]
    return results
