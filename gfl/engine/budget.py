"""How many images a step takes, and how many epochs a training: `auto` of the `train` section."""

import math

# Images of a step that are not exceeded, where processes and parts allow it: the reference's batch.
# Learning rates are stated for few images, and rise with the batch; beyond it they would be large.
LARGEST_BATCH = 16
# Steps that an epoch has at least, where the data allow it.
STEPS_OF_AN_EPOCH = 8
# Optimiser steps that a training is to have, and epochs within which it has to do it.
STEPS = 6000
FEWEST_EPOCHS, MOST_EPOCHS = 24, 200


def fitting_batch(
    images: int, parts: int, image_bytes: float, room: float, least: int = 1
) -> tuple[int, str]:
    """The batch size, and why.

    A part gets a power of two of images: as many as the room holds, while the whole batch has 16 at
    most and an epoch 8 steps at least; `least` images in any case.

    Args:
        images: of the training set.
        parts: in which a batch is computed: processes times accumulated parts.
        image_bytes: that one more image of a part costs.
        room: bytes that a part's images may take.
        least: images of a part: 2 where batch norms learn from a coarsest level of a single place.
    """
    held = max(int(room / image_bytes), 0)
    bounds = {
        f"{LARGEST_BATCH} is the most": LARGEST_BATCH // parts,
        f"{images} images make {STEPS_OF_AN_EPOCH} steps or more of it": images
        // (STEPS_OF_AN_EPOCH * parts),
        "no more fit": held,
    }
    reason = min(bounds, key=bounds.__getitem__)
    part = 2 ** int(math.log2(max(bounds[reason], least)))
    if part > max(bounds[reason], 1):
        reason = f"{least} images at least, since the batch norms learn"
    size = f"{image_bytes / 2**20:.0f} MiB an image, {room / 2**30:.1f} GiB to use: {held} fit"
    if not held:
        reason = "not even one image fits: it may run out of memory"
    if parts > 1:
        reason += f"; {parts} parts of {part}"
    return part * parts, f"{reason} ({size})"


def fitting_epochs(images: int, batch_size: int) -> tuple[int, str]:
    """The number of epochs, and why: 6000 optimiser steps, within 24 and 200 epochs."""
    steps = -(-images // batch_size)
    epochs = min(max(math.ceil(STEPS / steps), FEWEST_EPOCHS), MOST_EPOCHS)
    bound = {FEWEST_EPOCHS: ", the least", MOST_EPOCHS: ", the most"}.get(epochs, "")
    return epochs, (
        f"{steps} steps an epoch, {epochs * steps} in all; {STEPS} are wanted, within "
        f"{FEWEST_EPOCHS} to {MOST_EPOCHS} epochs{bound}"
    )
