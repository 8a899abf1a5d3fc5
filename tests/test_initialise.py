"""Fine-tuning: `init_from` with the same, other and permuted classes."""

import pytest
import torch
from builders import tiny_values, write_coco
from test_conversion import small_model, write

import gfl
from gfl.build import build_model
from gfl.config import parse_config
from gfl.conversion import convert
from gfl.engine.checkpoint import load_checkpoint
from gfl.initialise import CLASS_OUTPUT, initialise

SOURCE = ("cat", "dog", "owl")


def config_from(path, tmp_path, **more):
    values = tiny_values(tmp_path, **more.pop("train", {}))
    values["model"]["backbone"]["name"] = "resnet18"
    return parse_config({**values, "init_from": str(path), **more})


def network(config, names):
    torch.manual_seed(7)
    return build_model(config, len(names), load_pretrained=False)


@pytest.fixture
def source(tmp_path):
    return small_model(), write(tmp_path / "source.pth", small_model())


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (SOURCE, {0: 0, 1: 1, 2: 2}),
        (("owl", "cat", "dog"), {0: 2, 1: 0, 2: 1}),
        (("fox", "dog"), {1: 1}),
        (("a", "b", "c", "dog", "e"), {3: 1}),
        (("x", "y", "z"), {}),
    ],
    ids=["same", "permuted", "fewer", "more", "others"],
)
def test_rows_follow_their_names_and_all_else_is_copied(names, kept, source, tmp_path):
    theirs, path = source
    config = config_from(path, tmp_path)
    model = network(config, names)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outcome = initialise(model, names, config)
    state, source_state = model.state_dict(), theirs.state_dict()
    for name, value in state.items():
        if name not in CLASS_OUTPUT:
            assert torch.equal(value, source_state[name]), name
    for name in CLASS_OUTPUT:
        for row in range(len(names)):
            want = source_state[name][kept[row]] if row in kept else before[name][row]
            assert torch.equal(state[name][row], want), (name, row)
    assert outcome.kept_classes == tuple(names[row] for row in kept)
    assert outcome.new_classes == tuple(n for i, n in enumerate(names) if i not in kept)
    assert outcome.fraction == 1.0
    assert ", ".join(outcome.kept_classes) in str(outcome)


def test_little_in_common_stops_and_changes_nothing(source, tmp_path):
    _, path = source
    config = config_from(path, tmp_path)
    values = config.to_dict()
    values["model"]["neck"]["channels"] = 48
    values["model"]["head"]["stacked_convs"] = 2
    other = parse_config({**values, "init_min_matched": 0.99})
    model = network(other, SOURCE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(gfl.UserError, match="init_min_matched") as refusal:
        initialise(model, SOURCE, other)
    assert "neck.lateral.0.weight (file (32," in str(refusal.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    told = parse_config({**values, "init_min_matched": 0.5})
    outcome = initialise(model, SOURCE, told)
    assert 0.5 < outcome.fraction < 0.99
    assert any(name == "neck.lateral.0.weight" for name, _, _ in outcome.comparison.mismatched)
    assert "head.cls_tower.1.conv.weight" in outcome.comparison.missing


def test_a_smaller_network_does_not_fit_silently(tmp_path):
    """All of a ResNet-18's tensors are in a ResNet-34's file, and half of that is left over."""
    theirs = small_model(backbone={"name": "resnet34", "pretrained": False})
    path = write(tmp_path / "r34.pth", theirs)
    config = config_from(path, tmp_path)
    with pytest.raises(gfl.UserError, match=r"unexpected +\d+\n +backbone.layer1.2.conv1.weight"):
        initialise(network(config, SOURCE), SOURCE, config)


def test_what_the_file_lacks_must_be_able_to_learn(source, tmp_path):
    _, path = source
    values = config_from(path, tmp_path, init_min_matched=0.3).to_dict()
    values["model"]["backbone"].update(name="resnet34", norm="frozen", frozen_stages=1)
    frozen = parse_config(values)
    with pytest.raises(gfl.UserError, match="would stay random.*backbone.layer1.2.bn1"):
        initialise(network(frozen, SOURCE), SOURCE, frozen)
    values["model"]["backbone"].update(norm="batch", frozen_stages=0)
    learning = parse_config(values)
    assert initialise(network(learning, SOURCE), SOURCE, learning).fraction < 0.9


def test_frozen_random_weights_are_warned_of(tmp_path):
    folder = write_coco(tmp_path / "data", {"train": 4, "val": 2})
    values = tiny_values(folder, epochs=1, freeze=["backbone"])
    gfl.train(parse_config(values), work_dir=tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "WARNING: train.freeze keeps backbone at random weights" in log


def test_changed_conventions_are_said(source, tmp_path):
    _, path = source
    config = config_from(path, tmp_path)
    values = config.to_dict()
    values["model"]["grid_origin"] = "cell_center"
    values["data"]["color_order"] = "bgr"
    changed = parse_config(values)
    outcome = initialise(network(changed, SOURCE), SOURCE, changed)
    assert "model.grid_origin was corner there and is cell_center here" in outcome.changed
    assert "data.color_order was rgb there and is bgr here" in outcome.changed


def test_the_background_channel_goes_with_the_classes(tmp_path):
    head = {"channels": 64, "stacked_convs": 1, "background_channel": True}
    theirs = small_model(quality="distribution_guided", head=head)
    path = write(tmp_path / "v2.pth", theirs)
    content, _ = convert(path)
    config = parse_config({**content["config"], "init_from": str(path)})
    names = ("fox", "owl")
    model = network(config, names)
    initialise(model, names, config)
    for name in CLASS_OUTPUT:
        want, got = theirs.state_dict()[name], model.state_dict()[name]
        assert torch.equal(got[1], want[2]) and torch.equal(got[2], want[3])


@pytest.mark.parametrize("converted", [False, True], ids=["public file", "converted file"])
def test_fine_tuning_trains_from_the_weights(converted, tmp_path):
    from gfl.cli.convert import main

    folder = write_coco(tmp_path / "data", {"train": 8, "val": 4}, categories=((3, "owl"),))
    path = write(tmp_path / "source.pth", small_model())
    if converted:
        assert main([str(path), "--out", str(tmp_path / "source.pt")]) == 0
        path = tmp_path / "source.pt"
    # After a warm-up of a single step the average has kept but half of its start.
    values = tiny_values(folder, epochs=1, lr=1e-12, ema_decay=0.9, ema_warmup_steps=1)
    values["model"]["backbone"].update(name="resnet18", norm="frozen", frozen_stages=1)
    config = parse_config({**values, "init_from": str(path)})
    work_dir = tmp_path / "run"
    gfl.train(config, work_dir=work_dir)
    log = (work_dir / "log.txt").read_text()
    assert "100.0% of the tensors fit" in log
    assert "classes with rows of the same name: owl" in log
    trained, source = load_checkpoint(work_dir / "last.pt"), convert(tmp_path / "source.pth")[0]
    for weights in ("model", "ema"):
        for name, value in trained[weights].items():
            want = source["model"][name]
            want = want[2:3] if name in CLASS_OUTPUT else want
            torch.testing.assert_close(value, want, rtol=1e-4, atol=1e-4, msg=name)
    # A resumed run goes on with its own weights.
    path.unlink()
    gfl.train(config, work_dir=work_dir, resume=True)
