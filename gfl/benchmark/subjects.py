"""What is timed: our step and detector, torchvision's, on the same random pictures."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from gfl import build
from gfl.benchmark.setting import NUM_CLASSES, OBJECTS, Setting, detector_config
from gfl.engine.compiled import Programs
from gfl.engine.precision import PRECISIONS
from gfl.engine.train import train_step
from gfl.models.folding import cast_convolutions
from gfl.predictor import Detector
from gfl.structures import Batch, ImageMeta, Targets

RIVALS = {"torchvision FCOS": FCOS, "torchvision RetinaNet": RetinaNet}
# Weights and images of all networks in inference: the faster layout for a forward.
LAYOUT = torch.channels_last


def random_batch(setting: Setting, count: int | None = None) -> Batch:
    """Noise pictures of full size with 7 objects each, on the device.

    Args:
        setting: size and device.
        count: images, default the training batch.
    """
    count = setting.batch if count is None else count
    height, width = setting.size
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=rng)
    full = torch.tensor([width, height], dtype=torch.float32)
    scale = 0.05 + 0.9 * torch.rand(count, OBJECTS, 1, generator=rng).square()
    sides = scale * (0.7 + 0.3 * torch.rand(count, OBJECTS, 2, generator=rng)) * full
    corner = torch.rand(count, OBJECTS, 2, generator=rng) * (full - sides)
    targets = Targets(
        boxes=torch.cat((corner, corner + sides), -1),
        labels=torch.randint(0, NUM_CLASSES, (count, OBJECTS), generator=rng),
        present=torch.ones(count, OBJECTS, dtype=torch.bool),
        valid_size=torch.tensor([[height, width]] * count),
        ignore_boxes=torch.zeros(count, 0, 4),
        ignore_present=torch.zeros(count, 0, dtype=torch.bool),
    )
    metas = tuple(ImageMeta(i, setting.size, setting.size, (1.0, 1.0)) for i in range(count))
    sizes = torch.tensor([[height, width]] * count)
    return Batch(images, sizes, targets, metas).to(setting.device)


def half(setting: Setting):
    """Autocast to the setting's precision."""
    return torch.autocast(
        setting.device, PRECISIONS[setting.precision], enabled=setting.precision != "fp32"
    )


def our_detector(setting: Setting, compile: bool | str = False) -> Detector:
    """As `gfl.load` makes it, with random weights, in the setting's precision."""
    config = detector_config(setting)
    torch.manual_seed(0)
    model = build.build_model(config, NUM_CLASSES, load_pretrained=False)
    names = tuple(str(number) for number in range(NUM_CLASSES))
    ids = tuple(range(NUM_CLASSES))
    detector = Detector(model, config, names, ids, setting.device, compile=compile)
    if setting.precision != "fp32":
        cast_convolutions(detector.model, PRECISIONS[setting.precision])
    return detector


class Training:
    """Our training step, the very function of the loop, and its parts.

    Args:
        setting: network, size, batch, device.
        train: keys of the config's `train` section, such as compile.
    """

    def __init__(self, setting: Setting, **train):
        self.setting = setting
        config = detector_config(setting, **train)
        torch.manual_seed(0)
        device = torch.device(setting.device)
        self.state = build.build_state(config, NUM_CLASSES, 1000, device, load_pretrained=False)
        self.state.model.train()
        criterion = build.build_criterion(config)
        programs = Programs(self.state.model, criterion, device, config.train.compile)
        self.network: nn.Module = programs.network  # or DDP around it
        self.criterion = programs.criterion
        self.normalize = build.build_normalize(config, device)
        self.options = build.build_loop_options(config, 1000)
        self.batch = random_batch(setting)
        images = self.normalize(self.batch.images, self.batch.input_sizes)
        self.images = images.contiguous(memory_format=setting.layout)

    def step(self) -> None:
        """Forward, criterion, backward, optimiser."""
        train_step(
            self.state,
            self.network,
            [self.batch],
            self.criterion,
            self.normalize,
            self.options,
        )

    def limit(self) -> None:
        """Forward and backward of the same network with the sum of its outputs as loss."""
        self.state.optimizer.zero_grad(set_to_none=True)
        with half(self.setting):
            outputs, _ = self.state.model.tensors(self.images)
        sum(output.sum() for output in outputs if output is not None).backward()

    def overhead(self) -> Callable[[], None]:
        """Assigner, losses and their backward to the head's outputs, of one forward."""
        with torch.no_grad(), half(self.setting):
            predictions = self.state.model(self.images)
        logits = [predictions.cls_logits.requires_grad_(), predictions.box_logits.requires_grad_()]
        if predictions.quality_logits is not None:
            logits.append(predictions.quality_logits.requires_grad_())

        def work() -> None:
            losses = self.criterion(predictions, self.batch.targets)
            torch.autograd.grad(sum(losses.values()), logits)

        return work


def rival(
    name: str,
    setting: Setting,
    layout: torch.memory_format,
    norm: type[nn.Module] = FrozenBatchNorm2d,
) -> nn.Module | None:
    """torchvision's detector with the same backbone, or None where it has no such backbone.

    As its own recipe has it: statistics and affine of batch norm frozen, stem and first stage
    not trained. It normalises as ours does and does not resize. With `nn.BatchNorm2d` as `norm`
    the affine trains, as ours does; `rival_step` keeps the statistics frozen.
    """
    if not hasattr(resnet, setting.backbone):
        return None
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name=setting.backbone,
        weights=None,
        norm_layer=norm,
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    model = RIVALS[name](backbone, NUM_CLASSES)
    model.transform.resize = lambda image, target=None: (image, target)
    return model.to(setting.device, memory_format=layout)


def rival_inputs(batch: Batch) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The same pictures and objects as torchvision takes them."""
    images = list(batch.images.float().div(255))
    pairs = zip(batch.targets.boxes, batch.targets.labels, strict=True)
    return images, [{"boxes": boxes, "labels": labels} for boxes, labels in pairs]


def rival_step(model: nn.Module, setting: Setting, batch: Batch) -> Callable[[], None]:
    """A training step of torchvision's detector, with the optimiser of ours."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.00001, momentum=0.9, weight_decay=0.0001, fused=True)
    images, targets = rival_inputs(batch)

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        with half(setting):
            losses = model(images, targets)
            loss = sum(losses.values())
        loss.backward()
        optimizer.step()

    return work


def rivals(setting: Setting, layout: torch.memory_format) -> dict[str, nn.Module]:
    """Those that there are, with their weights in a memory layout."""
    found = {name: rival(name, setting, layout) for name in RIVALS}
    return {name: model for name, model in found.items() if model is not None}


def rival_network(model: nn.Module, images: Tensor) -> None:
    """Backbone, pyramid and head of torchvision's detector."""
    model.head(list(model.backbone(images).values()))
