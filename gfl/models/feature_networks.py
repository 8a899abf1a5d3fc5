"""Classification networks of timm and torchvision, cut so that they give feature maps."""

import os
import warnings
from pathlib import Path

import torch
import torchvision
from torch import Tensor, fx, nn
from torchvision.ops import StochasticDepth

from gfl.errors import UserError, did_you_mean
from gfl.models.published_weights import (
    OTHERWISE,
    import_timm,
    read_state_dict,
    timm_weights,
    torchvision_weights,
)

STRIDES = (4, 8, 16, 32)


def stride_of(feature: Tensor, picture: tuple[int, int]) -> tuple[int, bool] | None:
    """How a tensor lies over a picture.

    Args:
        feature: anything that a network computed.
        picture: height and width of the network's input, pixels.

    Returns:
        Stride in pixels and whether the channels are last, (B, h, w, C); None for a tensor that
        does not cover the picture with whole strides, the same in both directions.
    """
    if not isinstance(feature, Tensor) or feature.dim() != 4:
        return None
    for h, w, channels_last in ((*feature.shape[2:], False), (*feature.shape[1:3], True)):
        stride = picture[0] // h if h else 0
        if (h * stride, w * stride) == tuple(picture):
            return stride, channels_last
    return None


# timm


def timm_features(name: str, picture: tuple[int, int]) -> nn.Module:
    """timm's network `name` that gives a list of feature maps, with random weights.

    Raises:
        UserError: timm is not installed, does not know the name, or can not cut this network.
    """
    full_name = f"timm/{name}"
    timm = import_timm(f"model.backbone.name {full_name!r}")
    if not timm.is_model(name):
        known = [f"timm/{choice}" for choice in timm.list_models()]
        raise UserError(
            f"unknown model.backbone.name {full_name!r}{did_you_mean(full_name, known)} "
            f"timm {timm.__version__} has {len(known)}: timm.list_models() names them."
        )
    try:
        return timm.create_model(name, features_only=True)
    except Exception as error:  # whatever a network raises that knows no features_only
        tags = [f"timm/{choice}" for choice in timm.list_pretrained()] if "." in name else []
        raise UserError(
            f"timm can not make {full_name} with features_only=True ({error})"
            f"{did_you_mean(full_name, tags)} Choose another model.backbone.name."
        ) from error


# torchvision


class _Tracer(fx.Tracer):
    """Keeps stochastic depth whole, as fx keeps torch's own layers: .train() then works on it."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, StochasticDepth) or super().is_leaf_module(module, name)


class _Recorder(fx.Interpreter):
    """Runs a graph and remembers what each node gave."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.values: dict[fx.Node, object] = {}

    def run_node(self, node: fx.Node):
        self.values[node] = super().run_node(node)
        return self.values[node]


def torchvision_features(name: str, picture: tuple[int, int]) -> fx.GraphModule:
    """torchvision's classification network `name` that gives a list of feature maps.

    The map of a stride is the last one that all later computation passes through: the output of a
    residual stage, not a branch inside the next. Layers behind the last map are left out. Weights
    are random; the parameters' names are the network's own.

    Args:
        name: a name of `torchvision.models.list_models(module=torchvision.models)`.
        picture: height and width of the picture on which strides are measured.

    Raises:
        UserError: torchvision has no such network.
    """
    network = torchvision_network(name).eval()
    module = fx.GraphModule(network, _Tracer().trace(network))
    module.graph.eliminate_dead_code()
    recorder = _Recorder(module)
    with torch.no_grad():
        recorder.run(torch.zeros(1, 3, *picture))
    chosen = {}
    for node in _waists(recorder.values):
        found = stride_of(recorder.values[node], picture)
        if found and found[0] in STRIDES:
            chosen[found[0]] = node
    output = next(node for node in module.graph.nodes if node.op == "output")
    output.args = ([chosen[stride] for stride in sorted(chosen)],)
    module.graph.eliminate_dead_code()
    return fx.GraphModule(module, module.graph)


def torchvision_network(name: str) -> nn.Module:
    """The whole classification network with random weights."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        full_name, choices = f"torchvision/{name}", [f"torchvision/{choice}" for choice in known]
        raise UserError(
            f"unknown model.backbone.name {full_name!r}{did_you_mean(full_name, choices)} "
            f"Choices: {', '.join(choices)}."
        )
    with warnings.catch_warnings():  # two of them announce that their initialisation will change
        warnings.simplefilter("ignore", FutureWarning)
        return torchvision.models.get_model(name, weights=None)


def _waists(values: dict[fx.Node, object]) -> list[fx.Node]:
    """Nodes that every path from the picture to later nodes runs through, in order.

    Args:
        values: what each node of a graph gave, in order of execution.
    """
    place = {node: number for number, node in enumerate(values)}
    from_picture, furthest, waists = set(), -1, []
    for node, value in values.items():
        before = node.all_input_nodes
        if node.op != "placeholder" and not any(other in from_picture for other in before):
            continue
        if not _holds_tensor(value):  # a size
            continue
        from_picture.add(node)
        if furthest <= place[node]:
            waists.append(node)
        furthest = max([furthest, *(place[user] for user in node.users)])
    return waists


def _holds_tensor(value: object) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds_tensor(part) for part in value)
    return isinstance(value, Tensor)


# Weights


def load_classifier_weights(features: nn.Module, full_name: str, source: bool | str) -> None:
    """Fill a cut network with the weights of the whole one; its classifier's are left out.

    Args:
        features: what `timm_features` or `torchvision_features` gave.
        full_name: "timm/NAME" or "torchvision/NAME".
        source: True for the published weights (from the cache, else downloaded), or a file with
            a state dict of the network (a .safetensors file will do for timm).

    Raises:
        UserError: weights that can not be had, or whose names or shapes are not the network's.
    """
    library, _, name = full_name.partition("/")
    if source is True:
        state = _published_weights(library, name)
        legal = state.keys()
        source = "the published file"
    else:
        state = _read(Path(source))
        make = torchvision_network
        if library == "timm":
            make = import_timm(f"model.backbone.name {full_name!r}").create_model
        legal = make(name).state_dict().keys()
    # timm's wrappers join names, stages.0 to stages_0, or put the whole network into `model`.
    target = features.model if type(features).__name__ == "FeatureGetterNet" else features
    ours = {key.replace(".", "_"): key for key in target.state_dict()}
    foreign = sorted(set(state) - set(legal))
    try:
        if foreign:
            raise RuntimeError(f"unexpected {', '.join(foreign[:5])} ({len(foreign)} in all)")
        flat = {key.replace(".", "_"): value for key, value in state.items()}
        target.load_state_dict({ours[key]: value for key, value in flat.items() if key in ours})
    except RuntimeError as error:
        raise UserError(f"{source} does not hold weights of {full_name}: {error}") from error


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors" or not os.path.isfile(path):
        return read_state_dict(path)
    try:
        from safetensors.torch import load_file

        return load_file(path)
    except Exception as error:
        raise UserError(f"{path} can not be read as safetensors: {error}") from error


def _published_weights(library: str, name: str) -> dict[str, Tensor]:
    if library == "timm":
        return timm_weights(name, f"model.backbone.name 'timm/{name}'")
    weights = torchvision.models.get_model_weights(name)
    if not len(weights):
        raise UserError(f"torchvision publishes no weights of {name}: {OTHERWISE}.")
    return torchvision_weights(name, weights.DEFAULT)
