"""Whole networks, and the first training steps, against the reference."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from builders import make_targets
from conftest import REFERENCE, REPOSITORY, reference, tensor
from public_files import FORMS, write_public_file

from gfl.build import build_criterion, build_model, build_postprocess, build_schedule
from gfl.config import load_config, parse_config
from gfl.conversion import convert
from gfl.data.batch import Normalize
from gfl.engine.checkpoint import TrainState
from gfl.engine.optim import make_optimizer
from gfl.engine.train import LoopOptions, train_step
from gfl.interop.mmdet import rename
from gfl.interop.recognise import recognise_model
from gfl.structures import Batch, ImageMeta

# Each network comes out of a file written in another form (see `public_files.FORMS`).
NETWORKS = {
    "gfl_r50_fpn_1x": "zip",
    "gfl_r101_fpn_ms_2x": "legacy",
    "gfl_x101-32x4d_fpn_ms_2x": "module",
    "gfl_r101-dconv-c3-c5_fpn_ms_2x": "history",
    "gfl_x101-32x4d-dconv-c4-c5_fpn_ms_2x": "history_legacy",
    "gflv2_r50_fpn": "ema",
}


def recipe():
    spec = importlib.util.spec_from_file_location("recipe", REFERENCE / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference_state(name: str) -> tuple[dict, dict]:
    """The reference's pseudo-weights under its own names, and the description of those."""
    weights, meta = recipe().load(REFERENCE / "zoo" / f"{name}.keys.json")
    return {key: torch.from_numpy(value.copy()) for key, value in weights.items()}, meta


def reference_model(name: str, folder, form: str = "zip"):
    """Our network out of a converted public file, its config, and the weights' description."""
    state, meta = reference_state(name)
    content, _ = convert(write_public_file(folder / f"{name}.pth", state, **FORMS[form]))
    config = parse_config(content["config"])
    model = build_model(config, len(content["class_map"]["names"]), load_pretrained=False)
    model.load_state_dict(content["model"])
    return model, meta, config


def assert_map(arrays: dict, name: str, got: torch.Tensor) -> None:
    got = got.detach().contiguous().numpy()
    assert list(got.shape) == arrays[f"{name}.shape"].tolist()
    sub = got.reshape(-1)[:: int(arrays[f"{name}.stride"])]
    np.testing.assert_allclose(sub, arrays[f"{name}.sub"], rtol=1e-4, atol=5e-4)
    wide = got.astype(np.float64)
    stats = [wide.mean(), wide.std(), wide.sum(), np.abs(wide).sum()]
    np.testing.assert_allclose(
        stats[:2] + [s / got.size for s in stats[2:]],
        [*arrays[f"{name}.stats"][:2], *(arrays[f"{name}.stats"][2:] / got.size)],
        rtol=1e-4,
        atol=5e-4,
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_parity_zoo_names(name):
    """Every name of the public file is ours after renaming, and the other way round."""
    meta = json.loads((REFERENCE / "zoo" / f"{name}.keys.json").read_text())
    theirs = {rename(e["key"]): e["shape"] for e in meta["state_dict"]}
    theirs.pop(None)
    shapes = {key: torch.empty(shape, device="meta") for key, shape in theirs.items()}
    model = {"model": recognise_model(shapes)}
    model["model"]["head"]["background_channel"] = name.startswith("gflv2")
    with torch.device("meta"):
        ours = build_model(parse_config(model), 80, load_pretrained=False).state_dict()
    assert theirs == {key: list(value.shape) for key, value in ours.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_parity_zoo_network(name, tmp_path):
    """Features, logits, losses, gradients and detections of a converted file's model."""
    arrays = reference(f"zoo/{name}.npz")
    model, meta, config = reference_model(name, tmp_path, NETWORKS[name])
    model.train()  # batch-norm statistics stay frozen all the same
    images = tensor(arrays["input"].astype(np.float32))
    features = model.backbone(images)
    for level, feature in enumerate(features if "backbone.0.shape" in arrays else []):
        assert_map(arrays, f"backbone.{level}", feature)
    for level, feature in enumerate(model.neck(features[1:])):
        assert_map(arrays, f"neck.{level}", feature)
    predictions = model(images)
    second = name.startswith("gflv2")  # whose reference gives scores in place of logits
    scores = predictions.joint_scores() if second else predictions.cls_logits
    counts = predictions.grid.level_counts
    for prefix, values in (("cls_score", scores), ("bbox_pred", predictions.box_logits)):
        for level, part in enumerate(values.split(counts, 1)):
            shape = arrays[f"{prefix}.{level}.shape"].tolist()
            assert_map(arrays, f"{prefix}.{level}", part.transpose(1, 2).reshape(shape))

    gt = {key.removeprefix("gt_"): value for key, value in arrays.items() if key.startswith("gt_")}
    targets = make_targets([gt["bboxes"]], [gt["labels"]], size=images.shape[-2:])
    losses = build_criterion(config)(predictions, targets)
    for ours, theirs in (("loss_cls", "loss_cls"), ("loss_box", "loss_bbox"), ("loss_dfl",) * 2):
        want = arrays[f"loss.{theirs}"].sum()
        np.testing.assert_allclose(losses[ours].item(), want, rtol=1e-4, atol=1e-5)
    # In float64: where the input of a ReLU, or an offset from a pixel's edge, is nearer to 0 than
    # float32's rounding, gradients differ from one CPU's convolutions to another's.
    sum(losses.values()).backward()
    rounded = gradient_norms(arrays, model)
    np.testing.assert_allclose(rounded, arrays["param_grad.l2"], rtol=2e-2, atol=5e-4)
    model.zero_grad()
    model.double()
    if second:
        model.head.quality.float()  # as everything behind the logits
    exact = build_criterion(config)(model(images.double()), targets)
    sum(exact.values()).backward()
    assert_gradients(arrays, model)

    metas = (ImageMeta(1, (230, 312), (184, 250), (250 / 312, 184 / 230)),)
    postprocess = build_postprocess(config)
    if second:
        # The reference's test model detects its background channel too: label 80.
        [ours] = postprocess(predictions, metas)
        assert len(ours) and (ours.labels < 80).all()
        postprocess.background_channel = False
    [found] = postprocess(predictions, metas)
    np.testing.assert_array_equal(found.labels.numpy(), arrays["det.labels"])
    np.testing.assert_allclose(found.scores.numpy(), arrays["det.scores"], rtol=1e-4, atol=5e-4)
    np.testing.assert_allclose(found.boxes.numpy(), arrays["det.boxes"], atol=0.01)
    if second:
        classes = found.labels < 80
        assert torch.equal(ours.boxes, found.boxes[classes])
        assert torch.equal(ours.scores, found.scores[classes])


def gradient_norms(arrays: dict, model: torch.nn.Module) -> np.ndarray:
    gradients = {name: p.grad for name, p in model.named_parameters()}
    names = [rename(str(name)) for name in arrays["param_grad.names"]]
    return np.array([gradients[name].double().norm().item() for name in names])


def assert_gradients(arrays: dict, model: torch.nn.Module) -> None:
    """Norms of every trained parameter's gradient; none for the frozen ones."""
    gradients = {name: p.grad for name, p in model.named_parameters()}
    names = [rename(str(name)) for name in arrays["param_grad.names"]]
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    if "frozen.names" in arrays:
        assert frozen == {rename(str(name)) for name in arrays["frozen.names"]}
    assert set(names) | frozen == set(gradients) and not set(names) & frozen
    assert all(gradients[name] is None for name in frozen)
    norms = gradient_norms(arrays, model)
    np.testing.assert_allclose(norms, arrays["param_grad.l2"], rtol=1e-4, atol=5e-4)
    sums = np.array([gradients[name].double().sum().item() for name in names])
    sizes = np.array([gradients[name].numel() for name in names])
    scale = arrays["param_grad.l2"] * np.sqrt(sizes)  # the sum's own bound
    # A sampling point that float noise moves over a pixel's edge changes gradients by a step, which
    # no norm shows but a sum of terms that cancel does: in layer2.2.conv1 of the ResNeXt the
    # reference's sum is 5.205, that in float64 5.226.
    deformable = any(".conv_offset." in name for name in names)
    rtol = 1e-3 if deformable else 1e-4
    assert (np.abs(sums - arrays["param_grad.sum"]) <= rtol * scale + 5e-4).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_parity_train_curve(tmp_path, dtype):
    """The first five SGD steps, through the project's own step, optimiser and schedule."""
    arrays = reference("train_curve.npz")
    model, meta, _ = reference_model("gfl_r50_fpn_1x", tmp_path)
    model.to(dtype)  # float64 for the reason that test_parity_zoo_network gives
    lr, momentum, weight_decay = (float(v) for v in arrays["sgd"])
    config = load_config(
        REPOSITORY / "configs/gfl_r50_fpn_1x.yaml", [f"train.lr={lr}", "train.warmup_steps=0"]
    )
    state = TrainState(
        model,
        make_optimizer(model, config.train.optimizer, momentum, weight_decay),
        build_schedule(config, steps_per_epoch=1000),
        torch.amp.GradScaler("cpu", enabled=False),
    )
    model.train()
    criterion, options = build_criterion(config), LoopOptions(epochs=1, steps_per_epoch=1000)
    normalize = Normalize((0, 0, 0), (1, 1, 1))
    normalize.mean = normalize.mean.to(dtype)  # and so are images
    make_input = recipe().make_input
    for step in range(5):
        images = np.concatenate(
            [make_input(meta["seed"], 192, 256, name=f"curve{step}.{b}") for b in range(2)]
        )
        objects = [f"step{step}.img{b}." for b in range(2)]
        targets = make_targets(
            [arrays[o + "boxes"] for o in objects],
            [arrays[o + "labels"] for o in objects],
            size=(192, 256),
        )
        metas = tuple(ImageMeta(b, (192, 256), (192, 256), (1.0, 1.0)) for b in range(2))
        batch = Batch(torch.from_numpy(images), targets.valid_size, targets, metas)
        losses, norm = train_step(state, model, [batch], criterion, normalize, options)
        state.step += 1
        got = [losses[name].item() for name in ("loss_cls", "loss_box", "loss_dfl")]
        got += [sum(got), norm.item()]
        first = 1e-3 if dtype == torch.float64 else 3e-3  # seen in float32: 1.3e-3 on one CPU
        rtol = first if step < 2 else 3e-2
        np.testing.assert_allclose(got, arrays["losses"][step], rtol=rtol, err_msg=f"step {step}")
