"""A learning-rate range test of a config, on a network that is thrown away: `gfl lr-test`."""

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure

from gfl import build
from gfl.automatic import choose_all
from gfl.config import Config
from gfl.distributed import process_group
from gfl.engine.checkpoint import write_atomically
from gfl.engine.memory import explained, worker_losses_explained
from gfl.engine.rate_range import RateRange, range_test
from gfl.engine.train import ADVICE, train_step
from gfl.errors import UserError
from gfl.initialise import initialise
from gfl.sample import drawn_if_missing
from gfl.structures import Batch
from gfl.teacher import load_teacher

CSV, PICTURE = "lr_test.csv", "lr_test.png"
# From the config's train.lr down and up.
REACH = 1000.0
FEWEST_STEPS = 20


def rate_test(
    config: Config,
    out: str | Path,
    steps: int = 100,
    lowest: float | None = None,
    highest: float | None = None,
    say=print,
) -> RateRange:
    """Train a new network at rising values of train.lr; write lr_test.csv and lr_test.png.

    No warm-up and no averages; everything else is the config's, weights to start from too. Nothing
    of the network is kept, and no work directory is touched.

    Args:
        config: may say auto.
        out: folder of the two files, made where it is missing.
        steps: at most.
        lowest, highest: values of train.lr; default a thousandth of the config's, and a thousand
            times it.
        say: takes what was chosen for auto.

    Returns:
        Rates are values of train.lr.

    Raises:
        UserError: also for torchrun, and for rates or steps that make no test.
    """
    if "RANK" in os.environ:
        raise UserError("lr-test is one process: run it without torchrun.")
    lowest = config.train.lr / REACH if lowest is None else lowest
    highest = config.train.lr * REACH if highest is None else highest
    if not 0 < lowest < highest or steps < FEWEST_STEPS:
        raise UserError(
            f"--lowest {lowest:g} --highest {highest:g} --steps {steps}: expected 0 < lowest < "
            f"highest, and {FEWEST_STEPS} steps or more."
        )
    place = Path(out)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make folder {out}: {error.strerror or error}") from None
    with process_group(config.device) as device:
        found = _tried(config, device, steps, lowest, highest, say)
    table, picture = _csv(found).encode(), _picture(found)
    try:
        write_atomically(place / CSV, lambda file: file.write(table))
        write_atomically(place / PICTURE, lambda file: file.write(picture))
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}") from None
    return found


def summary_lines(found: RateRange, steps: int) -> list[str]:
    """What the test says, in words."""
    reach = f"train.lr {found.rates[0]:.3g} to {found.rates[-1]:.3g}"
    ending = found.ending or "the last rate was reached: it did not diverge"
    lines = [f"{len(found.rates)} of {steps} steps, {reach}: {ending}"]
    if found.suggestion is None:
        return [*lines, "no suggestion: the loss did not fall. Try a lower --lowest, more --steps."]
    low, high = found.suggestion
    least = found.rates[found.least]
    return [
        *lines,
        f"suggestion: train.lr between {low:.2g} and {high:.2g}",
        f"because the loss falls fastest at {found.rates[found.steepest]:.2g}, and is least at "
        f"{least:.2g}, of which a tenth is {least / 10:.2g}; a suggestion of a short test, with "
        "this batch size and optimizer, not a measurement of AP",
    ]


def _tried(
    config: Config, device: torch.device, steps: int, lowest: float, highest: float, say
) -> RateRange:
    """The test itself."""
    drawn_if_missing(config.data)
    torch.manual_seed(config.train.seed)
    config, dataset, choices = choose_all(config, None, None, device)
    for choice in choices:
        say(str(choice))
    loader = build.build_train_loader(config, dataset)
    steps_per_epoch = loader.batch_sampler.steps_per_epoch
    names = tuple(dataset.class_names)
    fresh = config.init_from is None
    state = build.build_state(config, len(names), steps_per_epoch, device, load_pretrained=fresh)
    if not fresh:
        initialise(state.model, names, config)
    state = replace(state, ema=None)
    teacher = load_teacher(config, state.model, device)
    parts = build.build_criterion(config), build.build_normalize(config, device)
    pad_to = build.build_pad_to(config, dataset.sizes)
    options = build.build_loop_options(config, steps_per_epoch, pad_to)
    scale = build.build_schedule(config, steps_per_epoch).lr / config.train.lr
    batches = _groups(loader, config.train.accumulate)
    state.model.train()

    def step(rate: float) -> float:
        state.schedule = lambda _: rate * scale
        group = next(batches)
        with explained(group, ADVICE):
            losses, _ = train_step(state, state.model, group, *parts, options, teacher)
        state.step += 1
        return float(sum(losses.values()))

    try:
        return range_test(step, lowest, highest, steps)
    finally:
        loader.close()


def _groups(loader, size: int) -> Iterator[list[Batch]]:
    """The batches of one step after another, without end."""
    epoch, group = 0, []
    while True:
        loader.batch_sampler.set_position(epoch)
        for batch in worker_losses_explained(loader):
            group.append(batch)
            if len(group) == size:
                yield group
                group = []
        epoch += 1


def _csv(found: RateRange) -> str:
    rows = zip(found.rates, found.losses, found.smoothed, strict=True)
    return "\n".join(["train.lr,loss,smoothed", *(",".join(map(repr, row)) for row in rows)]) + "\n"


def _picture(found: RateRange) -> bytes:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, color="C0", alpha=0.35, linewidth=1, label="loss")
    axes.plot(found.rates, found.smoothed, color="C0", label="smoothed")
    if found.suggestion is not None:
        axes.axvspan(*found.suggestion, color="C2", alpha=0.2, label="suggestion")
        axes.axvline(found.rates[found.steepest], color="C2", linestyle="--", label="steepest")
        axes.axvline(found.rates[found.least], color="C1", linestyle=":", label="least")
    top = max(found.smoothed[: found.least + 1])
    axes.set(xscale="log", xlabel="train.lr", ylabel="loss", ylim=(0, 1.5 * top))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    content = io.BytesIO()
    figure.savefig(content, dpi=120)
    return content.getvalue()
