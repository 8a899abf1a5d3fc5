"""`gfl.load` and `.predict`: sources, batches, options, and what is refused."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from builders import pictures
from PIL import Image
from test_conversion import small_model, write

import gfl
from gfl.build import build_model, build_postprocess
from gfl.config import merge_values, parse_config
from gfl.engine import compiled
from gfl.engine.checkpoint import save_checkpoint
from gfl.interop.agreement import Differences, Tolerance


@pytest.fixture(scope="module")
def detector(checkpoint):
    return gfl.load(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def files(folder):
    return sorted((folder / "images").iterdir())


def same(one, other, atol: float = 0.0) -> None:
    assert len(one) == len(other)
    for field in ("boxes", "scores", "edge_std"):
        torch.testing.assert_close(getattr(one, field), getattr(other, field), rtol=0, atol=atol)
    assert torch.equal(one.labels, other.labels)


def test_detections_are_in_the_images_own_pixels(detector, files):
    [found] = detector.predict(files[0])
    height, width = cv2.imread(str(files[0])).shape[:2]
    assert len(found) > 5
    limit = torch.tensor([width, height, width, height])
    assert (found.boxes >= 0).all() and (found.boxes <= limit + 1e-3).all()
    assert found.boxes[:, 2].max() > width / 2
    assert (found.scores.diff() <= 0).all() and (found.edge_std > 0).all()
    assert set(found.class_names) <= {"square", "disc"}
    assert found.class_names[0] == ("square", "disc")[found.labels[0]]


def test_a_detector_prints_what_it_is(detector):
    assert repr(detector) == "Detector(resnet18_w16, cpu, classes: square, disc)"


def test_path_array_and_picture_are_the_same(detector, files):
    array = cv2.cvtColor(cv2.imread(str(files[0])), cv2.COLOR_BGR2RGB)
    [wanted] = detector.predict(str(files[0]))
    for image in (Path(files[0]), array, Image.open(files[0]), np.asfortranarray(array)):
        [found] = detector.predict([image])
        same(found, wanted)
    assert len(wanted) > 5


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("pictures"))


def test_each_picture_is_the_same_by_path_array_and_picture(detector, photographs):
    for file in photographs:
        with Image.open(file) as opened:
            array = np.asarray(opened.convert("RGB"))
        [wanted] = detector.predict(file)
        for image in (str(file), Image.open(file), array, array[:, ::-1].copy()[:, ::-1]):
            same(detector.predict(image)[0], wanted)
    assert len(wanted) > 5


def test_each_picture_is_the_same_alone_and_in_batches(detector, photographs):
    """By the rule of exports: pairs of one class with an IoU above 0.99, or a close decision."""
    alone = [detector.predict(file)[0] for file in photographs]
    together = detector.predict(photographs, batch_size=8)
    found, rules = Differences(), build_postprocess(detector.config)
    for one, other in zip(together, alone, strict=True):
        found.add_detections(one, other, rules, Tolerance())
    print(f"\n{len(photographs)} pictures, batches of 1 and 8: {found}")
    assert found.within(Tolerance()), found
    assert found.same > 10 * len(photographs) and found.near <= 0.01 * found.same


def test_lists_and_generators_keep_their_order(detector, files):
    alone = [detector.predict(file)[0] for file in files]
    for images in (files, tuple(files), iter(files), (str(f) for f in files)):
        together = detector.predict(images, batch_size=4)
        for one, other in zip(alone, together, strict=True):
            same(one, other, atol=2e-3)
    assert detector.predict([]) == []


def test_stream_reads_no_more_than_a_batch_ahead(detector, files):
    read = []

    def images():
        for file in files:
            read.append(file)
            yield file

    next(detector.stream(images(), batch_size=2))
    assert len(read) == 2


def test_folding_changes_outputs_by_rounding_only(checkpoint, files):
    folded = gfl.load(checkpoint, device="cpu")
    plain = gfl.load(checkpoint, device="cpu", fuse=False)

    def norms(detector):
        return [m for m in detector.model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]

    assert norms(plain) and not norms(folded)
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        one, other = folded.model(images), plain.model(images)
    torch.testing.assert_close(one.cls_logits, other.cls_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.box_logits, other.box_logits, rtol=1e-4, atol=1e-4)


def test_loading_draws_no_random_number_of_the_users(checkpoint):
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    gfl.load(checkpoint, device="cpu")
    assert torch.equal(torch.rand(1), wanted)


def test_threshold_and_distributions(detector, files):
    [everything] = detector.predict(files[0])
    cut = everything.scores[3].item()
    [few] = detector.predict(files[0], score_threshold=cut, distributions=True)
    assert len(few) == 3 and (few.scores > cut).all()
    assert few.distributions.shape == (3, 4, 9)
    torch.testing.assert_close(few.distributions.sum(-1), torch.ones(3, 4))


def test_half_precision_stays_close(checkpoint, detector, files):
    half = gfl.load(checkpoint, device="cpu", half=True)
    [rough] = half.predict(files[0])
    [exact] = detector.predict(files[0])
    assert rough.boxes.dtype == torch.float32
    assert abs(rough.scores[0] - exact.scores[0]) < 0.05


def assert_agree(one, other, images, batch_size: int) -> None:
    """By the rule of exports: pairs of one class with an IoU above 0.99, or a close decision."""
    found, rules = Differences(), build_postprocess(other.config)
    pairs = zip(one.predict(images, batch_size), other.predict(images, batch_size), strict=True)
    for pair in pairs:
        found.add_detections(*pair, rules, Tolerance())
    assert found.within(Tolerance()), found
    assert found.same > 10 * len(images) and found.near <= 0.01 * found.same


def test_compiled_for_fixed_sizes_finds_the_same(checkpoint, detector, files, monkeypatch):
    """Captured, and run as it is: kernels are the compiler's own business."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    torch._dynamo.reset()
    fast = gfl.load(checkpoint, device="cpu", compile="fixed")
    before = compiled._programs()
    wide = [file for file in files if Image.open(file).width == 128]
    assert_agree(fast, detector, wide, 4)
    assert_agree(fast, detector, wide[:3], 4)  # a black one is added
    assert compiled._programs() - before == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", [True, "fixed"])
def test_compiled_kernels_find_the_same(checkpoint, detector, files, kind):
    torch._dynamo.reset()
    assert_agree(gfl.load(checkpoint, device="cpu", compile=kind), detector, files[:2], 2)


def test_another_kind_of_compiling_is_named(checkpoint):
    with pytest.raises(gfl.UserError, match="compile is 'fast', expected False, True or 'fixed'"):
        gfl.load(checkpoint, device="cpu", compile="fast")


def test_a_public_file_is_loaded_as_it_is(tmp_path, files):
    path = write(tmp_path / "zoo.pth", small_model(), "history_legacy")
    detector = gfl.load(path, device="cpu")
    assert detector.class_names == ("cat", "dog", "owl")
    assert isinstance(detector.predict(files[0])[0], gfl.structures.Detections)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((4, 4), np.uint8), "of shape (4, 4), uint8"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((3, 4, 4), np.uint8), "(3, 4, 4)"),
        (np.zeros((0, 4, 3), np.uint8), "(0, 4, 3)"),
        (3, "an image is a int"),
        ([None], "an image is a NoneType"),
        ("nowhere.jpg", "nowhere.jpg"),
    ],
)
def test_what_is_no_image_is_named(image, says, detector):
    with pytest.raises(gfl.UserError) as refusal:
        detector.predict(image)
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"score_threshold": float("nan")}, "score_threshold is nan"),
        ({"score_threshold": "0.3"}, "score_threshold is '0.3'"),
    ],
)
def test_options_out_of_range_are_named(options, says, detector, files):
    with pytest.raises(gfl.UserError, match=says):
        detector.predict(files[0], **options)


@pytest.mark.parametrize("options", [{"tile": 0}, {"tile": -5}, {"overlap": 1.0}, {"overlap": -1}])
def test_tiles_out_of_range_are_named(options, detector, files):
    with pytest.raises(gfl.UserError, match="expected 32 pixels or more"):
        detector.predict_tiled(files[0], **options)


@pytest.mark.parametrize("half", [False, True])
def test_a_deformable_network_is_folded_and_computes_in_half(half, tmp_path, files):
    backbone = {"name": "resnet18", "pretrained": False, "deformable_stages": [4, 5]}
    path = write(tmp_path / "zoo.pth", small_model(backbone=backbone))
    detector = gfl.load(path, device="cpu", half=half)
    plain = gfl.load(path, device="cpu", fuse=False)
    norms = [m for m in detector.model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    deformable = [m for m in plain.model.backbone.modules() if hasattr(m, "conv_offset")]
    assert len(norms) == len(deformable) == 4  # one behind each; all others are folded
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        one, other = detector.model(images), plain.model(images)
    far = 0.05 if half else 1e-3
    torch.testing.assert_close(one.cls_logits, other.cls_logits, rtol=far, atol=far)
    detector.predict(files[0])


def test_a_network_that_can_not_be_traced_stays_as_it_is():
    from gfl.models.folding import folded

    class Branching(torch.nn.Module):
        def forward(self, images):
            return [images if images.sum() > 0 else -images]

        def parameters(self, recurse=True):
            return iter([torch.zeros(1)])

    network = Branching()
    assert folded(network) is network


def test_a_damaged_checkpoint_of_ours_is_named(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    for change in (
        {"class_map": {"names": ["a", "b", "c"], "category_ids": [1, 2, 3]}},
        {"class_map": {"names": ["a", "b"], "category_ids": [1]}},
        {"version": "1"},
        {"config": None},
        {"model": {}},
    ):
        torch.save({**content, **change}, tmp_path / "bad.pt")
        with pytest.raises(gfl.UserError, match="bad.pt"):
            gfl.load(tmp_path / "bad.pt", device="cpu")


def test_overrides_are_blamed_only_where_there_are_some(checkpoint, tmp_path, folder):
    content = torch.load(checkpoint, weights_only=True)
    del content["config"]["model"]["head"]["norm"]  # as a file of before that key has it
    content["model"].popitem()
    content.pop("ema", None)
    torch.save(content, tmp_path / "bad.pt")
    path = [f"data.path={folder}"]
    with pytest.raises(gfl.UserError, match="bad.pt is damaged, or does not fit its config"):
        gfl.evaluate(tmp_path / "bad.pt", path)
    asked = ["model.head.channels=96"]
    with pytest.raises(gfl.UserError, match=r"overrides ask for \(model.head.channels: 64 -> 96\)"):
        gfl.evaluate(checkpoint, path + asked)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(gfl.UserError, match="does not exist"):
        gfl.load(tmp_path / "best.pt")


def test_deformable_backbones_are_folded_too(checkpoint, files, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    config = merge_values(content["config"], {"model": {"backbone": {"deformable_stages": [4, 5]}}})
    torch.manual_seed(0)
    content["model"] = build_model(parse_config(config), 2).state_dict()
    save_checkpoint(tmp_path / "best.pt", {**content, "config": config})
    folded = gfl.load(tmp_path / "best.pt", device="cpu")
    plain = gfl.load(tmp_path / "best.pt", device="cpu", fuse=False)
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        one, other = folded.model(images), plain.model(images)
    torch.testing.assert_close(one.cls_logits, other.cls_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.box_logits, other.box_logits, rtol=1e-4, atol=1e-4)


def test_pil_images_that_can_not_be_read_are_one_message(detector, files, tmp_path):
    whole = files[0].read_bytes()
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole[: len(whole) // 2])
    closed = Image.open(files[0])
    closed.close()
    for image in (Image.open(cut), closed, Image.new("RGB", (0, 5))):
        with pytest.raises(gfl.UserError, match="the PIL image"):
            detector.predict(image)


def test_numbers_of_numpy_and_a_device_of_torch(checkpoint, files):
    detector = gfl.load(checkpoint, device=torch.device("cpu"))
    [found] = detector.predict(files[0], np.int64(2), np.float32(0.25), distributions=True)
    same(found, detector.predict(files[0], 2, 0.25)[0])
    assert torch.equal(found.edge_interval(np.float32(0.5)), found.edge_interval(0.5))


def test_one_class_by_its_name(detector, files):
    [found] = detector.predict(files[0])
    same(found.filter(0.0, "disc"), found.filter(0.0, ["disc"]))
    assert len(found.filter(0.0, "disc")) > 0


def test_drawing_on_what_is_no_picture_is_one_message(detector, files, tmp_path):
    [found] = detector.predict(files[0])
    picture = gfl.read_image(files[0])
    for wrong in (str(files[0]), Image.open(files[0]), picture[..., 0], picture / 255, None):
        with pytest.raises(gfl.UserError, match="read_image"):
            found.draw(wrong)
        with pytest.raises(gfl.UserError, match="read_image"):
            gfl.save_picture(tmp_path / "x.png", wrong)
    assert list(tmp_path.iterdir()) == []


def test_an_exported_network_is_no_checkpoint(tmp_path):
    for name in ("a.onnx", "a.pt2"):
        (tmp_path / name).write_bytes(b"something")
        with pytest.raises(gfl.UserError, match="exported network.*expected the checkpoint"):
            gfl.evaluate(tmp_path / name)
