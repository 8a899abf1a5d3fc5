"""What a training says before its first step."""

import os

import torch
from torch import nn

import gfl
from gfl import build
from gfl.build.augment import augment_line, repeat_line
from gfl.data.batch import padded_size
from gfl.data.overlap import shared_line
from gfl.data.picture_cache import CachedDataset
from gfl.data.shared_memory import shortage
from gfl.distributed import world_size
from gfl.engine.checkpoint import TrainState
from gfl.engine.optim import describe_rates
from gfl.schema import Config


def opening_lines(
    config: Config, device: torch.device, train_data, val_data, state: TrainState
) -> list[str]:
    """Versions, classes, data, size of the model, batch and learning rate."""
    train = config.train
    lines = [f"gfl {gfl.__version__}, torch {torch.__version__}, {_where(device)}"]
    ids = zip(train_data.category_ids, train_data.class_names, strict=True)
    mapping = ", ".join(f"{i} -> {n} {name}" for n, (i, name) in enumerate(ids))
    count = len(train_data.class_names)
    lines.append(f"{count} classes (category id -> label): {mapping}")
    if train.schedule == "multistep" and min(train.milestones, default=1) >= train.epochs:
        lines.append(
            f"train.milestones {train.milestones} lie beyond the last epoch: lr never drops"
        )
    total = state.schedule.total_steps
    if train.warmup_steps >= total:
        lines.append(
            f"train.warmup_steps {train.warmup_steps} is longer than the whole training of {total} "
            "steps: lr stays below its value"
        )
    for split, dataset in (("train", train_data), ("val", val_data)):
        report = getattr(dataset, "report", {"images": len(dataset)})
        counts = ", ".join(f"{number} {what}" for what, number in report.items())
        lines.append(f"{split}: {counts}")
        warnings = build.data_warnings(config, dataset, state.model.neck.strides)
        lines += [f"{split}: {line}" for line in warnings]
    shared = None if config.data.overfit is not None else shared_line(train_data, val_data)
    lines += [f"WARNING: {shared}"] if shared else []
    lines.append(augment_line(config, train_data))
    if config.data.repeat_factor is not None:
        lines.append(repeat_line(config, train_data))
    parameters = list(state.model.parameters())
    size = sum(p.numel() for p in parameters) / 1e6
    trained = sum(p.numel() for p in parameters if p.requires_grad) / 1e6
    rates = describe_rates(state.optimizer)
    lines.append(f"model: {size:.2f} million parameters, {trained:.2f} million train{rates}")
    backbone = config.model.backbone
    random = [
        name
        for name in train.freeze
        if config.init_from is None
        and (backbone.pretrained is False or name.split(".")[0] != "backbone")
    ]
    if random:
        lines.append(
            f"WARNING: train.freeze keeps {', '.join(random)} at random weights: set init_from or "
            "model.backbone.pretrained"
        )
    lines += _idle_rates(config, state.model)
    part = train.batch_size // world_size() // train.accumulate
    lines.append(
        f"batch: {train.batch_size} = {world_size()} processes x {train.accumulate} parts x "
        f"{part} images; lr {train.lr:g} for {train.lr_batch_size or train.batch_size} images "
        f"-> {state.schedule.lr:g}"
    )
    return lines


def _idle_rates(config: Config, model: nn.Module) -> list[str]:
    """Which learning rates are stated for modules that do not train."""
    train = config.train
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    stated = [(name, f"train.lr_factors of {name}") for name in train.lr_factors]
    if train.layer_decay is not None:
        stated.append(("backbone", "train.layer_decay"))
    idle = [
        key for module, key in stated if not any(name.startswith(module + ".") for name in trained)
    ]
    return [f"WARNING: {', '.join(idle)} changes nothing, since it is frozen"] if idle else []


def _where(device: torch.device) -> str:
    """How many processes compute, and on what."""
    count = world_size()
    one = count == 1
    if device.type == "cpu":
        threads = torch.get_num_threads()
        place = f"on the CPU, {threads} thread{'s' * (threads > 1)}" + ("" if one else " each")
    else:
        name = torch.cuda.get_device_name(device)
        place = f"on {device} ({name})" if one else f"each on a GPU, the first on {device} ({name})"
    return f"1 process {place}" if one else f"{count} processes {place}"


def memory_lines(config: Config, loader) -> list[str]:
    """Where pictures are kept; a warning where batches would not have room in shared memory."""
    size, train = config.data.train_size, config.train
    largest = padded_size((size.short_range[1], size.long))
    if loader.dataset.transform.on_device:
        height, width = loader.dataset.dataset.sizes.max(0).tolist()
        largest = (height, width)
    text = shortage(
        train.batch_size // world_size() // train.accumulate,
        largest,
        loader.num_workers,
        loader.prefetch_factor,
        int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )
    data = loader.dataset.dataset
    data = getattr(data, "source", data)  # that of tiles
    told = [data.cache.description] if isinstance(data, CachedDataset) else []
    return [*told, text] if text else told
