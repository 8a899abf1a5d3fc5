"""A data set with one of each defect, drawn and listed here, with what should become of each.

`write_messy_set(folder)` writes images/, annotations/messy.json, annotations/expected.json (what is
left), annotations/refuse/*.json (whole files to be refused) and manifest.json. Verdicts: use,
repair_warn (mended, said so), skip_warn (left out, said so), refuse (stops with a message).
"""

import copy
import json
import math
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

USE, REPAIR, SKIP, REFUSE = "use", "repair_warn", "skip_warn", "refuse"
CLASSES = {5: "bar", 2: "plate", 90: "blob"}
COLORS = {5: (230, 60, 30), 2: (30, 90, 220), 90: (40, 200, 60)}
WIDTH, HEIGHT = 160, 120


def picture(rng: np.random.Generator, width: int, height: int) -> tuple[np.ndarray, list]:
    """A grey RGB picture with a coloured box in each third of its longer side: (category, xywh)."""
    image = np.full((height, width, 3), int(rng.integers(100, 140)), np.uint8)
    if min(width, height) < 8:
        return image, []
    objects, wide = [], width >= height
    third = max(width, height) // 3
    for number, category in enumerate(CLASSES):
        room = np.array([third, height] if wide else [width, third])
        side = rng.integers(room // 3, room // 2)
        corner = (
            rng.integers(1, room - side) + np.array([third, 0] if wide else [0, third]) * number
        )
        (x, y), (w, h) = corner.tolist(), side.tolist()
        image[y : y + h, x : x + w] = COLORS[category]
        objects.append((category, [x, y, w, h]))
    return image, objects


class _Writer:
    def __init__(self, folder: Path, seed: int):
        self.folder, self.rng = folder, np.random.default_rng(seed)
        (folder / "images").mkdir(parents=True)
        self.images, self.annotations, self.kept_images, self.kept = [], [], [], []
        self.image_notes, self.annotation_notes = [], []

    def path(self, name: str) -> Path:
        path = self.folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def image(
        self, name, defect=None, verdict=USE, save=None, *, size=(WIDTH, HEIGHT), file=None,
        acceptable=(), show=lambda image: image, tolerance=30, objects=None, stated="true",
        scale=1, **extra,
    ) -> int:  # fmt: skip
        """Draw, save by `save(path, image)`, list; `show` is what a reader must then see."""
        drawn, found = picture(self.rng, *size)
        if save is not None:
            save(self.path(file or name), drawn)
        image_id = 7 * len(self.images) + 100
        entry = {"id": image_id, "file_name": name}
        if stated is not None:
            entry["width"], entry["height"] = size if stated == "true" else stated
        self.images.append(entry | extra)
        objects = found if objects is None else objects
        seen = show(drawn)
        probes = [(x + w // 2, y + h // 2) for _, (x, y, w, h) in objects] + [(0, 0)]
        probes = [[x, y, *seen[y, x].tolist()] for x, y in probes if save is not None]
        self.image_notes.append(
            {
                "file_name": name, "image_id": image_id, "on_disk": file or name,
                "defects": [defect] if defect else [], "expected": verdict,
                "acceptable": sorted({verdict, *acceptable}), "true_size": list(size),
                "probes": probes if verdict in (USE, REPAIR) else [], "probe_tol": tolerance,
            }
        )  # fmt: skip
        alive = verdict in (USE, REPAIR)
        if alive:
            width, height = size
            self.kept_images.append(
                {"id": image_id, "file_name": file or name, "width": width, "height": height}
            )
        for category, box in objects:
            self.object(
                image_id,
                category,
                [v * scale for v in box],
                None if alive else "image_left_out",
                alive=alive,
            )
        return image_id

    def object(
        self, image_id, category, box, defect=None, verdict=USE, *, fixed=None, acceptable=(),
        alive=True, drop=(), truth=None, **values,
    ) -> None:  # fmt: skip
        """List an annotation; `fixed` is its box after repair, `truth` its ids after repair."""
        verdict = verdict if alive else SKIP
        entry = {"id": len(self.annotations) + 1, "image_id": image_id, "category_id": category}
        entry |= {"bbox": box, "iscrowd": 0} | values
        for key in drop:
            del entry[key]
        self.annotations.append(entry)
        self.annotation_notes.append(
            {
                "index": len(self.annotations) - 1, "defects": [defect] if defect else [],
                "expected": verdict, "acceptable": sorted({verdict, *acceptable}),
            }
        )  # fmt: skip
        if verdict in (USE, REPAIR):
            box = fixed or box
            crowd = int(values.get("iscrowd") in (1, "1"))
            ids = truth or {"image_id": image_id, "category_id": category}
            self.kept.append(
                {"id": len(self.kept) + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
                | ids
            )


def save_jpeg(path: Path, image: np.ndarray, mode: str = "RGB", **options) -> None:
    Image.fromarray(image).convert(mode).save(path, "JPEG", quality=95, **options)


def save_png(path: Path, image: np.ndarray, mode: str = "RGB") -> None:
    Image.fromarray(image).convert(mode).save(path, "PNG")


def save_turned(orientation: int, quarters: int):
    """A JPEG stored turned by quarters to the left, with the EXIF that says so."""

    def save(path: Path, image: np.ndarray) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        save_jpeg(path, np.ascontiguousarray(np.rot90(image, quarters)), exif=exif)

    return save


def save_cut(share: float, missing: int = 0):
    """A JPEG of which the last part is missing."""

    def save(path: Path, image: np.ndarray) -> None:
        save_jpeg(path, image)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share) - missing])

    return save


def save_16_bit(path: Path, image: np.ndarray) -> None:
    cv2.imwrite(str(path), image[..., ::-1].astype(np.uint16) * 257)


def save_gray_16_bit(path: Path, image: np.ndarray) -> None:
    cv2.imwrite(str(path), gray(image)[..., 0].astype(np.uint16) * 257)


def save_palette(path: Path, image: np.ndarray) -> None:
    Image.fromarray(image).quantize(16).save(path)


def save_transparent_palette(path: Path, image: np.ndarray) -> None:
    Image.fromarray(image).quantize(16).save(path, transparency=b"\xff\x40\x00\xff")


def save_animated(path: Path, image: np.ndarray) -> None:
    frames = [Image.fromarray(frame).quantize(16) for frame in (image, 255 - image)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def gray(image: np.ndarray) -> np.ndarray:
    return np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


def as_is(format: str):
    return lambda path, image: Image.fromarray(image).save(path, format)


def _list_images(w: _Writer) -> None:
    """Every form and defect of an image."""
    w.image("plain.jpg", None, USE, save_jpeg)
    w.image("tall.png", None, USE, save_png, size=(HEIGHT, WIDTH))
    w.image("sub/deep \u00fc #1.jpg", "odd_name", USE, save_jpeg)
    w.image("gray.jpg", "gray", USE, lambda p, i: save_jpeg(p, i, "L"), show=gray)
    w.image("cmyk.jpg", "cmyk", USE, lambda p, i: save_jpeg(p, i, "CMYK"))
    w.image("progressive.jpg", "progressive", USE, lambda p, i: save_jpeg(p, i, progressive=True))
    w.image("deep.png", "16_bit", USE, save_16_bit)
    w.image("graydeep.png", "gray_16_bit", USE, save_gray_16_bit, show=gray)
    w.image("graydeep.tif", "gray_16_bit_tiff", USE, save_gray_16_bit, show=gray)
    w.image("rgba.png", "alpha", USE, lambda p, i: save_png(p, i, "RGBA"))
    w.image("la.png", "gray_alpha", USE, lambda p, i: save_png(p, i, "LA"), show=gray)
    w.image("palette.png", "palette", USE, save_palette)
    w.image("clear.png", "palette_with_transparency", USE, save_transparent_palette)
    w.image("palette.gif", "gif", USE, save_palette)
    w.image("moving.gif", "several_frames", USE, save_animated)
    w.image("photo.webp", "webp", USE, as_is("WEBP"), tolerance=60)
    w.image("photo.tif", "tiff", USE, as_is("TIFF"))
    w.image("photo.bmp", "bmp", USE, as_is("BMP"))
    w.image("one.png", "one_pixel", USE, save_png, size=(1, 1), objects=[(5, [0, 0, 1, 1])])
    w.image("flat.png", "extreme_aspect", USE, save_png, size=(2000, 30))
    w.image("empty.jpg", "no_objects", USE, save_jpeg, objects=[])
    w.image("inside.jpg", "extension_lies", REPAIR, as_is("PNG"), acceptable=[USE])
    for orientation, quarters in ((3, 2), (6, 1), (8, 3)):
        defect = f"exif_orientation_{orientation}"
        w.image(f"exif{orientation}.jpg", defect, USE, save_turned(orientation, quarters))
    w.image("exif0.jpg", "exif_orientation_invalid", REPAIR, save_turned(0, 0), acceptable=[USE])
    w.image("cut.jpg", "cut_off", SKIP, save_cut(0.6))
    w.image("tail.jpg", "end_marker_missing", REPAIR, save_cut(1, 2))
    w.image("tail1.jpg", "end_marker_halved", REPAIR, save_cut(1, 1))
    w.image("cut.png", "cut_off_png", SKIP, lambda p, i: _cut_png(p, i))
    w.image("zero.jpg", "zero_bytes", SKIP, lambda p, i: p.write_bytes(b""))
    w.image("page.jpg", "not_an_image", SKIP, lambda p, i: p.write_text("<html>404</html>"))
    w.image("gone.jpg", "file_missing", SKIP)
    w.image("win\\dows.jpg", "backslash_path", REPAIR, save_jpeg, file="win/dows.jpg")
    w.image("wide.jpg", "size_disagrees", REPAIR, save_jpeg, stated=(320, 240))
    w.image("swapped.jpg", "size_swapped", REPAIR, save_jpeg, stated=(HEIGHT, WIDTH))
    w.image("nosize.jpg", "size_absent", REPAIR, save_jpeg, stated=None)
    w.image("nullsize.jpg", "size_null", REPAIR, save_jpeg, stated=(None, 0))
    w.image("textsize.jpg", "size_is_text", REPAIR, save_jpeg, stated=("160", "120"))
    w.image("shrunk.jpg", "boxes_of_other_size", SKIP, save_jpeg, stated=(480, 360), scale=3)
    w.image("plain.jpg", "file_listed_twice", SKIP, objects=[])


def _cut_png(path: Path, image: np.ndarray) -> None:
    save_png(path, image)
    path.write_bytes(path.read_bytes()[:-40])


def _list_objects(w: _Writer) -> None:
    """Every defect of an annotation."""
    at = w.image("objects.png", None, USE, save_png, objects=[])
    box, nan, inf = [20.0, 20.0, 30.0, 30.0], math.nan, math.inf
    for defect, wrong in (
        ("zero_width", [50, 60, 0, 40]), ("negative_height", [50, 60, 20, -5]),
        ("under_one_pixel", [50, 60, 0.4, 0.5]), ("fractions", [0.2, 0.3, 0.1, 0.1]),
        ("nan", [nan, 20, 30, 30]), ("infinity", [20, 20, inf, 30]), ("bbox_null", None),
        ("bbox_of_three", [1, 2, 3]), ("bbox_of_words", list("abcd")), ("bbox_object", {"x": 1}),
        ("wholly_outside", [400, 50, 60, 40]), ("touches_the_edge", [WIDTH, 10, 20, 20]),
        ("absurd", [-1e9, -1e9, 2e9, 2e9]), ("overflow", [1e308, 1, 1e308, 5]),
    ):  # fmt: skip
        w.object(at, 5, wrong, defect, SKIP)
    w.object(at, 5, box, "bbox_absent", SKIP, drop=["bbox"])
    w.object(at, 5, [-9, -9, 30, 40], "partly_outside", REPAIR, fixed=[0, 0, 21, 31])
    w.object(at, 5, [-90, -90, 900, 900], "outside_all_round", REPAIR, fixed=[0, 0, WIDTH, HEIGHT])
    rounded = [90.4, 70.5, 70, 49.9]
    w.object(at, 2, rounded, "outside_by_rounding", USE, fixed=[90.4, 70.5, 69.6, 49.5])
    texts = ["12.5", "20", "30.25", "40"]
    w.object(at, 2, texts, "numbers_as_text", REPAIR, fixed=[12.5, 20, 30.25, 40])
    ids = {"image_id": at, "category_id": 2}
    w.object(at, "2", [60, 5, 9, 9], "category_id_as_text", REPAIR, truth=ids)
    w.object(str(at), 2, [70, 5, 9, 9], "image_id_as_text", REPAIR, truth=ids)
    w.object(float(at), 2.0, [80, 5, 9, 9], "ids_as_floats", USE, truth=ids)
    w.object(at, 2, [60, 15, 9, 9], "area_as_text", REPAIR, area="81.0")
    w.object(at, 2, [70, 15, 9, 9], "area_negative", USE, area=-1)
    w.object(at, 2, [80, 15, 9, 9], "area_and_crowd_null", USE, area=None, iscrowd=None)
    w.object(at, 2, [90, 15, 9, 9], "crowd_absent", USE, drop=["iscrowd"])
    w.object(at, 2, [60, 25, 9, 9], "crowd_is_bool", USE, iscrowd=False)
    w.object(at, 2, [70, 25, 9, 9], "crowd_as_text", REPAIR, iscrowd="1")
    w.object(at, 2, [80, 25, 9, 9], "crowd", USE, iscrowd=1)
    w.object(at, 2, [90, 25, 9, 9], "crowd_is_a_word", SKIP, iscrowd="many")
    w.object(at, 90, [60, 35, 9, 9], "id_absent", REPAIR, drop=["id"])
    w.object(at, 90, [70, 35, 9, 9], "id_taken", REPAIR, id=1)
    w.object(at, 90, [80, 35, 9, 9], "category_id_absent", SKIP, drop=["category_id"])
    w.object(at, 90, [80, 35, 9, 9], "image_id_absent", SKIP, drop=["image_id"])
    w.object(at, 999, box, "unknown_category", SKIP)
    w.object(987654, 5, box, "unknown_image", SKIP)
    w.object(at, 90, box)
    w.object(at, 90, box, "repeated_box", SKIP)
    w.object(at, 5, box, "same_box_of_other_class", USE)
    w.image("crowds.jpg", None, USE, save_jpeg, objects=[])
    w.object(w.images[-1]["id"], 5, box, "only_crowd_in_image", USE, iscrowd=1)
    w.image("emptied.jpg", "no_legible_box_left", REPAIR, save_jpeg, objects=[], acceptable=[USE])
    w.object(w.images[-1]["id"], 5, [10, 10, 0, 10], "zero_width", SKIP)


def _files(w: _Writer, categories: list) -> dict[str, tuple[str, bytes]]:
    """Whole files that must be refused: {name: (defect, content)}."""
    images = [entry for entry in w.images if entry["file_name"] in ("plain.jpg", "tall.png")][:2]
    ids = [entry["id"] for entry in images]
    base = {"images": images, "categories": categories}
    base["annotations"] = [a for a in w.annotations if a.get("image_id") in ids]

    def changed(change) -> bytes:
        content = copy.deepcopy(base)
        change(content)
        return json.dumps(content).encode()

    def each(**values):
        return lambda c: [a.update(values) for a in c["annotations"]]

    def corners(c):
        for entry in c["annotations"]:
            x, y, width, height = entry["bbox"]
            entry["bbox"] = [x, y, x + width, y + height]

    def shares(c):
        for entry in c["annotations"]:
            entry["bbox"] = [v / 200 for v in entry["bbox"]]

    files = {
        "cut_off": json.dumps(base).encode()[:300],
        "zero_bytes": b"",
        "utf_16": json.dumps(base).encode("utf-16"),
        "nested_without_end": b"[" * 50_000,
        "results_list": b'[{"image_id": 1, "category_id": 5, "bbox": [1, 2, 3, 4], "score": 1}]',
        "image_id_twice": changed(lambda c: c["images"][1].update(id=c["images"][0]["id"])),
        "category_id_twice": changed(lambda c: c["categories"][1].update(id=5)),
        "category_name_twice": changed(lambda c: c["categories"][1].update(name="bar")),
        "categories_are_an_object": changed(lambda c: c.update(categories={"5": "bar"})),
        "no_categories": changed(lambda c: c.update(categories=[])),
        "no_images": changed(lambda c: c.update(images=[])),
        "all_categories_unknown": changed(each(category_id=77)),
        "all_boxes_empty": changed(each(bbox=[5, 5, 0, 0])),
        "all_boxes_fractions": changed(shares),
        "all_boxes_corners": changed(corners),
        "all_files_missing": changed(
            lambda c: [i.update(file_name="x/" + i["file_name"]) for i in c["images"]]
        ),
        "path_leaves_the_folder": changed(lambda c: c["images"][0].update(file_name="../m.jpg")),
    }
    for part in ("images", "annotations", "categories"):
        files[f"no_{part}_key"] = changed(lambda c, part=part: c.pop(part))
    return files


def write_messy_set(folder: Path, seed: int = 0) -> Path:
    """Write the whole set into a folder that does not exist yet."""
    w = _Writer(folder, seed)
    _list_images(w)
    _list_objects(w)
    categories = [{"id": i, "name": name} for i, name in CLASSES.items()]
    annotations = folder / "annotations"
    (annotations / "refuse").mkdir(parents=True)

    def write(name: str, images: list, entries: list) -> None:
        content = {"images": images, "annotations": entries, "categories": categories}
        (annotations / name).write_text(json.dumps(content))

    write("messy.json", w.images, w.annotations)
    write("expected.json", w.kept_images, w.kept)
    files = []
    for defect, content in _files(w, categories).items():
        (annotations / "refuse" / f"{defect}.json").write_bytes(content)
        files.append({"file": f"annotations/refuse/{defect}.json", "defect": defect})
    manifest = {
        "images": w.image_notes,
        "annotations": w.annotation_notes,
        "files": [file | {"expected": REFUSE, "acceptable": [REFUSE]} for file in files],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
