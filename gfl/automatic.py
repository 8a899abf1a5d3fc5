"""Values that a config leaves to the data: what is chosen where it says `auto`, and why.

Two steps, since the second needs the data set that the first makes readable. Both leave stated
values alone, and are decided by the first process for all. docs/auto.md has the rules.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from gfl import build
from gfl.build.augment import images_of_epoch
from gfl.build.data import UNBOUNDED_BOXES, count_listed, has_split
from gfl.config import Config, parse_config
from gfl.conversion import open_checkpoint
from gfl.data.batch import padded_size
from gfl.data.fitting import fitting_reg_max, fitting_side, fitting_val_fraction
from gfl.data.layout import find_format
from gfl.distributed import done_by_main, gather_objects, world_size
from gfl.engine.budget import fitting_batch, fitting_epochs
from gfl.engine.footprint import image_bytes, weight_bytes
from gfl.engine.free_memory import room_for_images
from gfl.engine.precision import fitting_precision
from gfl.errors import UserError

# The schema's own, where nothing else decides it.
REG_MAX = 16


class Choice(NamedTuple):
    """A value that was auto.

    Attributes:
        key: dotted.
        value: plain, as it goes to YAML.
        reason: in words.
    """

    key: str
    value: object
    reason: str

    @property
    def shown(self) -> str:
        """The value as one types it."""
        if isinstance(self.value, dict):
            return "{" + ", ".join(f"{key}: {side}" for key, side in self.value.items()) + "}"
        return "null" if self.value is None else str(self.value)

    def __str__(self) -> str:
        return f"auto: {self.key}={self.shown}: {self.reason}"


Choices = tuple[Config, list[Choice]]


def choose_all(config: Config, known: dict | None, train_data, device: torch.device) -> tuple:
    """Both steps, with the reading of the training data between them.

    Args:
        config: may say auto.
        known: the config of a checkpoint that is gone on from, whose values are kept.
        train_data: the training set, None for the config's own.
        device: of this process.

    Returns:
        The config without auto, the training set (its tiles with `data.tiles`), and the list of
        `Choice`.

    Raises:
        UserError: on every process alike.
    """
    config, first = choose_layout(config, known, has_data=train_data is not None)
    if train_data is None:
        train_data = build.build_dataset(config, "train")
    train_data = build.build_tiles(config, train_data)
    config, second = choose_sizes(config, train_data, device)
    return config, train_data, first + second


def choose_layout(config: Config, known: dict | None = None, has_data: bool = False) -> Choices:
    """Choose `data.format` and `data.val_fraction`; with a checkpoint, everything.

    Args:
        config: may say auto.
        known: the config of a checkpoint that is gone on from, whose values are kept.
        has_data: whether the training set is an object of the caller's.
    """
    keys = config.auto_keys
    if not keys:
        return config, []
    if known is not None:
        kept = {key: _value(known, key) for key in keys}
        reason = "that of the checkpoint"
        return _with(config, [Choice(key, value, reason) for key, value in kept.items()])

    def decide() -> list[Choice]:
        found = []
        if "data.format" in keys:
            found.append(_format(config, has_data))
        if "data.val_fraction" in keys:
            found.append(_val_fraction(_with(config, found)[0], has_data))
        return found

    return _with(config, done_by_main(decide))


def choose_sizes(config: Config, dataset, device: torch.device) -> Choices:
    """Choose sizes of pictures, reg_max, batch and epochs for a training set; and the precision.

    Args:
        config: as `choose_layout` gives it.
        dataset: the training set; of one without `sizes` and `objects()` nothing can be chosen.
        device: of this process.
    """
    keys = config.auto_keys
    if not keys:
        return config, []
    missing = [name for name in ("sizes", "objects") if not hasattr(dataset, name)]
    by_data = [key for key in keys if key != "train.precision"]
    if missing and by_data:
        raise UserError(
            f"{', '.join(by_data)}: auto needs a data set with sizes and objects() (see "
            f"gfl.data.dataset.DetectionDataset), but {type(dataset).__name__} has no "
            f"{' and no '.join(missing)}: state these values."
        )
    network, strides = None, ()
    if {"data.train_size", "model.reg_max", "train.batch_size"} & set(keys):
        network = network_without_content(config, len(dataset.class_names))
        strides = network.neck.strides
    found: list[Choice] = []

    def choose(key: str, rule: Callable[[Config], tuple[object, str]]) -> None:
        if key in keys:
            so_far = _with(config, found)[0]
            found.extend(done_by_main(lambda: [Choice(key, *rule(so_far))]))

    choose("data.train_size", lambda now: _train_size(now, dataset, strides))
    choose("data.test_size", _test_size)
    choose("model.reg_max", lambda now: _reg_max(now, dataset, strides))
    if "train.batch_size" in keys:
        room = min(gather_objects(room_for_images(device, weight_bytes(network))))
        choose("train.batch_size", lambda now: _batch_size(now, dataset, network, room))
    choose("train.epochs", lambda now: _epochs(now, dataset))
    choose("train.precision", lambda now: fitting_precision(device))
    return _with(config, found)


def network_without_content(config: Config, num_classes: int) -> nn.Module:
    """The config's network on the meta device: shapes only. No random number is drawn from it."""
    if "model.reg_max" in config.auto_keys:
        reg_max = max(REG_MAX, config.model.head.quality_top_k - 1)
        config = config.with_values({"model.reg_max": reg_max})
    if config.model.backbone.norm == "sync":  # which refuses to compute on the meta device
        config = config.with_values({"model.backbone.norm": "batch"})
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return build.build_model(config, num_classes, load_pretrained=False)
        except UserError:  # a torchvision or timm network that is cut by what it computes
            return build.build_model(config, num_classes, load_pretrained=False).to("meta")


def _format(config: Config, has_data: bool) -> Choice:
    data = config.data
    if has_data or data.train is not None or data.path is None:
        return Choice("data.format", "coco", "data.path is not what is read")
    name = find_format(Path(data.path))
    return Choice("data.format", name, f"that is what {data.path} holds")


def _val_fraction(config: Config, has_data: bool) -> Choice:
    data = config.data
    if has_data or data.overfit is not None:
        reason = "the data set is given" if has_data else "data.overfit needs none"
        return Choice("data.val_fraction", None, reason)
    if has_split(data, "val"):
        return Choice("data.val_fraction", None, "there is a val")
    return Choice("data.val_fraction", *fitting_val_fraction(count_listed(config, "train")))


def _train_size(config: Config, dataset, strides: tuple[int, ...]) -> tuple[object, str]:
    if config.data.tiles is not None:
        side = config.data.tiles.size
        return {"short": side, "long": side}, "data.tiles.size: tiles as large as they are cut"
    boxes, _, index = dataset.objects()
    largest = config.data.auto_largest
    side, reason = fitting_side(boxes, index, dataset.sizes, strides[0], largest)
    return {"short": side, "long": side}, reason


def _test_size(config: Config) -> tuple[object, str]:
    size = config.data.train_size
    return {"short": size.short_range[1], "long": size.long}, "that of training"


def _reg_max(config: Config, dataset, strides: tuple[int, ...]) -> tuple[object, str]:
    """That of the weights that are loaded; else by the objects."""
    for key, path in (("distill.teacher", config.distill.teacher), ("init_from", config.init_from)):
        if path is not None:
            return _value(open_checkpoint(path)["config"], "model.reg_max"), f"that of {key} {path}"
    if config.model.box in UNBOUNDED_BOXES:
        return REG_MAX, f"sides have no end with model.box {config.model.box}"
    boxes, _, index = dataset.objects()
    size, head = config.data.train_size, config.model.head
    least = head.quality_top_k - 1 if config.model.quality == "distribution_guided" else 0
    return fitting_reg_max(
        boxes,
        dataset.sizes[index],
        (size.short_range[1], size.long),
        strides,
        config.assigner.anchor_scale,
        config.model.bin_width,
        least,
    )


def _batch_size(config: Config, dataset, network: nn.Module, room: float) -> tuple[object, str]:
    size, parts = config.data.train_size, world_size() * config.train.accumulate
    cost = image_bytes(network, padded_size((size.short_range[1], size.long)))
    # A batch norm can not learn from one value a channel: from one square image, where its map of
    # the coarsest level has one place.
    modules = (*network.neck.modules(), *network.head.modules())
    learns = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules)
    has_one_place = padded_size((size.short_range[0],) * 2)[0] <= network.neck.strides[-1]
    least = 2 if learns and has_one_place else 1
    return fitting_batch(images_of_epoch(config, dataset), parts, cost, room, least)


def _epochs(config: Config, dataset) -> tuple[object, str]:
    return fitting_epochs(images_of_epoch(config, dataset), config.train.batch_size)


def _with(config: Config, choices: list[Choice]) -> Choices:
    if not choices:
        return config, choices
    content = config.to_dict()
    for choice in choices:
        section, name = choice.key.split(".")
        content[section][name] = choice.value
        if choice.key == "data.train_size":
            content[section]["auto_largest"] = None  # it has had its effect
    return parse_config(content, "what auto chose"), choices


def _value(values: dict, key: str) -> object:
    section, name = key.split(".")
    return values[section][name]
