"""Draw a small COCO-format detection data set of shapes whose box edges are blurred on purpose.

It writes ``images/*.jpg`` and ``annotations/{train,val}.json``. Each class has its own hues, so a
small network learns in minutes. A third of the pictures are portrait; of 20 in a row one is empty
and two are crowded. A picture depends on (seed, split, index, size) alone, not on their number.

``bbox`` is ``[x, y, w, h]`` in continuous pixel coordinates (the top left pixel covers
``[0, 1] x [0, 1]``): the full extent of the object, also where another object hides part of it, and
wholly inside the image. ``area`` is the sum of the object's own opacity, hidden parts included.
``segmentation`` holds run lengths of the pixels that show the object more than what is around it.

``edge_blur`` is ``[left, top, right, bottom]`` in pixels: the standard deviation of each edge's
position. An object's opacity is the mean of its outline over many boxes whose sides are displaced
by zero-mean, near-Gaussian amounts, independent of each other and of size, class and place. The
size of a pixel (0.29, added in quadrature) and JPEG come on top.

Labels are exact: boxes lie at the mean of their edges. With ``annotator`` each is one of the boxes
that its object is the mean of, as if somebody had drawn it who could not see a blurred edge any
better: ``edge_blur`` is then the standard deviation of the label too. The pictures are the same.
With ``by_colour`` the class is the hue, and each has all shapes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from gfl.errors import UserError
from gfl.files import beside, replacing
from gfl.sample_shapes import CATEGORIES, object_alpha, unit_displacements

if TYPE_CHECKING:
    from gfl.schema.data import Data

# In the order of their hues, which are those of the categories by shape.
COLOURS = {"red": 3, "yellow": 5, "green": 6, "cyan": 8, "blue": 10, "magenta": 11}
SPLITS = ("train", "val")
MIN_SIDE, MAX_SIDE, MAX_SMALL_SIDE = 24.0, 140.0, 42.0
MARGIN, PAD, BLOCK, ID_STEP = 6, 24, 20, 1_000_000
MAX_BLUR, MIN_VISIBLE = 6.0, 0.35
Scene = tuple[np.ndarray, list[dict[str, Any]]]


def paint(canvas: np.ndarray, alpha: np.ndarray, x0: int, y0: int, colour: Any) -> None:
    """Blends a colour (3 numbers, or a triple per pixel of the patch) into a float32 canvas."""
    view = canvas[y0 : y0 + alpha.shape[0], x0 : x0 + alpha.shape[1]]
    view += alpha[..., None] * (np.asarray(colour, np.float32) - view)


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Returns a (height, width) field of smooth noise with bumps about ``cell`` wide."""
    grid = rng.standard_normal((int(height / cell) + 3, int(width / cell) + 3)).astype(np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def make_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draws a textured background: noise, stripes, gradient or checks, as float32 BGR."""
    angle, period = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(8), np.log(60)))
    yy, xx = np.mgrid[:height, :width].astype(np.float32)
    along = xx * np.cos(angle) + yy * np.sin(angle)
    kind = rng.choice(["noise", "stripes", "gradient", "checks"])
    if kind == "noise":
        cells = np.exp(rng.uniform(np.log(3), np.log(60), 3))
        pattern = sum(smooth_noise(rng, height, width, c) for c in cells) / 2
    elif kind == "stripes":
        along += smooth_noise(rng, height, width, 60) * rng.uniform(0, 6)
        pattern = np.clip(np.sin(2 * np.pi * along / period) * rng.uniform(1, 4), -1, 1)
    elif kind == "gradient":
        pattern = 4 * (along - along.mean()) / max(height, width)
    else:
        across = yy * np.cos(angle) - xx * np.sin(angle)
        pattern = np.sign(np.sin(np.pi * along / period) * np.sin(np.pi * across / period))
    base = rng.uniform(40, 215) + rng.uniform(-15, 15, 3)
    tint = rng.uniform(-1, 1, 3) * rng.uniform(8, 28)
    fine = smooth_noise(rng, height, width, 2)[..., None] * rng.uniform(1, 6)
    return (base + pattern[..., None] * tint + fine).astype(np.float32)


def draw_edge_blur(rng: np.random.Generator) -> list[float]:
    """Draws four standard deviations: 45 % sharp, 45 % doubtful, 10 % between, log-uniform each."""
    kinds = ((0.3, 0.7), (3.5, MAX_BLUR), (0.7, 3.5))
    picked = rng.choice(3, size=4, p=(0.45, 0.45, 0.1))
    return [round(float(np.exp(rng.uniform(*np.log(kinds[k])))), 3) for k in picked]


def _pick_colour(rng: np.random.Generator, around: np.ndarray, number: int) -> np.ndarray:
    """Returns a colour of a class's range of hues that differs from nearly all given pixels."""
    hue = 60 * number + rng.uniform(-25, 25, 20)
    hsv = np.stack((hue % 360, rng.uniform(0.55, 1, 20), rng.uniform(0.4, 1, 20)), 1)
    colours = 245 * cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2BGR)[0]
    pixels = around.reshape(-1, 1, 3)[::7]
    gaps = np.percentile(np.linalg.norm(pixels - colours, axis=2), 10, axis=0)
    return colours[np.argmax(np.minimum(gaps, 110))]


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H x W, bool) as COCO's compressed run lengths, which JSON can hold."""
    found = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": found["counts"].decode("ascii")}


def draw_scene(
    rng: np.random.Generator, width: int, height: int, kind: str = "normal", by_colour: bool = False
) -> Scene:
    """Draws one picture of ``kind`` "normal", "crowded" (10 to 20 small objects) or "empty".

    Returns:
        The picture (H x W x 3 uint8, BGR) and its objects in the order of painting: their COCO
        fields and ``visible``, the share of their opacity that later objects leave uncovered.
    """
    canvas = make_background(rng, height + 2 * PAD, width + 2 * PAD)
    wanted = int(rng.integers(*{"empty": (0, 1), "crowded": (10, 21), "normal": (1, 8)}[kind]))
    top_side = MAX_SMALL_SIDE if kind == "crowded" else MAX_SIDE
    longest = np.minimum(top_side, np.array([width, height]) - 2 * MARGIN - 1)
    placed: list[tuple[dict[str, Any], np.ndarray]] = []
    for _ in range(4 * wanted):
        name = str(rng.choice(list(CATEGORIES)))
        label = int(rng.integers(len(COLOURS))) if by_colour else list(CATEGORIES).index(name)
        side = np.exp(rng.uniform(np.log(MIN_SIDE), np.log(top_side)))
        stretch = np.exp(rng.uniform(-0.5, 0.5) * np.log(2.2))
        w, h = np.clip([side * stretch, side / stretch], MIN_SIDE, longest).round(2).tolist()
        fx, fy = rng.uniform(0, 1, 2).round(2).tolist()
        blur = draw_edge_blur(rng)
        alpha, ox, oy = object_alpha(name, (fx, fy, w, h), blur, rng.uniform(), rng.integers(4))
        rows, cols = alpha.shape
        for _ in range(12):
            x = int(rng.integers(MARGIN, int(width - MARGIN - w - fx) + 1))
            y = int(rng.integers(MARGIN, int(height - MARGIN - h - fy) + 1))
            x0, y0 = x + ox + PAD, y + oy + PAD
            where = (slice(y0, y0 + rows), slice(x0, x0 + cols))
            left = [(s.sum() - (s[where] * alpha).sum()) / o["area"] for o, s in placed]
            if min(left, default=1.0) >= MIN_VISIBLE:
                break
        else:
            continue
        for _, s in placed:
            s[where] *= 1 - alpha
        relief = smooth_noise(rng, rows, cols, rng.uniform(3, 25)) * rng.uniform(0, 14)
        relief += smooth_noise(rng, rows, cols, 70) * 14
        paint(canvas, alpha, x0, y0, _pick_colour(rng, canvas[where], label) + relief[..., None])
        box = [round(x + fx, 2), round(y + fy, 2), w, h]
        category = list((COLOURS if by_colour else CATEGORIES).values())[label]
        found = {"category_id": category, "bbox": box, "edge_blur": blur}
        placed.append((found | {"area": float(alpha.sum())}, np.zeros_like(canvas[..., 0])))
        placed[-1][1][where] = alpha
        if len(placed) == wanted:
            break
    image = canvas[PAD:-PAD, PAD:-PAD]
    grain = rng.standard_normal(image.shape).astype(np.float32) * rng.uniform(0.5, 3)
    objects = []
    for o, s in placed:
        shown = _run_lengths(s[PAD:-PAD, PAD:-PAD] > 0.5)
        objects.append(o | {"visible": float(s.sum()) / o["area"], "segmentation": shown})
    return np.clip(np.rint(image + grain), 0, 255).astype(np.uint8), objects


def annotated(box: Sequence[float], edge_blur: Sequence[float], rng: np.random.Generator) -> list:
    """Returns one of the boxes (x, y, w, h) that `object_alpha` is the mean of, at random."""
    x, y, w, h = box
    sides = np.array([x, y, x + w, y + h]) + rng.choice(unit_displacements()) * edge_blur
    return [round(float(v), 2) for v in (*sides[:2], *(sides[2:] - sides[:2]))]


def scene_at(
    seed: int, split: str, index: int, size: Sequence[int] = (256, 192), by_colour: bool = False
) -> Scene:
    """Draws picture ``index`` of a split; a pure function of its arguments (see draw_scene)."""
    number = SPLITS.index(split)
    order = np.random.default_rng([seed, number, index // BLOCK, 1]).permutation(BLOCK)
    kind = {0: "empty", 1: "crowded", 2: "crowded"}.get(int(order[index % BLOCK]), "normal")
    rng = np.random.default_rng([seed, number, index])
    width, height = size if rng.uniform() < 0.65 else size[::-1]
    return draw_scene(rng, width, height, kind, by_colour)


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as part:
        part.write_bytes(data)


def _is_own(path: Path, info: dict[str, Any]) -> bool:
    """Tells whether annotations with this info exist; raises if there are others."""
    if not path.exists():
        return False
    with contextlib.suppress(ValueError, LookupError, TypeError):
        if json.loads(path.read_bytes())["info"] == info:
            return True
    raise FileExistsError(f"{path} is of a different data set: use another --out")


def drawn_if_missing(data: Data) -> bool:
    """Draw the sample into `data.path` if the config asks for that and nothing is there.

    It appears there whole, in one move.

    Returns:
        Whether it was drawn.

    Raises:
        UserError: it can not be written.
    """
    place = Path(data.path or ".")
    if not data.draw_sample or os.path.exists(place):
        return False
    unfinished = beside(place)
    try:
        make_shapes(unfinished)
        unfinished.rename(place)
    except OSError as error:
        if place.exists():  # by another process, meanwhile
            return False
        reason = error.strerror or error
        raise UserError(f"cannot draw the sample into {place}: {reason}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return True


def make_shapes(
    out: str | Path,
    num_train: int = 300,
    num_val: int = 60,
    seed: int = 0,
    size: Sequence[int] = (256, 192),
    annotator: bool = False,
    by_colour: bool = False,
) -> None:
    """Writes the data set; ``size`` is the width and height of the landscape pictures.

    Raises:
        FileExistsError: The folder holds other data of the same names; they are left as they are.
        ValueError: An argument is out of range.
    """
    if min(num_train, num_val, seed) < 0 or max(num_train, num_val) >= ID_STEP or min(size) < 96:
        raise ValueError("seed and numbers must be 0 or more, width and height 96 or more")
    info = {"description": "Drawn shapes with edges of known blur (edge_blur: ltrb, std in pixels)"}
    info |= {"seed": seed, "arguments": {"train": num_train, "val": num_val, "size": list(size)}}
    chosen = {"annotator": annotator, "by_colour": by_colour}
    info["arguments"] |= {name: True for name, value in chosen.items() if value}
    out = Path(out)
    files = [out / "annotations" / f"{split}.json" for split in SPLITS]
    own = any([_is_own(path, info) for path in files])
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / "annotations").mkdir(exist_ok=True)
    contents = []
    for number, count in enumerate((num_train, num_val)):
        content: dict[str, Any] = {"info": info, "images": [], "annotations": []}
        categories = COLOURS if by_colour else CATEGORIES
        content["categories"] = [{"id": i, "name": name} for name, i in categories.items()]
        for index in range(count):
            picture, objects = scene_at(seed, SPLITS[number], index, size, by_colour)
            jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
            path = out / "images" / f"{SPLITS[number]}_{index:06d}.jpg"
            if not own and path.exists() and path.read_bytes() != jpeg:
                raise FileExistsError(f"{path} has other content: use another --out")
            _write(path, jpeg)
            image = {"id": number * ID_STEP + index + 1, "file_name": path.name}
            image |= {"width": picture.shape[1], "height": picture.shape[0]}
            content["images"].append(image)
            rng = np.random.default_rng([seed, number, index, 2])
            for o in objects:
                if annotator:
                    o["bbox"] = annotated(o["bbox"], o["edge_blur"], rng)
                o |= {"id": 100 * number * ID_STEP + len(content["annotations"]) + 1}
                o |= {"image_id": image["id"], "iscrowd": 0, "area": round(o["area"], 2)}
                content["annotations"].append({k: v for k, v in o.items() if k != "visible"})
        contents.append(json.dumps(content).encode())
    for path, data in zip(files, contents, strict=True):
        _write(path, data)
