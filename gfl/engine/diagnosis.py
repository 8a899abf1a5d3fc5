"""Why AP is 0: what the detections have in common with the objects, and what not."""

import contextlib
import io
from collections import Counter, defaultdict

import numpy as np
from pycocotools import mask as rectangles
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# Images that are looked at, and the IoU from which a detection and an object overlap.
MAX_IMAGES = 500
OVERLAP = 0.5


def diagnose(
    truth: COCO,
    results: list[dict],
    class_names: dict[int, str],
    highest: float,
    threshold: float,
) -> list[str]:
    """Say what is wrong with detections whose AP is 0.

    Args:
        truth: ground truth with index.
        results: COCO result entries: xywh, pixels of the original image.
        class_names: name of each category id that is evaluated.
        highest: largest score of any location, before the threshold.
        threshold: detections have scores above it.

    Returns:
        Lines for people. The numbers are those of the first 500 images that have objects.
    """
    lines = [
        f"AP is 0: {len(results)} detections, highest score {highest:.4f}, "
        f"postprocess.score_threshold {threshold:g}."
    ]
    if not results:
        if highest <= threshold:
            return [
                *lines,
                "no detection at all: every score is under the threshold. Early in a training "
                "from scratch this is usual; later, look at the losses and the learning rate.",
            ]
        return [
            *lines,
            "no detection at all, though scores pass the threshold: no box has an area.",
        ]
    lines += _unknown_categories(truth, results, class_names)
    images = sorted({a["image_id"] for a in truth.dataset["annotations"] if not a.get("iscrowd")})
    images = images[:MAX_IMAGES]
    pairs, share = _overlaps(truth, results, images)
    lines.append(
        f"{share:.1%} of the detections overlap an object at IoU {OVERLAP:g}, whatever its class."
    )
    if not pairs:
        return [*lines, *_frame(truth, results, images)]
    agnostic = _ap(truth, results, images, use_classes=False)
    lines.append(f"AP with all classes taken as one: {agnostic:.4f}.")
    mapping = _permutation(pairs, class_names)
    moved = {a: b for a, b in mapping.items() if a != b}
    if moved:
        renamed = [{**entry, "category_id": mapping.get(i := entry["category_id"], i)}
                   for entry in results]  # fmt: skip
        better = _ap(truth, renamed, images, use_classes=True)
        if better > max(2 * _ap(truth, results, images, use_classes=True), 0.001):
            exchanged = [
                f"{class_names[a]} -> {class_names[b]}" for a, b in sorted(moved.items())[:10]
            ]
            lines.append(
                f"AP with classes exchanged ({', '.join(exchanged)}): {better:.4f}. Classes are "
                "permuted: compare the category ids and names of the training and this json."
            )
    return lines


def _unknown_categories(truth: COCO, results: list[dict], class_names: dict) -> list[str]:
    known = set(truth.getCatIds())
    strange = sorted({entry["category_id"] for entry in results} - known)
    unused = sorted({a["category_id"] for a in truth.dataset["annotations"]} - set(class_names))
    lines = []
    if strange:
        lines.append(f"category ids {strange[:10]} of detections are unknown to the ground truth.")
    if unused:
        lines.append(f"category ids {unused[:10]} of objects are no class of the model.")
    return lines


def _overlaps(truth: COCO, results: list[dict], images: list[int]) -> tuple[Counter, float]:
    """Classes that meet at the same place.

    Returns:
        How often (detected id, true id) is the best-scored detection of an object, and the share
        of detections that overlap any object.
    """
    found = defaultdict(list)
    for entry in results:
        found[entry["image_id"]].append(entry)
    pairs, overlapping, total = Counter(), 0, 0
    for image_id in images:
        entries = sorted(found[image_id], key=lambda entry: -entry["score"])
        objects = [a for a in truth.imgToAnns[image_id] if not a.get("iscrowd")]
        total += len(entries)
        if not entries or not objects:
            continue
        boxes = np.array([entry["bbox"] for entry in entries], float)
        iou = rectangles.iou(
            boxes, np.array([a["bbox"] for a in objects], float), [0] * len(objects)
        )
        meets = iou >= OVERLAP
        overlapping += int(meets.any(1).sum())
        for number in np.flatnonzero(meets.any(0)):
            best = entries[int(meets[:, number].argmax())]
            pairs[best["category_id"], objects[number]["category_id"]] += 1
    return pairs, overlapping / max(total, 1)


def _permutation(pairs: Counter, class_names: dict) -> dict[int, int]:
    """Detected id to true id: the most frequent partners, each class taken once."""
    mapping: dict[int, int] = {}
    for (a, b), _ in pairs.most_common():
        known = a in class_names and b in class_names
        if known and a not in mapping and b not in mapping.values():
            mapping[a] = b
    free = [i for i in class_names if i not in mapping.values()]
    for a in [i for i in class_names if i not in mapping]:
        mapping[a] = a if a in free else free[0]
        free.remove(mapping[a])
    return mapping


def _frame(truth: COCO, results: list[dict], images: list[int]) -> list[str]:
    """Compare places and sizes: boxes in another image's pixels have another scale."""
    wanted = set(images)
    boxes = np.array([entry["bbox"] for entry in results if entry["image_id"] in wanted], float)
    if not len(boxes):
        return ["no detection lies in an image that has objects."]
    sizes = {i: (truth.imgs[i]["width"], truth.imgs[i]["height"]) for i in images}
    limits = np.array([sizes[e["image_id"]] for e in results if e["image_id"] in wanted], float)
    outside = ((boxes[:, :2] < -1) | (boxes[:, :2] + boxes[:, 2:] > limits + 1)).any(1).mean()
    objects = [a["bbox"] for i in images for a in truth.imgToAnns[i] if not a.get("iscrowd")]
    ratio = _typical_side(boxes) / max(_typical_side(np.array(objects, float)), 1e-9)
    lines = [
        f"the boxes are at wrong places: {outside:.0%} reach out of their image; their typical "
        f"side is {ratio:.2g} times that of the objects."
    ]
    if outside > 0.1 or not 0.5 < ratio < 2:
        lines.append(
            "Early in a training this is usual. If it stays so, they may be in another frame (of "
            "the resized image, in strides, or 0 to 1): they must be pixels of the original image."
        )
    return lines


def _typical_side(boxes: np.ndarray) -> float:
    return float(np.sqrt(np.median(boxes[:, 2] * boxes[:, 3])))


def _ap(truth: COCO, results: list[dict], images: list[int], use_classes: bool) -> float:
    """COCO AP on some images, 0 where it is not defined."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        found = truth.loadRes([dict(entry) for entry in results])
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.imgIds = images
        evaluation.params.useCats = int(use_classes)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    precision = precision[precision > -1]
    return float(precision.mean()) if precision.size else 0.0
