"""Exported networks of public checkpoints beside PyTorch, on every picture, at real sizes.

`GFL_PICTURES=FOLDER` takes the pictures of a folder in place of drawn ones.
"""

import json

import numpy as np
import pytest
import torch
from builders import pictures
from conftest import REFERENCE
from public_files import write_public_file
from test_conversion import mmdet_name
from test_parity_network import recipe

import gfl
from gfl.build import build_model, build_postprocess
from gfl.config import parse_config
from gfl.data.batch import collate
from gfl.data.dataset import Sample
from gfl.data.image import read_image
from gfl.data.sampler import SampleKey
from gfl.data.transforms import Transform
from gfl.interop.agreement import Differences, Tolerance
from gfl.interop.export_forms import FORMS
from gfl.interop.exported import ExportedForm
from gfl.interop.onnx_network import OnnxNetwork


def public_checkpoint(name: str, folder):
    """A public file of a ResNet GFL with the weights of the reference's recipe."""
    keys = json.loads((REFERENCE / "zoo" / "gfl_r50_fpn_1x.keys.json").read_text())
    entries = keys["state_dict"]
    if name != "resnet50":  # the reference lists no such network: the same rule on its names
        with torch.device("meta"):
            config = parse_config({"model": {"backbone": {"name": name, "pretrained": False}}})
            ours = build_model(config, 80, load_pretrained=False).state_dict()
        entries = [
            {
                "key": mmdet_name(key),
                "shape": list(value.shape),
                "dtype": str(value.dtype).removeprefix("torch."),
            }
            for key, value in ours.items()
        ]
    weights = recipe().make_weights(entries, keys["seed"])
    state = {key: torch.from_numpy(value.copy()) for key, value in weights.items()}
    return write_public_file(folder / f"{name}.pth", state)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def files(shared):
    return pictures(shared)


@pytest.fixture(scope="module")
def exported(shared, files):
    """The checkpoint of a network and its .onnx of each form, made once."""
    made = {}

    def get(name: str):
        if name not in made:
            checkpoint = public_checkpoint(name, shared)
            forms = {form: shared / f"{name}_{form}.onnx" for form in FORMS}
            for form, path in forms.items():
                report = gfl.export(checkpoint, path, form, image=files[0])
                print(f"\n{name}, {form}, at export:", report["runs"])
                print(report["largest_difference"], report["detections"])
            made[name] = checkpoint, forms
        return made[name]

    return get


def batches(files, batch_size: int, short: int):
    """All pictures; the last batch is filled up with pictures of the one before."""
    transform, empty = Transform(short * 1333 // 800), np.zeros((0, 4), np.float32)
    batch_size = min(batch_size, len(files))
    for first in range(0, len(files), batch_size):
        first = min(first, len(files) - batch_size)
        yield collate(
            [
                transform(
                    Sample(read_image(str(file)), empty, np.zeros(0, np.int64), empty, number),
                    SampleKey(number, 0, short),
                )
                for number, file in enumerate(files[first : first + batch_size])
            ]
        )


def expected_outputs(predictions, reg_max: int) -> dict[str, torch.Tensor]:
    """What `raw` and `decoded` are to give, worked out in float64 from PyTorch's logits."""
    sides = predictions.box_logits.double().unflatten(-1, (4, reg_max + 1)).softmax(-1)
    bins = torch.arange(reg_max + 1, dtype=torch.float64)
    stride = predictions.grid.strides.double()[:, None]
    mean = (sides * bins).sum(-1)
    variance = (sides * (bins - mean[..., None]) ** 2).sum(-1)
    ltrb, centers = mean * stride, predictions.grid.centers.double()
    return {
        "scores": predictions.cls_logits.double().sigmoid(),
        "distributions": sides,
        "boxes": torch.cat((centers - ltrb[..., :2], centers + ltrb[..., 2:]), -1),
        "edge_std": variance.sqrt() * stride,
    }


@torch.no_grad()
def compare_forms(checkpoint, forms, files, batch_size: int, short: int) -> dict[str, Differences]:
    """Every output at every location, and the final detections, of all pictures."""
    detector = gfl.load(checkpoint, device="cpu")
    rules = build_postprocess(detector.config)
    networks = {form: OnnxNetwork(path, "cpu") for form, path in forms.items()}
    found = {form: Differences() for form in forms}
    for batch in batches(files, batch_size, short):
        predictions = detector.model(detector.normalize(batch.images, batch.input_sizes))
        wanted = expected_outputs(predictions, detector.config.model.reg_max)
        detections = rules(predictions, batch.metas, rescale=False)
        for form, network in networks.items():
            outputs = network(batch.images, batch.input_sizes)
            if form != "nms":
                for name, value in outputs.items():
                    found[form].add(f"every {name}", value.double(), wanted[name])
            way_back, size = ExportedForm.of(network.metadata), tuple(batch.images.shape[-2:])
            got = way_back.detections(outputs, size, rules, batch.metas, rescale=False)
            for one, other in zip(got, detections, strict=True):
                found[form].add_detections(one, other, rules, Tolerance())
    return found


def check(found: Differences) -> None:
    limits = {"boxes": 0.05, "edge_std": 0.05, "scores": 1e-4, "distributions": 1e-4}
    for name, gap in found.largest.items():
        assert gap < limits[name.removeprefix("every ")], (name, gap)
    assert found.wrong == 0 and found.same > 10 and found.near <= 0.01 * found.same, found


@pytest.mark.slow
@pytest.mark.parametrize("short", [192, 320, 800])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_public_networks_on_every_picture(name, batch_size, short, exported, files):
    """`short`: side in pixels that pictures are resized to."""
    found = compare_forms(*exported(name), files, batch_size, short)
    for form, differences in found.items():
        print(
            f"\n{name}, {len(files)} pictures, short side {short}, batches of {batch_size}, {form}"
        )
        print(differences)
    for differences in found.values():
        check(differences)
    assert {"every scores", "every distributions"} <= set(found["raw"].largest)
    assert {"every scores", "every boxes", "every edge_std"} <= set(found["decoded"].largest)
