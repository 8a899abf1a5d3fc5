"""The training step beside its limit and its rivals."""

from torch import nn

from gfl.benchmark.peer import OURS, Peer
from gfl.benchmark.record import Record, not_measured, record
from gfl.benchmark.setting import Setting
from gfl.benchmark.subjects import RIVALS, Training, rival, rival_step, rivals
from gfl.benchmark.timing import interleaved

FIGURE = "train"
# Assigner, losses and their backward over the step: at most this share.
OVERHEAD = {"cpu": 0.01, "cuda": 0.03}
OVERHEAD_REPEATS = 50
OTHER_SETTING = "the goal is for ResNet-50 at the default size and precision"
# With the same weights to train as ours: torchvision's recipe freezes those of norms too.
SAME_WEIGHTS = "torchvision FCOS, norms trained as ours,"


def training_step(setting: Setting, peer: Peer | None = None) -> list[Record]:
    """Milliseconds of a step: ours, its limit, torchvision's FCOS and RetinaNet, mmdetection's GFL.

    FCOS runs twice: as its recipe has it, and with its norms' weights trained as ours are.

    The limit is forward and backward of the same network with the sum of its outputs as loss. Ours
    can be below it: on a CPU its backward leaves out where box losses say nothing. `peer` runs in a
    process of its own, in turn with the others.
    """
    ours = Training(setting)
    others = rivals(setting, setting.layout)
    if others:
        others[SAME_WEIGHTS] = rival("torchvision FCOS", setting, setting.layout, nn.BatchNorm2d)
    works = {"gfl": ours.step, "limit": ours.limit}
    works |= {name: rival_step(model, setting, ours.batch) for name, model in others.items()}
    if peer is not None:
        works[OURS] = lambda: peer.seconds("train")
    spreads = interleaved(works, setting.repeats, setting.warmup, setting.device)
    step, limit = spreads["gfl"].times(1000), spreads["limit"].times(1000)
    name = "forward and backward of the network"
    rows = [record(FIGURE, f"gfl step, {setting}", "ms", step, limit, name)]
    for other in (*RIVALS, SAME_WEIGHTS, OURS):
        if other in spreads:
            took = spreads[other].times(1000)
            rows.append(record(FIGURE, f"{other} step", "ms", took, step, "gfl step"))
        elif other in RIVALS:
            rows.append(not_measured(FIGURE, other, f"torchvision has no {setting.backbone}"))
    repeats = max(setting.repeats, OVERHEAD_REPEATS)
    alone = interleaved({"overhead": ours.overhead()}, repeats, setting.warmup, setting.device)
    goal = OVERHEAD[setting.device] if setting.is_stated else None
    rows.append(
        record(
            FIGURE,
            "assigner, losses and their backward",
            "ms",
            alone["overhead"].times(1000),
            step,
            "gfl step",
            goal,
            note="" if setting.is_stated else OTHER_SETTING,
        )
    )
    return rows
