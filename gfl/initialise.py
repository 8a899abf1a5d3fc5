"""Starting a training from another detector's weights: `init_from` in the config."""

from dataclasses import dataclass

from torch import Tensor, nn

from gfl.config import Config
from gfl.conversion import Comparison, compare, open_checkpoint
from gfl.errors import UserError

CLASS_OUTPUT = ("head.cls_out.weight", "head.cls_out.bias")
# Keys whose change makes the same weights see or say something else.
CONVENTIONS = (
    ("data", "color_order"),
    ("data", "mean"),
    ("data", "std"),
    ("model", "grid_origin"),
    ("model", "quality"),
    ("model", "box"),
    ("model", "bin_width"),
    ("assigner", "name"),
    ("postprocess", "pre_nms_rule"),
)


@dataclass(frozen=True)
class Initialisation:
    """What was taken from a checkpoint.

    Attributes:
        source: the file.
        comparison: tensors by name and shape; the class output counts as matched when its rows
            have the network's width.
        kept_classes: classes whose rows were copied.
        new_classes: classes that start like any new network's.
        changed: conventions that differ between the file and this config, as sentences.
    """

    source: str
    comparison: Comparison
    kept_classes: tuple[str, ...]
    new_classes: tuple[str, ...]
    changed: tuple[str, ...]

    @property
    def fraction(self) -> float:
        """Share of all tensors, of the network and of the file, that both have in one shape."""
        seen = self.comparison
        return len(seen.matched) / max(sum(len(names) for names in vars(seen).values()), 1)

    def __str__(self) -> str:
        kept = ", ".join(self.kept_classes) or "none"
        new = ", ".join(self.new_classes) or "none"
        lines = [
            f"init_from {self.source}: {self.fraction:.1%} of the tensors fit, the class output by "
            "its classes' names",
            *str(self.comparison).splitlines(),
            f"classes with rows of the same name: {kept}",
            f"classes that start anew: {new}",
            *self.changed,
        ]
        return "\n".join(lines)


def initialise(model: nn.Module, class_names: tuple[str, ...], config: Config) -> Initialisation:
    """Copy what fits of `config.init_from` into a network.

    Every tensor of the same name and shape is copied. Of the class output, whose rows are classes,
    the rows of classes with the same name are, wherever they stand; others keep the network's own
    start. Nothing is changed when it fails.

    Args:
        model: the network, on any device.
        class_names: its classes, in order.
        config: `init_from` is a checkpoint of ours or a public one, `init_min_matched` the least
            share of tensors.

    Raises:
        UserError: the file can not be read, too little of it fits, or something that it does not
            hold is frozen.
    """
    content = open_checkpoint(config.init_from)
    theirs: dict[str, Tensor] = dict(content.get("ema") or content["model"])
    own = model.state_dict()
    source_names = tuple(content["class_map"]["names"])
    rows = [(n, source_names.index(c)) for n, c in enumerate(class_names) if c in source_names]
    outputs = {}
    for name in CLASS_OUTPUT:
        if name not in theirs or name not in own:
            continue
        ours = _by_class(own[name].clone(), model.head)
        source = _by_class(theirs[name], model.head)
        if source is None or source.shape[2:] != ours.shape[2:]:
            continue
        if source.shape[1] not in (len(source_names), len(source_names) + 1):
            continue  # another number of anchors or of score bins
        for row, source_row in rows:
            ours[:, row] = source[:, source_row].to(ours)
        if ours.shape[1] > len(class_names) and source.shape[1] > len(source_names):
            ours[:, -1] = source[:, -1].to(ours)  # the background channel of both
        outputs[name] = ours.flatten(0, 2)
    theirs.update(outputs)
    comparison = compare(theirs, own)
    outcome = Initialisation(
        source=str(config.init_from),
        comparison=comparison,
        kept_classes=tuple(class_names[row] for row, _ in rows) if outputs else (),
        new_classes=tuple(c for c in class_names if not outputs or c not in source_names),
        changed=tuple(_changed_conventions(content["config"], config.to_dict())),
    )
    if outcome.fraction < config.init_min_matched:
        raise UserError(
            f"only {outcome.fraction:.1%} of the tensors of the network and of init_from="
            f"{config.init_from} fit, expected {config.init_min_matched:.0%}. Use the config that "
            "the file was trained with, or set init_min_matched lower if this is meant.\n"
            f"{comparison}"
        )
    _refuse_frozen_random(model, {*comparison.missing, *(n for n, _, _ in comparison.mismatched)})
    model.load_state_dict({**own, **{name: theirs[name] for name in comparison.matched}})
    return outcome


def _by_class(output: Tensor, head: nn.Module) -> Tensor | None:
    """Class output rows as (anchors, classes, score bins, ...); None if they do not divide."""
    anchors, bins = head.anchors_per_cell, head.score_bins
    if output.ndim == 0 or len(output) % (anchors * bins):
        return None
    return output.unflatten(0, (anchors, -1, bins))


def _refuse_frozen_random(model: nn.Module, random: set[str]) -> None:
    """What the file does not give must be able to learn."""
    model.train()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.training:
            frozen |= {f"{name}.running_mean", f"{name}.running_var"}
    stuck = sorted(random & frozen)
    if stuck:
        raise UserError(
            f"{len(stuck)} tensors are not in init_from and would stay random, since they are "
            f"frozen: {', '.join(stuck[:4])}{', ...' if stuck[4:] else ''}. Let them learn "
            "(model.backbone.norm=batch, model.backbone.frozen_stages=0, train.freeze=[])."
        )


def _changed_conventions(theirs: dict, ours: dict) -> list[str]:
    lines = []
    for section, key in CONVENTIONS:
        before, now = theirs[section].get(key), ours[section].get(key)
        if before is not None and before != now:
            lines.append(f"{section}.{key} was {before} there and is {now} here")
    return lines
