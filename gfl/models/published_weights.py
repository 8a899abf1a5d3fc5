"""Weights of classification networks, published or in a file: state dicts of plain tensors."""

import os
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torchvision.models import WeightsEnum

from gfl.errors import UserError

OTHERWISE = (
    "set model.backbone.pretrained=FILE, or model.backbone.pretrained=false to train from scratch"
)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a file of plain tensors without running code that it may contain.

    Raises:
        UserError: the file is missing or is something else.
    """
    if not os.path.isfile(path):
        raise UserError(
            f"weights file {path} does not exist. Set model.backbone.pretrained to an "
            "existing file, to true (download) or to false (train from scratch)."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} is not a file of plain tensors: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} holds no state dict (names to tensors).")
    return state


def torchvision_weights(name: str, weights: WeightsEnum) -> dict[str, Tensor]:
    """The whole network's weights, from torch's cache, else downloaded, with today's names.

    Raises:
        UserError: no network and no cached file (the message names file and folder), or a file
            that is cut off or another.
    """
    try:
        return torchvision.models.get_model(name, weights=weights).state_dict()
    except Exception as error:
        file_name = weights.url.rsplit("/", 1)[-1]
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"the ImageNet weights of torchvision's {name} could not be downloaded or read "
            f"({error}). Put {file_name} (from {weights.url}) into {folder}, in place of what may "
            f"be there, or {OTHERWISE}."
        ) from error


def import_timm(wanted_by: str):
    """The package timm.

    Args:
        wanted_by: what needs it, for the message.

    Raises:
        UserError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"{wanted_by} needs timm, which is not installed: pip install 'gfl-detection[timm]'"
        ) from error
    return timm


def timm_weights(name: str, wanted_by: str) -> dict[str, Tensor]:
    """The weights of timm's whole network `name`, from its cache, else downloaded.

    Raises:
        UserError: timm is not installed, or the weights can not be had; it says from where.
    """
    timm = import_timm(wanted_by)
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # timm raises whatever its download library does
        settings = timm.get_pretrained_cfg(name)
        hub, url = getattr(settings, "hf_hub_id", None), getattr(settings, "url", None)
        origin = f"model.safetensors of https://huggingface.co/{hub}" if hub else url
        raise UserError(
            f"the weights of timm/{name} could not be downloaded ({error}). Where there is a "
            f"network, take {origin or 'any file of such weights'}, or write\n"
            f"  python -c \"import timm, torch; torch.save(timm.create_model('{name}', "
            f"pretrained=True).state_dict(), '{name}.pth')\"\n"
            f"and {OTHERWISE}."
        ) from error
