"""Learning side distributions from a teacher."""

import copy
import math

import pytest
import torch
from builders import make_targets, pyramid, random_predictions, tiny_values, write_coco
from conftest import assert_close

import gfl
import gfl.engine.train as loop
import gfl.training
from gfl.assigner import ATSSAssigner, FCOSAssigner
from gfl.boxes import aligned_diou
from gfl.build import (
    build_criterion,
    build_dataset,
    build_model,
    build_normalize,
    build_train_loader,
)
from gfl.config import parse_config
from gfl.engine.bad_batch import BadBatches
from gfl.engine.checkpoint import load_checkpoint
from gfl.errors import UserError
from gfl.grid import make_grid
from gfl.losses import GFLCriterion, distribution_kl_loss
from gfl.losses.distillation import LocalizationDistillation
from gfl.models.box_representation import GeneralBox
from gfl.structures import Assignment, Predictions


def test_kl_by_hand():
    # Student (1/2, 1/2), teacher (3/4, 1/4), T = 1, mean over two bins.
    teacher = torch.tensor([3.0, 1.0]).log()
    want = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert_close(distribution_kl_loss(torch.zeros(2), teacher, 1.0), want)


def test_kl_softens_both_and_keeps_the_gradients_scale():
    # At T = 2 the teacher's odds of 9 are 3; the student stays even. Times T^2 = 4.
    teacher = torch.tensor([9.0, 1.0]).log()
    want = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert_close(distribution_kl_loss(torch.zeros(2), teacher, 2.0), want)


def test_kl_of_equals_is_zero_and_teaches_the_student_alone():
    student, teacher = torch.randn(5, 9, requires_grad=True), torch.randn(5, 9, requires_grad=True)
    assert distribution_kl_loss(student, student, 10.0).abs().max() < 1e-6
    distribution_kl_loss(student, teacher, 10.0).sum().backward()
    assert teacher.grad is None and student.grad.abs().max() > 0


def test_diou_by_hand():
    # IoU 1/7, centres 1 apart in x and y, enclosing box 3 x 3.
    one, other = torch.tensor([0.0, 0, 2, 2]), torch.tensor([1.0, 1, 3, 3])
    assert_close(aligned_diou(one, other), 1 / 7 - 2 / 18)
    assert_close(aligned_diou(one, one), 1.0)
    assert_close(aligned_diou(one, torch.tensor([8.0, 0, 10, 2])), -64 / 104)


# One row of five locations, 8 pixels apart; anchors of 16 x 16. The object is the anchor of the
# second location. DIoUs: the first and third are 8 away, IoU 1/3, diagonal 24^2 + 16^2 = 832;
# the fourth touches, the fifth is 24 away.
GRID = make_grid(((1, 5),), (8,))
OBJECT = [0.0, -8.0, 16.0, 8.0]
NEAR = 1 / 3 - 64 / 832


def place(index: list[int]) -> Assignment:
    """Which object each of the five locations answers for, by hand."""
    gt_index = torch.tensor([index])
    slots = torch.arange(5).expand(1, 5)
    return Assignment(gt_index, torch.ones(1, 5), slots, gt_index >= 0)


def region(assignment: Assignment, share: float, boxes=(OBJECT,)) -> list[bool]:
    distillation = LocalizationDistillation(3, region=share, anchor_scale=2.0)
    targets = make_targets([list(boxes)], [[0] * len(boxes)], size=(8, 40))
    return distillation.valuable_region(GRID, targets, assignment)[0].tolist()


def test_the_valuable_region_by_hand():
    only = place([-1, 0, -1, -1, -1])  # DIoU 1: what reaches the share, and is no positive
    assert region(only, NEAR - 1e-4) == [True, False, True, False, False]
    assert region(only, NEAR + 1e-4) == [False] * 5
    assert region(only, 1.0) == [False] * 5
    # With the first a positive too, the least DIoU is NEAR: the third is not below it.
    both = place([0, 0, -1, -1, -1])
    assert region(both, 0.25) == [False] * 5


def test_the_valuable_region_knows_left_out_locations_other_objects_and_none():
    assert region(place([-1] * 5), 0.25) == [False] * 5
    assert region(place([-1] * 5), 0.25, boxes=()) == [False] * 5
    left_out = place([-1, 0, -1, -1, -1])
    left_out = Assignment(
        left_out.gt_index, torch.tensor([[0.0, 1, 1, 1, 1]]), left_out.slots, left_out.slot_positive
    )
    assert region(left_out, 0.2) == [False, False, True, False, False]
    # What is a positive of a second object is in nobody's region.
    second = [16.0, -8.0, 32.0, 8.0]
    assert region(place([-1, 0, -1, 1, -1]), 0.2, (OBJECT, second)) == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert region(place([-1, 0, 1, -1, -1]), 0.2, (OBJECT, second))[2] is False


def test_terms_by_hand():
    """Weights 0.5 and 0.1 on two positives, one location in the region, T = 1."""
    kl = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    student = torch.zeros(1, 5, 8)
    teacher = torch.zeros(1, 5, 8)
    teacher[0, 1] = torch.tensor([3.0, 1.0] * 4).log()  # a positive
    teacher[0, 2] = torch.tensor([3.0, 1.0] * 2 + [1.0] * 4).log()  # in the region: two sides
    scores = torch.zeros(1, 5, 1)
    distillation = LocalizationDistillation(2, weight=0.5, temperature=1.0, anchor_scale=2.0)
    got = distillation(
        Predictions(scores, student, GRID),
        Predictions(scores, teacher, GRID),
        make_targets([[OBJECT]], [[0]], size=(8, 40)),
        place([-1, 0, -1, -1, -1]),
        torch.tensor([[0.0, 0.4, 0, 0, 0]]),
        torch.tensor(2.0),
    )
    # The region is the first and the third location.
    assert_close(got["loss_ld"], 0.5 * 0.4 * kl / 2)
    assert_close(got["loss_ld_region"], 0.5 * (kl / 2) / 2)


@pytest.mark.parametrize("assigner", [ATSSAssigner(), FCOSAssigner()], ids=["atss", "fcos"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(assigner):
    grid = pyramid(96, 128)
    predictions = random_predictions(grid, 2)
    targets = make_targets([[[10.0, 12, 90, 80]], []], [[1], []], size=(96, 128))
    plain = GFLCriterion(assigner, GeneralBox(16))
    taught = GFLCriterion(assigner, GeneralBox(16), distillation=LocalizationDistillation(17))
    same = taught(predictions, targets, predictions)
    for name, value in plain(predictions, targets).items():
        assert torch.equal(same[name], value)
    assert same["loss_ld"].abs() < 1e-5 and same["loss_ld_region"].abs() < 1e-5
    other = taught(predictions, targets, random_predictions(grid, 2))
    assert other["loss_ld"] > 0 and other["loss_ld_region"] > 0


def test_without_objects_nothing_is_taught_and_all_is_finite():
    grid = pyramid(64, 64)
    student = random_predictions(grid, 1)
    criterion = GFLCriterion(
        ATSSAssigner(), GeneralBox(16), distillation=LocalizationDistillation(17)
    )
    losses = criterion(student, make_targets([[]], size=(64, 64)), random_predictions(grid, 1))
    assert losses["loss_ld"] == 0 and losses["loss_ld_region"] == 0
    sum(losses.values()).backward()
    assert student.box_logits.grad.abs().sum() == 0


BF16 = {"precision": "bf16"}

# Whole trainings --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A data folder and a teacher trained on it, with other classes in another order."""
    root = tmp_path_factory.mktemp("taught")
    folder = write_coco(root / "data", {"train": 12, "val": 2})
    gfl.train(parse_config(tiny_values(folder, epochs=1)), work_dir=root / "teacher")
    return folder, root / "teacher" / "best.pt"


def student_config(taught, **model):
    folder, teacher = taught
    values = copy.deepcopy(tiny_values(folder, epochs=1))
    values["model"] |= model
    return parse_config(values | {"distill": {"teacher": str(teacher)}})


def test_training_with_a_teacher_resumes_and_keeps_it_out_of_the_checkpoint(
    taught, tmp_path, monkeypatch
):
    config = student_config(taught, head={"channels": 64, "stacked_convs": 2})
    gfl.train(config, work_dir=tmp_path / "whole")
    real = loop.train_step

    def dies(state, *args):
        if state.step == 2:
            raise InterruptedError
        return real(state, *args)

    monkeypatch.setattr(loop, "train_step", dies)
    with pytest.raises(InterruptedError):
        gfl.train(config, work_dir=tmp_path / "killed")
    monkeypatch.undo()
    gfl.train(config, work_dir=tmp_path / "killed", resume=True)
    whole, resumed = (load_checkpoint(tmp_path / run / "last.pt") for run in ("whole", "killed"))
    assert all(torch.equal(v, resumed["model"][k]) for k, v in whole["model"].items())
    own = gfl.build.build_model(config, 2).state_dict().keys()
    assert whole["model"].keys() == own
    metrics = (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert '"loss_ld":' in metrics and '"loss_ld_region":' in metrics


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"reg_max": 10}, "model.reg_max is 8 there and 10 here"),
        ({"bin_width": 0.5}, "model.bin_width is 1.0 there and 0.5 here"),
        ({"grid_origin": "cell_center"}, "model.grid_origin is corner there"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(taught, tmp_path, model, said):
    with pytest.raises(UserError, match="can not teach this network") as caught:
        gfl.train(student_config(taught, **model), work_dir=tmp_path / "run")
    assert said in str(caught.value)


def test_a_box_without_distributions_and_a_missing_teacher_are_refused(taught, tmp_path):
    folder, teacher = taught
    values = tiny_values(folder) | {"distill": {"teacher": str(teacher)}}
    values["model"] |= {"box": "gaussian"}
    with pytest.raises(UserError, match="distill.teacher teaches side distributions"):
        parse_config(values)
    values = tiny_values(folder) | {"distill": {"teacher": str(tmp_path / "none.pt")}}
    with pytest.raises(UserError, match="none.pt"):
        gfl.train(parse_config(values), work_dir=tmp_path / "run")


def test_an_image_that_spoils_the_teacher_alone_is_named(taught, tmp_path):
    config = student_config(taught)
    model, calls = build_model(config, 2).eval(), []

    def teacher(images):
        """Not a number for the second image."""
        calls.append(len(images))
        found = model(images)
        spoiled = torch.nan if len(calls) == 2 else 0.0
        return Predictions(found.cls_logits, found.box_logits + spoiled, found.grid)

    with torch.no_grad():
        loader = build_train_loader(config, build_dataset(config, "train"))
        batch = next(iter(loader))
        loader.close()
        normalize, criterion = build_normalize(config, torch.device("cpu")), build_criterion(config)
        bad = BadBatches(tmp_path, model, criterion, normalize, teacher=teacher)
        assert bad.culprits([batch]) == [batch.metas[1].image_id]
    assert calls == [1] * len(batch.metas)


def test_half_precision_is_tried_on_the_teacher_too(taught, tmp_path, monkeypatch):
    """A student that half precision suits would else skip every step for its teacher's sake."""

    def breaks_what_is_frozen(model, images, precision):
        frozen = not any(p.requires_grad for p in model.parameters())
        return f"box_logits are not finite in {precision}, but are in fp32" if frozen else None

    monkeypatch.setattr(gfl.training, "disagreement", breaks_what_is_frozen)
    config = student_config(taught)
    config = parse_config(config.to_dict() | {"train": config.to_dict()["train"] | BF16})
    gfl.train(config, work_dir=tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "last.pt")["precision"]["used"] == "fp32"
    said = "train.precision bf16 is turned off: the teacher's box_logits are not finite"
    assert said in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("key", "value"), [("color_order", "bgr"), ("mean", [0.0] * 3), ("std", [1.0] * 3)]
)
def test_a_teacher_of_other_pixels_is_refused(taught, tmp_path, key, value):
    config = student_config(taught).with_values({f"data.{key}": value})
    with pytest.raises(UserError, match=rf"data\.{key} is"):
        gfl.train(config, work_dir=tmp_path / "run")
