"""Using a detector: `gfl.load(...)` and `.predict(...)`."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from gfl import build
from gfl.analysis.temperature import stored_temperature
from gfl.config import parse_config
from gfl.conversion import open_checkpoint, restored_network
from gfl.data.batch import collate, padded_size
from gfl.data.dataset import Sample
from gfl.data.image import pil_to_rgb, read_image
from gfl.data.sampler import SampleKey
from gfl.data.transforms import Transform
from gfl.detections import DEFAULT_THRESHOLD, Detections
from gfl.distributed import local_device
from gfl.engine.compiled_inference import compiled_inference
from gfl.engine.memory import explained
from gfl.errors import UserError
from gfl.interop.exported import ExportedForm
from gfl.interop.onnx_network import OnnxNetwork
from gfl.models.folding import cast_convolutions, folded, folded_blocks
from gfl.structures import Batch
from gfl.tiling import Tiling, merge

ADVICE = "batch_size (predict --batch-size), or the test size (data.test_size, --size)"
NO_BOXES = np.zeros((0, 4), np.float32)


def load(
    checkpoint: str | Path,
    device: str | None = None,
    half: bool = False,
    compile: bool | str = False,
    fuse: bool = True,
) -> "Detector":
    """Make a detector of a file.

    Args:
        checkpoint: best.pt or last.pt of a training, a public .pth of mmdetection, GFocal or
            GFocalV2 (read without running what it contains), or an .onnx that `gfl.export` wrote.
        device: "cpu", "cuda" or "cuda:N"; default: a GPU where there is one.
        half: compute the network in half precision (fp16 on a GPU, bf16 on a CPU); boxes are
            decoded in float32 all the same.
        compile: True lets torch.compile make kernels for it; pays for many images. "fixed" makes
            them for each size of images by itself, on CUDA as graphs (docs/speed.md).
        fuse: fold batch-norm into the convolutions before it; changes outputs by rounding only.

    Raises:
        UserError: the file is missing, damaged, unsafe or of another kind, or there is no such
            device.
    """
    if Path(checkpoint).suffix == ".onnx":
        if half or compile:
            raise UserError(f"{checkpoint}: half is chosen at export, compile is not for .onnx.")
        return OnnxDetector(checkpoint, device)
    content = open_checkpoint(checkpoint)
    return detector_of(content, str(checkpoint), device, half, compile, fuse)


def detector_of(content: dict, name: str, *options, **named) -> "Detector":
    """The detector of an opened checkpoint; `name` is for messages, the rest are `Detector`'s."""
    config = parse_config(content["config"], name)
    names = tuple(content["class_map"]["names"])
    model = restored_network(content, config, name)
    ids = tuple(content["class_map"]["category_ids"])
    detector = Detector(model, config, names, ids, *options, **named)
    detector.recommend(content.get("thresholds"))
    detector.temperature = stored_temperature(content, name)
    return detector


class Detector:
    """A network with everything around it: images in, `Detections` out.

    Attributes:
        class_names: name of each label.
        category_ids: the training data's own id of each label.
        config: what it was trained with.
        thresholds: recommended score of each class, or ().
        temperature: what `edge_std` is multiplied by; 1 unless one was stored in the checkpoint.
        device: where it computes.
    """

    def __init__(
        self,
        model: nn.Module,
        config,
        class_names: tuple[str, ...],
        category_ids: tuple[int, ...],
        device: str | None = None,
        half: bool = False,
        compile: bool | str = False,
        fuse: bool = True,
    ):
        self._describe(config, class_names, category_ids)
        self.device = local_device(device)
        model = model.eval().requires_grad_(False)
        if fuse:
            model.backbone = folded(model.backbone)
            model.neck, model.head = folded_blocks(model.neck), folded_blocks(model.head)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        if compile:
            self.model.tensors = compiled_inference(self.model.tensors, self.device, compile)
        if half:
            kind = torch.float16 if self.device.type == "cuda" else torch.bfloat16
            cast_convolutions(self.model, kind)
            self.model.tensors = torch.autocast(self.device.type, kind)(self.model.tensors)
        self.normalize = build.build_normalize(config, self.device)

    def _describe(self, config, class_names: tuple[str, ...], category_ids: tuple[int, ...]):
        self.thresholds: tuple[float, ...] = ()
        self.temperature = 1.0
        self.config, self.class_names, self.category_ids = config, class_names, category_ids
        size = config.data.test_size
        self._short, self._transform = size.short_range[1], Transform(size.long)

    def __repr__(self) -> str:
        names = ", ".join(self.class_names[:3]) + (", ..." if self.class_names[3:] else "")
        backbone = self.config.model.backbone.name
        return f"{type(self).__name__}({backbone}, {self.device}, classes: {names})"

    def recommend(self, thresholds: list[float | None] | None) -> None:
        """Take the recommended score of each class, as a checkpoint holds them."""
        known = thresholds or ()
        self.thresholds = tuple(DEFAULT_THRESHOLD if t is None else t for t in known)

    def predict(
        self,
        images,
        batch_size: int = 8,
        score_threshold: float | None = None,
        distributions: bool = False,
    ) -> list[Detections]:
        """Find objects.

        Args:
            images: a path, a PIL image, an (H, W, 3) uint8 RGB array, or any iterable of those.
            batch_size: images computed together; images of different padded sizes never are, so
                that the outcome depends on it by rounding only.
            score_threshold: default, the config's `postprocess.score_threshold`.
            distributions: give each detection's side distributions too.

        Returns:
            One `Detections` an image, on the CPU, boxes in pixels of the upright image.

        Raises:
            UserError: something is no image.
        """
        return list(self.stream(images, batch_size, score_threshold, distributions))

    @torch.inference_mode()
    def stream(
        self,
        images,
        batch_size: int = 8,
        score_threshold: float | None = None,
        distributions: bool = False,
    ) -> Iterator[Detections]:
        """`predict`, one `Detections` at a time, for more images than memory holds."""
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise UserError(f"batch_size is {batch_size!r}, expected a whole number from 1 on.")
        postprocess = build.build_postprocess(self.config, distributions)
        if score_threshold is not None:
            if not isinstance(score_threshold, Real) or not 0 <= score_threshold <= 1:
                raise UserError(f"score_threshold is {score_threshold!r}, expected 0 to 1.")
            postprocess.score_threshold = score_threshold
        images = iter(_as_iterable(images))
        first = 0
        while chunk := list(itertools.islice(images, batch_size)):
            items = [self._item(image, first + n) for n, image in enumerate(chunk)]
            first += len(chunk)
            found: dict[int, Detections] = {}
            for group in _by_padded_size(items):
                numbers = [meta.image_id for _, meta in group]
                found.update(zip(numbers, self._detect(group, postprocess), strict=True))
            yield from (found[meta.image_id] for _, meta in items)

    def predict_tiled(
        self,
        image,
        tile: int | None = None,
        overlap: float | None = None,
        batch_size: int = 8,
        score_threshold: float | None = None,
        distributions: bool = False,
        whole: bool | None = None,
    ) -> Detections:
        """Find small objects in a large image, piece by piece.

        What is None is that of the training (`data.tiles`), else 1024, 0.25 and True.

        Args:
            image: as one of `predict`'s.
            tile: side of a piece, pixels of the image; each is seen at the network's test size.
            overlap: share of the side that neighbours have in common; objects up to that size are
                whole in some piece.
            whole: look at the whole image, resized, too.

        Returns:
            Detections of the whole image, no object twice.
        """
        tiling = Tiling.chosen(self.config.data.tiles, tile, overlap, whole)
        image = as_rgb(image)
        size = image.shape[:2]
        places = tiling.places(size)
        pieces = (image[y1:y2, x1:x2] for x1, y1, x2, y2 in places)
        options = self.config.postprocess
        parts = self.predict(pieces, batch_size, score_threshold, distributions)
        return merge(parts, places, size, options.nms_iou, options.max_per_image)

    def _item(self, image, number: int):
        sample = Sample(as_rgb(image), NO_BOXES, np.zeros(0, np.int64), NO_BOXES, number)
        return self._transform(sample, SampleKey(number, 0, self._short))

    def _detect(self, items: list, postprocess) -> list[Detections]:
        batch = collate(items)
        with explained([batch], ADVICE, UserError):
            computed = self._compute(batch, postprocess)
        return [
            replace(
                found.widened(self.temperature),
                names=self.class_names,
                category_ids=self.category_ids,
                thresholds=self.thresholds,
            )
            for found in computed
        ]

    def _compute(self, batch: Batch, postprocess) -> list[Detections]:
        batch = batch.to(self.device, non_blocking=True)
        images = self.normalize(batch.images, batch.input_sizes)
        images = images.contiguous(memory_format=torch.channels_last)
        return postprocess(self.model(images), batch.metas, device="cpu")


class OnnxDetector(Detector):
    """A `Detector` whose network is an .onnx file of `gfl.export`, run by onnxruntime.

    Attributes:
        metadata: what the file says about itself.
    """

    def __init__(self, path: str | Path, device: str | None = None):
        self._network = OnnxNetwork(path, device)
        self.device = torch.device(self._network.device)
        self.metadata = metadata = self._network.metadata
        self._form = ExportedForm.of(metadata)
        names, ids = tuple(metadata["class_names"]), tuple(metadata["category_ids"])
        self._describe(parse_config(metadata["config"], str(path)), names, ids)
        self.recommend(metadata["thresholds"].get("per_class"))
        self.temperature = stored_temperature(metadata, str(path))

    def _compute(self, batch: Batch, postprocess) -> list[Detections]:
        outputs = self._network(batch.images, batch.input_sizes)
        size = tuple(batch.images.shape[-2:])
        return self._form.detections(outputs, size, postprocess, batch.metas)


def as_rgb(image) -> np.ndarray:
    """A path, PIL image or array as (H, W, 3) uint8 RGB, upright.

    Raises:
        UserError: it is something else.
    """
    if isinstance(image, str | Path):
        return read_image(str(image))
    if isinstance(image, Image.Image):
        return pil_to_rgb(image)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        if image.ndim == 3 and image.shape[2] == 3 and image.size:
            return image
    shape = getattr(image, "shape", None)
    raise UserError(
        f"an image is a {type(image).__name__}"
        + (f" of shape {tuple(shape)}, {image.dtype}" if shape is not None else "")
        + "; expected a path, a PIL image or an (H, W, 3) uint8 RGB array."
    )


def _as_iterable(images) -> Iterable:
    one = isinstance(images, str | Path | np.ndarray | Image.Image)
    if not one and not isinstance(images, Iterable):
        as_rgb(images)  # says what is wrong
    return [images] if one else images


def _by_padded_size(items: list) -> list[list]:
    groups: dict[tuple[int, int], list] = {}
    for item in items:
        groups.setdefault(padded_size(item[1].input_size), []).append(item)
    return list(groups.values())
