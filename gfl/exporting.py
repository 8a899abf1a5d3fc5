"""`gfl.export`: a checkpoint to an .onnx or .pt2 file that was seen to compute the same."""

import copy
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from gfl.build import build_postprocess
from gfl.conversion import open_checkpoint
from gfl.data.batch import PAD_MULTIPLE, collate
from gfl.data.dataset import Sample
from gfl.data.image import read_image
from gfl.data.sampler import SampleKey
from gfl.data.transforms import Transform
from gfl.errors import ExportFailed, UserError, choose
from gfl.files import replacing
from gfl.interop.agreement import Differences, Tolerance
from gfl.interop.export_forms import FORMS, halve
from gfl.interop.export_metadata import describe, output_shapes
from gfl.interop.exported import ExportedForm
from gfl.interop.onnx_file import OPSET, write_onnx
from gfl.interop.onnx_network import OnnxNetwork, require
from gfl.predictor import NO_BOXES, Detector, detector_of
from gfl.structures import Batch

# With half precision: float16 keeps 11 bits of each activation.
HALF = Tolerance(box=4.0, score=0.02, decision=0.02, iou=0.9)

# torch.export takes it that no level of the pyramid has a side of 1.
SMALLEST_PT2 = 160


def export(
    checkpoint: str | Path,
    out: str | Path,
    form: str = "decoded",
    half: bool = False,
    image: str | Path | None = None,
    tolerance: tuple[float, float] | None = None,
    opset: int | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> dict:
    """Write a detector for use without gfl, and compare the file with PyTorch.

    Args:
        checkpoint: ours or a public .pth, as for `gfl.load`.
        out: file to write; .onnx, or .pt2 for a program of torch.export.
        form: "raw", "decoded" or "nms": where the network ends, see `gfl.interop.export_forms`.
        half: weights and convolutions in float16; inputs, norms, boxes and outputs stay float32.
        image: picture to compare on; default: a drawn one.
        tolerance: largest difference in pixels and in scores; default 0.05 and 0.0001, with
            `half` that of `HALF`.
        opset: of ONNX, default `OPSET`.
        say: is told what goes on.

    Returns:
        What was written and how far it is from PyTorch, as plain values.

    Raises:
        UserError: a file, form or package that is not there.
        ExportFailed: the file computes something else; it is not kept.
    """
    path = Path(out)
    is_onnx = path.suffix == ".onnx"
    _check_request(path, form, opset)
    limits = _limits(half, tolerance)
    picture = drawn_picture() if image is None else read_image(str(image))
    content = open_checkpoint(checkpoint)
    detector = detector_of(content, str(checkpoint), "cpu")
    _check_form(detector, form)
    _check_opset(detector, opset)
    batches = comparison_batches(detector, picture, PAD_MULTIPLE if is_onnx else SMALLEST_PT2)

    try:
        with replacing(path) as temporary:
            say(f"exporting {checkpoint} as {form}")
            version = (opset or OPSET) if is_onnx else None
            metadata = describe(content, detector, form, half, version)
            _write(temporary, detector, metadata)
            say("comparing with PyTorch")
            network, runtime = open_exported(temporary, form)
            found = compare(network, detector, form, batches, limits)
            about = str(image or "a drawn picture")
            report = _report(metadata, runtime, about, batches, found, limits)
            if not found.within(limits):
                row = _row(report)
                raise ExportFailed(f"{path} is not written, it differs from PyTorch: {row}")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    _warn_of_weak_comparison(found, limits, say)
    return report


def _check_request(path: Path, form: str, opset: int | None) -> None:
    """Refuse what can be refused before anything is read."""
    is_onnx = path.suffix == ".onnx"
    choose("form", form, FORMS)
    if path.suffix not in (".onnx", ".pt2"):
        raise UserError(f"--out is {path}: expected a name ending in .onnx or .pt2.")
    if not os.path.isdir(path.resolve().parent) or os.path.isdir(path):
        raise UserError(f"cannot write {path}: its folder does not exist, or it is one itself.")
    if opset is not None and (opset < 18 or not is_onnx):
        raise UserError(f"opset is {opset}: expected 18 or more, and an .onnx file.")
    if is_onnx:
        require("onnx", "onnxscript", "onnxruntime")
        from onnx.defs import onnx_opset_version

        if (opset or OPSET) > (newest := onnx_opset_version()):
            raise UserError(f"opset is {opset or OPSET}, the installed onnx knows up to {newest}.")


def _limits(half: bool, tolerance: tuple[float, float] | None) -> Tolerance:
    limits = HALF if half else Tolerance()
    if tolerance is None:
        return limits
    if not all(0 <= value < math.inf for value in tolerance):
        raise UserError(f"tolerance is {tuple(tolerance)}, expected pixels and a score from 0 on.")
    return replace(limits, box=tolerance[0], score=tolerance[1])


def _check_form(detector: Detector, form: str) -> None:
    """The raw form is read back as logits of bins, which a general box alone has."""
    box = detector.config.model.box
    if form == "raw" and box in ("dirac", "gaussian"):
        raise UserError(
            f"the form raw holds the distributions of model.box: general, but the detector's box "
            f"is {box}: export with --form decoded or nms."
        )


def _check_opset(detector: Detector, opset: int | None) -> None:
    if opset is not None and opset < 19 and detector.config.model.backbone.deformable_stages:
        raise UserError(f"opset {opset} has no deformable convolutions: expected 19 or more.")


def _write(path: Path, detector: Detector, metadata: dict) -> None:
    """The file of the form that `metadata` describes."""
    form = metadata["form"]
    program = export_program(detector, form, metadata["half"])
    if path.suffix == ".onnx":
        shapes = output_shapes(detector, form)
        write_onnx(program, path, shapes, metadata, metadata["opset"])
    else:
        torch.export.save(program, path, extra_files={"gfl.json": json.dumps(metadata)})


def _report(metadata: dict, runtime: str, image: str, batches, found, limits) -> dict:
    """What was written and how far it is from PyTorch, as plain values."""
    return {
        **{key: metadata[key] for key in ("form", "half", "inputs", "outputs")},
        "opset": metadata["opset"],
        "runtime": runtime,
        "image": image,
        "runs": [
            dict(zip(("batch", "height", "width"), b.images[:, 0].shape, strict=True))
            for b in batches
        ],
        "largest_difference": found.largest,
        "detections": {"same": found.same, "near": found.near, "wrong": found.wrong},
        "tolerance": asdict(limits),
    }


def _warn_of_weak_comparison(found: Differences, limits: Tolerance, say) -> None:
    if not found.same:
        say("warning: nothing was detected, so no suppression was compared: give --image")
    if found.near > found.same / 10:
        say(
            f"warning: {found.near} detections hang on ties or on limits within "
            f"{limits.decision:g}, {found.same} agree: the comparison says little of suppression"
        )


def _row(report: dict) -> str:
    differences = {key: round(gap, 6) for key, gap in report["largest_difference"].items()}
    return (
        f"largest differences {json.dumps(differences)}, detections "
        f"{json.dumps(report['detections'])}, tolerance {json.dumps(report['tolerance'])}."
    )


def make_form(detector: Detector, form: str, half: bool = False):
    """The module of a form around a detector's network; with `half` around a copy of it."""
    model = detector.model
    if half:
        model = copy.deepcopy(model)
        halve(model)
    return FORMS[form](model, detector.normalize, build_postprocess(detector.config)).eval()


def export_program(detector: Detector, form: str, half: bool) -> torch.export.ExportedProgram:
    """torch.export's program of a form, batch and image size free."""
    # No level of the example has a side of 1, which would be taken as fixed.
    images, sizes = torch.zeros(2, 3, 288, 320), torch.tensor([[280, 320], [288, 310]])
    batch = torch.export.Dim("batch", min=1)
    rows, columns = (torch.export.Dim(name, min=1, max=1024) for name in ("rows", "columns"))
    free = {
        "images": {0: batch, 2: PAD_MULTIPLE * rows, 3: PAD_MULTIPLE * columns},
        "input_sizes": {0: batch},
    }
    with torch.no_grad():
        return torch.export.export(
            make_form(detector, form, half), (images, sizes), dynamic_shapes=free
        )


def open_exported(path: Path, form: str):
    """A function (images, input_sizes) to outputs by name, and who computes it."""
    if path.suffix == ".onnx":
        import onnxruntime

        return OnnxNetwork(path, "cpu"), f"onnxruntime {onnxruntime.__version__}"
    module = torch.export.load(path).module()

    def network(images, input_sizes):
        return dict(zip(FORMS[form].outputs, module(images, input_sizes), strict=True))

    return network, f"torch.export.load of torch {torch.__version__}"


@torch.no_grad()
def compare(network, detector: Detector, form: str, batches: list[Batch], limits) -> Differences:
    """Run the exported network and PyTorch on batches: all outputs, then the detections."""
    found = Differences()
    postprocess = build_postprocess(detector.config)
    everything = copy.copy(postprocess)
    everything.nms_iou, everything.max_per_image = 1.0, None  # suppress and cut nothing
    original = make_form(detector, form)
    model = detector.model
    exported = ExportedForm(
        form,
        model.neck.strides,
        model.grid_origin,
        postprocess.score_threshold,
        model.head.anchors_per_cell,
    )
    for batch in batches:
        outputs = network(batch.images.float(), batch.input_sizes)
        if form != "nms":  # where rows have the same meaning
            wanted = original(batch.images.float(), batch.input_sizes)
            for name, value in zip(original.outputs, wanted, strict=True):
                found.add(name, outputs[name], value)
        images = detector.normalize(batch.images, batch.input_sizes)
        predictions = detector.model(images)
        wanted = postprocess(predictions, batch.metas, rescale=False)
        candidates = everything(predictions, batch.metas, rescale=False)
        size = tuple(batch.images.shape[-2:])
        got = exported.detections(outputs, size, postprocess, batch.metas, rescale=False)
        for one, other, chosen_from in zip(got, wanted, candidates, strict=True):
            found.add_detections(one, other, postprocess, limits, chosen_from)
    return found


def comparison_batches(detector: Detector, picture: np.ndarray, smallest: int) -> list[Batch]:
    """The picture at the test size and at about half of it, each alone and beside a part of it.

    The part has another shape, so that padding is compared too. Sides are padded to `smallest`.
    """
    part = picture[:, : max(picture.shape[1] * 2 // 3, 1)]
    size = detector.config.data.test_size
    batches = []
    for divisor in (1, 2):
        short, transform = size.short_range[1] // divisor, Transform(size.long // divisor)
        items = [
            transform(Sample(image, NO_BOXES, np.zeros(0, np.int64), NO_BOXES, number), key)
            for number, image in enumerate((picture, part))
            for key in [SampleKey(number, 0, short)]
        ]
        batches += [collate(items[:1]), collate(items)]
    return [_padded(batch, smallest) for batch in batches]


def _padded(batch: Batch, smallest: int) -> Batch:
    height, width = batch.images.shape[-2:]
    border = (0, max(smallest - width, 0), 0, max(smallest - height, 0))
    return replace(batch, images=F.pad(batch.images, border))


def drawn_picture(height: int = 480, width: int = 640) -> np.ndarray:
    """Discs and rectangles on a ground of noise: (height, width, 3) uint8, always the same."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for number in range(24):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        w, h = (int(side) for side in rng.integers(8, 120, 2))
        colour = rng.integers(0, 256, 3).tolist()
        if number % 2:
            cv2.rectangle(picture, (x, y), (x + w, y + h), colour, cv2.FILLED)
        else:
            cv2.ellipse(picture, (x, y), (w, h), 0, 0, 360, colour, cv2.FILLED, cv2.LINE_AA)
    return picture
