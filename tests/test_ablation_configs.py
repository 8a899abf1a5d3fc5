"""configs/ablations: each row of the paper's tables, and every combination of its choices."""

import itertools
import re
import subprocess
import sys

import pytest
import torch
import yaml
from builders import make_targets
from conftest import REPOSITORY
from torch import nn

from gfl.build import (
    ASSIGNERS,
    BACKBONES,
    BOX_REPRESENTATIONS,
    build_criterion,
    build_model,
    build_postprocess,
    build_schedule,
)
from gfl.config import load_config, parse_config
from gfl.data.batch import Normalize
from gfl.engine.checkpoint import TrainState
from gfl.engine.optim import make_optimizer
from gfl.engine.options import LoopOptions
from gfl.engine.train import train_step
from gfl.errors import UserError
from gfl.quality import QUALITY_MODES
from gfl.structures import Batch, ImageMeta

FOLDER = REPOSITORY / "configs" / "ablations"

# The paper's rows ---------------------------------------------------------------------------------

# arXiv 2006.04388, COCO minival, ResNet-50, 1x, AP.
TABLE_1A = {  # quality: FCOS, ATSS
    "none": (37.8, 38.0),
    "centerness_branch": (38.5, 39.2),
    "iou_branch": (38.7, 39.6),
    "centerness_guided": (37.9, 38.2),
    "iou_guided": (38.2, 38.9),
    "joint": (39.0, 39.9),
}
TABLE_1B = {"none": 35.6, "joint": 36.4}  # RetinaNet without and with QFL
TABLE_1C = {0: 37.6, 1: 39.0, 2: 39.9, 2.5: 39.7, 4: 38.2}  # beta
TABLE_2A = {  # box, weight of the density loss: FCOS, ATSS
    ("dirac", 0): (38.5, 39.2),
    ("gaussian", 0.25): (38.6, 39.3),
    ("general", 0): (38.8, 39.3),
    ("general", 0.25): (39.0, 39.5),
}
TABLE_2B = {12: 40.1, 14: 40.2, 16: 40.2, 18: 40.1}  # n, with bins of one stride
TABLE_2C = {0.5: 40.2, 1: 40.2, 2: 39.9, 4: 39.8}  # width of the bins, with n = 16
TABLE_3 = {  # QFL, DFL
    (False, False): 39.2,
    (True, False): 39.9,
    (False, True): 39.5,
    (True, True): 40.2,
}

ATSS = {"name": "atss", "anchor_scale": 8.0}
FCOS = {"name": "fcos", "anchor_scale": 8.0}
RETINANET = {"name": "retinanet", "anchor_scale": 4.0}
# FCOS has its locations in the middle of the cells, the anchors of the others start at 0.
PLACES = [("fcos", FCOS, "cell_center"), ("atss", ATSS, "corner")]


# A row is itself over any config, one of distributed scores or of a public GFLv2 file too.
PLAIN_HEAD = {"score": "scalar", "background_channel": False}


def rows() -> dict[str, tuple[str, float, dict]]:
    """File name to table, AP and the keys that make the row."""
    found = {}
    for quality, published in TABLE_1A.items():
        for (name, assigner, origin), ap in zip(PLACES, published, strict=True):
            model = {"quality": quality, "box": "dirac", "grid_origin": origin}
            loss = {"dfl_weight": 0} | ({"beta": 2.0} if quality == "joint" else {})
            keys = {"model": model, "loss": loss, "assigner": assigner}
            found[f"quality_{name}_{quality}"] = ("1a", ap, keys)
    for quality, ap in TABLE_1B.items():
        model = {"quality": quality, "box": "dirac", "grid_origin": "corner"}
        loss = {"dfl_weight": 0} | ({"beta": 2.0} if quality == "joint" else {})
        name = "assigner_retinanet" + ("_qfl" if quality == "joint" else "")
        found[name] = ("1b", ap, {"model": model, "loss": loss, "assigner": RETINANET})
    for beta, ap in TABLE_1C.items():
        model, loss = {"quality": "joint", "box": "dirac"}, {"beta": beta, "dfl_weight": 0}
        found[f"beta_{beta}"] = ("1c", ap, {"model": model, "loss": loss, "assigner": ATSS})
    for (box, weight), published in TABLE_2A.items():
        for (name, assigner, origin), ap in zip(PLACES, published, strict=True):
            model = {"quality": "centerness_branch", "box": box, "grid_origin": origin}
            keys = {"model": model, "loss": {"dfl_weight": weight}, "assigner": assigner}
            dfl = "_dfl" if (box, weight) == ("general", 0.25) else ""
            found[f"box_{name}_{box}{dfl}"] = ("2a", ap, keys)
    bins = [("2b", f"n{n}", n, 1.0, ap) for n, ap in TABLE_2B.items()]
    bins += [("2c", f"width_{width}", 16, width, ap) for width, ap in TABLE_2C.items()]
    for table, name, reg_max, width, ap in bins:
        model = {"quality": "joint", "box": "general", "reg_max": reg_max, "bin_width": width}
        loss = {"beta": 2.0, "dfl_weight": 0.25}
        found[f"bins_{name}"] = (table, ap, {"model": model, "loss": loss, "assigner": ATSS})
    for (qfl, dfl), ap in TABLE_3.items():
        quality, box = "joint" if qfl else "centerness_branch", "general" if dfl else "dirac"
        loss = {"dfl_weight": 0.25 if dfl else 0} | ({"beta": 2.0} if qfl else {})
        name = "overall" + (("_qfl" * qfl + "_dfl" * dfl) or "_baseline")
        keys = {"model": {"quality": quality, "box": box}, "loss": loss, "assigner": ATSS}
        found[name] = ("3", ap, keys)
    for _, _, keys in found.values():
        keys["model"] = {"grid_origin": "corner", "head": PLAIN_HEAD, **keys["model"]}
    return found


ROWS = rows()
# Rows of our own: GFL with assignments that the paper does not have.
OWN = {
    f"assigner_{name}": {
        "model": {
            "quality": "joint",
            "box": "general",
            "grid_origin": "corner",
            "head": PLAIN_HEAD,
        },
        "loss": {"beta": 2.0, "dfl_weight": 0.25},
        "assigner": {"name": name, "anchor_scale": 8.0},
    }
    for name in ("tal", "simota")
}
PATHS = sorted(FOLDER.glob("*.yaml"))


def test_there_is_a_file_for_each_ablation_row_and_no_other():
    assert sorted(path.stem for path in PATHS) == sorted(ROWS | OWN)
    assert len(ROWS) == 39 and not ROWS.keys() & OWN.keys()


@pytest.mark.parametrize("name", OWN)
def test_ablation_of_our_own_is_gfl_with_another_assigner_and_states_no_figure(name):
    path = FOLDER / f"{name}.yaml"
    comment = path.read_text(encoding="utf-8").splitlines()[0]
    assert comment.startswith("# ") and "Published" not in comment
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert values.pop("extends") == "../gfl_r50_fpn_1x.yaml" and values == OWN[name]
    config, recipe = load_config(path), load_config("gfl_r50_fpn_1x")
    for section in ("data", "model", "loss", "postprocess", "train"):
        assert getattr(config, section) == getattr(recipe, section)
    changed = {key for key, value in config.assigner if value != getattr(recipe.assigner, key)}
    assert changed == {"name"}


@pytest.mark.parametrize("name", ROWS)
def test_ablation_file_holds_its_row_and_the_published_ap(name):
    table, ap, keys = ROWS[name]
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    comment = text.splitlines()[0]
    assert comment.startswith(f"# Table {table}, ") and comment.endswith(f"Published: {ap} AP.")
    values = yaml.safe_load(text)
    assert values.pop("extends") == "../gfl_r50_fpn_1x.yaml"
    assert values == keys


@pytest.mark.parametrize("name", ROWS)
def test_ablation_differs_from_the_published_recipe_in_its_row_alone(name):
    config, recipe = load_config(FOLDER / f"{name}.yaml"), load_config("gfl_r50_fpn_1x")
    assert (config.data, config.train) == (recipe.data, recipe.train)
    assert config.postprocess == recipe.postprocess
    changed = {
        (section, key)
        for section in ("model", "loss", "assigner")
        for key, value in getattr(config, section)
        if value != getattr(getattr(recipe, section), key)
    }
    assert changed <= {(part, key) for part, keys in ROWS[name][2].items() for key in keys}


def test_the_last_ablation_row_is_gfl_itself():
    recipe = load_config("gfl_r50_fpn_1x")
    for name in ("overall_qfl_dfl", "bins_n16", "bins_width_1"):
        assert load_config(f"ablations/{name}") == recipe


# A step -------------------------------------------------------------------------------------------


class TinyBackbone(nn.Module):
    """Four strided convolutions in a row."""

    channels, strides = (8, 8, 16, 16), (4, 8, 16, 32)

    def __init__(self, name, norm, frozen_stages, deformable_stages=(), deformable_version=2):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        widths = (8, *self.channels)
        pairs = zip(widths, widths[1:], strict=False)
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairs)

    def forward(self, images):
        outputs = [self.stem(images)]
        for stage in self.stages:
            outputs.append(stage(outputs[-1]).relu())
        return outputs[1:]


@pytest.fixture(autouse=True)
def _tiny_backbone(monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", TinyBackbone)


# Laid over a config: a small network, and everything is detected.
SMALL = [
    "model.backbone={name: tiny, pretrained: false}",
    "model.neck.channels=16",
    "model.head={channels: 64, stacked_convs: 1}",
    "postprocess={score_threshold: 0, nms_iou: 1, max_per_image: 20}",
]
SIZE, NUM_CLASSES = (128, 160), 3
DENSITY = {"general": "loss_dfl", "gaussian": "loss_nll", "dirac": None}


def assert_learns_and_detects(config) -> None:
    """A step gives everything a gradient, and detections come with what the box can say."""
    model = build_model(config, NUM_CLASSES).train()
    optimizer = make_optimizer(model, "sgd", 0.9, 0.0001)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = TrainState(model, optimizer, build_schedule(config, 100), scaler)
    boxes = [[[10.0, 12.0, 70.0, 90.0], [100.0, 20.0, 150.0, 60.0]], [[5.0, 0.0, 160.0, 120.0]]]
    targets = make_targets(boxes, [[0, 2], [1]], size=SIZE)
    metas = tuple(ImageMeta(i, SIZE, SIZE, (1.0, 1.0)) for i in range(2))
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    batch = Batch(images, torch.tensor([SIZE, SIZE]), targets, metas)
    normalize = Normalize(config.data.mean, config.data.std)
    options = LoopOptions(epochs=1, steps_per_epoch=100)
    criterion = build_criterion(config)
    losses, norm = train_step(state, model, [batch], criterion, normalize, options)

    density = DENSITY[config.model.box] if config.loss.dfl_weight else None
    branch = "loss_quality" if config.model.quality.endswith("_branch") else None
    assert list(losses) == list(filter(None, ["loss_cls", "loss_box", density, branch]))
    assert all(loss.isfinite() and loss > 0 for loss in losses.values()) and norm.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    head, anchors = model.head, model.head.anchors_per_cell
    for conv in filter(None, (head.cls_out, head.box_out, head.quality_out)):
        channel = conv.weight.grad.unflatten(0, (anchors, -1)).flatten(2).abs().sum(-1)
        assert (channel.amax(0) > 0).all()
    assert (head.quality_out is not None) == (branch is not None)
    if head.quality is not None:
        assert all(p.grad.any() for p in head.quality.parameters())

    model.eval()
    with torch.no_grad():
        predictions = model(normalize(batch.images, batch.input_sizes))
    plain = build_postprocess(config)(predictions, metas)
    told = build_postprocess(config, distributions=True)(predictions, metas)
    for found, same in zip(plain, told, strict=True):
        assert len(found) == 20 and torch.equal(found.boxes, same.boxes)
        assert found.distributions is None and found.edge_std.shape == (20, 4)
        assert (found.edge_std > 0).any() == (config.model.box != "dirac")
        if config.model.box == "dirac":
            assert same.distributions is None and same.edge_positions is None
        else:
            assert same.distributions.shape == (20, 4, config.model.reg_max + 1)
            assert same.edge_positions.shape == same.distributions.shape
            assert same.distributions.sum(-1).sub(1).abs().max() < 1e-5


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_ablation_config_builds_trains_a_step_and_detects(path):
    assert_learns_and_detects(load_config(path, SMALL))


def test_every_ablation_builds_the_criterion_and_postprocess_of_its_row():
    every = {name: keys for name, (_, _, keys) in ROWS.items()} | OWN
    for name, keys in every.items():
        config = load_config(f"ablations/{name}")
        criterion, model = build_criterion(config), keys["model"]
        assert type(criterion.box) is BOX_REPRESENTATIONS[model["box"]]
        assert type(criterion.assigner) is ASSIGNERS[keys["assigner"]["name"]]
        assert criterion.quality == QUALITY_MODES[model["quality"]]
        assert criterion.beta == keys["loss"].get("beta", 2.0)
        assert criterion.dfl_weight == keys["loss"]["dfl_weight"]
        for box in (criterion.box, build_postprocess(config).box):
            assert box.reg_max == model.get("reg_max", 16)
            assert box.bin_width == model.get("bin_width", 1.0)


# Combinations -------------------------------------------------------------------------------------


def combined(quality: str, box: str, assigner: str):
    """The config of a combination on a small network; raises UserError for a senseless one."""
    choices = [f"model.quality={quality}", f"model.box={box}", f"assigner.name={assigner}"]
    choices += [f"loss.dfl_weight={0 if box == 'dirac' else 0.25}", "model.reg_max=8"]
    return load_config("gfl_r50_fpn_1x", SMALL + choices)


EVERY = list(itertools.product(QUALITY_MODES, BOX_REPRESENTATIONS, ASSIGNERS))
# The predictor of GFLv2 looks at distributions that the network predicts.
SENSELESS = [row for row in EVERY if row[0] == "distribution_guided" and row[1] != "general"]


def test_the_combinations_are_seven_by_three_by_five():
    assert len(EVERY) == 105 and len(SENSELESS) == 10
    assert {row[0] for row in EVERY} == {*TABLE_1A, "distribution_guided"}
    assert {row[1] for row in EVERY} == {"general", "gaussian", "dirac"}
    assert {row[2] for row in EVERY} == {"atss", "fcos", "retinanet", "tal", "simota"}


@pytest.mark.parametrize(
    ("quality", "box", "assigner"), [row for row in EVERY if row not in SENSELESS]
)
def test_combination_builds_trains_a_step_and_detects(quality, box, assigner):
    assert_learns_and_detects(combined(quality, box, assigner))


@pytest.mark.parametrize(("quality", "box", "assigner"), SENSELESS)
def test_senseless_combination_is_refused_with_the_reason(quality, box, assigner):
    with pytest.raises(UserError) as error:
        combined(quality, box, assigner)
    for part in ("model.quality: distribution_guided", f"model.box: {box}", "not predict"):
        assert part in str(error.value)
    assert "Set model.box: general" in str(error.value)


REFUSED = {
    "nothing to shape": (
        {"model": {"box": "dirac"}},
        r"model\.box: dirac has no distribution .* loss\.dfl_weight 0\.25 .*"
        r"Set loss\.dfl_weight: 0, or model\.box: general",
    ),
    "deviations that nothing trains": (
        {"model": {"box": "gaussian"}, "loss": {"dfl_weight": 0}},
        r"model\.box: gaussian learns its deviations from loss\.dfl_weight alone, which is 0\. "
        r"Set a weight such as 0\.25, or model\.box: dirac",
    ),
    "boxes that nothing trains": (
        {"model": {"box": "dirac"}, "loss": {"giou_weight": 0, "dfl_weight": 0}},
        r"loss: giou_weight and dfl_weight are both 0: no term would train the boxes",
    ),
    "thresholds the wrong way round": (
        {"assigner": {"name": "retinanet", "positive_iou": 0.3}},
        r"assigner: negative_iou is 0\.4, expected at most positive_iou, 0\.3",
    ),
    "no background": (
        {"assigner": {"name": "retinanet", "negative_iou": 0}},
        r"assigner\.negative_iou is 0: Input should be greater than 0",
    ),
    "no width": ({"model": {"bin_width": 0}}, r"model\.bin_width is 0: .* greater than 0"),
    "no radius": ({"assigner": {"center_radius": 0}}, r"assigner\.center_radius is 0: "),
    "no range": ({"assigner": {"regression_range": -1}}, r"assigner\.regression_range is -1: "),
    "an alignment of ATSS": (
        {"assigner": {"soft_label": "aligned"}},
        r"assigner: soft_label: aligned is the alignment of name: tal, but name is atss\. Set "
        r"soft_label: iou, or name: tal",
    ),
    "an alignment that no score learns": (
        {"assigner": {"name": "tal", "soft_label": "aligned"}, "model": {"quality": "iou_branch"}},
        r"assigner\.soft_label: aligned is a label of the joint score, but model\.quality is "
        r"iou_branch\. Set model\.quality: joint, or assigner\.soft_label: iou",
    ),
    "another label": ({"assigner": {"soft_label": "best"}}, r"assigner\.soft_label is 'best': "),
    "no claims": ({"assigner": {"alignment_top_k": 0}}, r"assigner\.alignment_top_k is 0: "),
    "a power of boxes of 0": ({"assigner": {"iou_power": 0}}, r"assigner\.iou_power is 0: "),
    "a negative power of scores": (
        {"assigner": {"score_power": -1}},
        r"assigner\.score_power is -1: ",
    ),
    "no IoUs": ({"assigner": {"dynamic_top_k": 0}}, r"assigner\.dynamic_top_k is 0: "),
    "a negative cost": ({"assigner": {"iou_cost": -1}}, r"assigner\.iou_cost is -1: "),
    "a negative power": ({"loss": {"focal_gamma": -1}}, r"loss\.focal_gamma is -1: "),
    "too few bins": (
        {"model": {"quality": "distribution_guided", "reg_max": 2}},
        r"head\.quality_top_k is 4, but reg_max 2 gives a side 3 probabilities only",
    ),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=list(REFUSED))
def test_senseless_combination_of_values_is_refused(values, message):
    with pytest.raises(UserError) as error:
        parse_config(values)
    assert re.search(message, str(error.value)), str(error.value)


@pytest.mark.parametrize(
    ("key", "close", "near"),
    [
        ("model.quality", "iou_branche", "iou_branch"),
        ("model.box", "gausian", "gaussian"),
        ("assigner.name", "retina", "retinanet"),
    ],
)
def test_misspelt_choice_of_a_combination_names_the_nearest(key, close, near):
    config = load_config("gfl_r50_fpn_1x", [*SMALL, f"{key}={close}"])
    with pytest.raises(UserError, match=f"unknown {re.escape(key)} '{close}'.*{near}"):
        build_model(config, 3)
        build_criterion(config)


# Shipped names ------------------------------------------------------------------------------------


def test_shipped_ablation_loads_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config("ablations/beta_2.5")
    assert config.loss.beta == 2.5 and config == load_config(FOLDER / "beta_2.5.yaml")
    with pytest.raises(UserError, match=r"cannot read config .*; did you mean 'ablations/beta_2"):
        load_config("ablations/beta_25")


def test_installed_package_carries_every_ablation_config(tmp_path):
    """What setup.py would put into a wheel, loaded from there."""
    place = tmp_path / "place"
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(place)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    carried = sorted(path.name for path in (place / "gfl/configs/ablations").iterdir())
    assert carried == [path.name for path in PATHS]
    code = (
        f"import sys; sys.path.insert(0, {str(place)!r})\n"
        "import gfl.config; config = gfl.config.load_config('ablations/beta_2.5')\n"
        "print(gfl.__file__, config.loss.beta)"
    )
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(place / "gfl/__init__.py"), "2.5"]
