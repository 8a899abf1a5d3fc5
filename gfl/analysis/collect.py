"""One pass of a checkpoint over a split: everything that the statistics need."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pycocotools.coco import COCO
from tqdm import tqdm

from gfl import build
from gfl.analysis.edge_blur import read_edge_blur
from gfl.analysis.matched import MatchedSplit, match_split
from gfl.analysis.quality import QualitySamples, QualityWatch
from gfl.automatic import choose_layout
from gfl.config import Config, merge_overrides, parse_config
from gfl.conversion import open_checkpoint
from gfl.data.coco_truth import coco_of
from gfl.engine.evaluate import detect
from gfl.errors import UserError
from gfl.predictor import detector_of


@dataclass(frozen=True)
class Collected:
    """A checkpoint on a split.

    Attributes:
        config: of the checkpoint, with the overrides.
        weights: what is said about the weights, such as "ema weights of epoch 12".
        temperature: stored in the checkpoint; the detections are those without it.
        split: what was found beside what is there.
        quality: of a model with a quality output apart from its class scores, else None.
        dataset: the samples, for pictures.
    """

    config: Config
    weights: str
    temperature: float
    split: MatchedSplit
    quality: QualitySamples | None
    dataset: object


class FirstImages:
    """The first images of a data set."""

    def __init__(self, dataset, count: int):
        self._whole, self._count = dataset, min(count, len(dataset))
        self.class_names, self.category_ids = dataset.class_names, dataset.category_ids
        self.origins = getattr(dataset, "origins", ())
        self.sizes, self.image_ids = dataset.sizes[:count], dataset.image_ids[:count]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int):
        if not 0 <= index < self._count:
            raise IndexError(f"image {index} of {self._count}")
        return self._whole[index]

    def files_of(self, image_id: int) -> list[str]:
        return self._whole.files_of(image_id)

    def ground_truth(self) -> COCO:
        whole, kept = self._whole.ground_truth(), set(self.image_ids.tolist())
        content = {
            **whole.dataset,
            "images": [i for i in whole.dataset["images"] if i["id"] in kept],
            "annotations": [a for a in whole.dataset["annotations"] if a["image_id"] in kept],
        }
        return coco_of(content)


def collect(
    checkpoint: str | Path,
    overrides: list[str],
    split: str,
    images: int | None = None,
    say: Callable[[str], None] = print,
    outputs: Sequence[str | None] = (),
) -> Collected:
    """Detect on a split with the network as it is evaluated, and match.

    Args:
        checkpoint: ours or a public .pth.
        overrides: "key=value" changes of its config.
        split: "train", "val" or "test".
        images: how many at most; None for all.
        say: takes messages.
        outputs: files that will be written.

    Raises:
        UserError: as `gfl.evaluate`.
    """
    content = open_checkpoint(checkpoint)
    config = parse_config(merge_overrides(content["config"], overrides), str(checkpoint))
    config.data.spare(*outputs)
    _require_whole_pictures(config, checkpoint)
    content["config"] = choose_layout(config)[0].to_dict()
    # Not fused: the numbers are those of `gfl.evaluate`, to the rounding of the memory layout.
    detector = detector_of(content, str(checkpoint), config.device, fuse=False)
    dataset = build.build_dataset(detector.config, split, detector.class_names)
    dataset.require_distinct_image_ids()
    weights = f"{'ema' if content.get('ema') else content['weights']} weights"
    weights += f" of epoch {content['epoch']:g}"
    say(f"{checkpoint}: {weights}, split {split}")
    for line in build.finding_lines(dataset):
        say(f"{split}: {line}")
    if images is not None:
        dataset = FirstImages(dataset, images)
    truth = dataset.ground_truth()
    watch = QualityWatch(build.build_postprocess(detector.config, distributions=True), truth)
    loader = build.build_eval_loader(detector.config, dataset)
    bar = tqdm(loader, unit="batch", desc=split)
    found, _ = detect(detector.model, bar, watch, detector.normalize)
    matched = match_split(
        truth,
        found,
        detector.class_names,
        dataset.category_ids,
        detector.config.postprocess.max_per_image,
        read_edge_blur(dataset.origins),
    )
    is_normal = detector.config.model.box == "gaussian"
    return Collected(
        config=detector.config,
        weights=weights,
        temperature=detector.temperature,
        split=replace(matched, records=replace(matched.records, is_normal=is_normal)),
        quality=watch.samples(),
        dataset=dataset,
    )


def _require_whole_pictures(config: Config, checkpoint: str | Path) -> None:
    if config.data.tiles is not None:
        raise UserError(
            f"{checkpoint} was trained on tiles (data.tiles), but analyze judges what the network "
            "says of whole pictures. data.tiles=null looks at these; gfl test judges with tiles."
        )
