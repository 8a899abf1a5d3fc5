"""Dividing one set of images into training and validation."""

import hashlib
from dataclasses import replace

from gfl.data.listing import Listing
from gfl.errors import UserError


def split_part(listing: Listing, part: str, fraction: float, seed: int) -> Listing:
    """The training or validation part of a listing.

    An image's place depends on its file name and the seed alone: the same on every run and
    machine, in whatever order the images are listed. Each part gets one image at least.

    Args:
        listing: all images.
        part: "train" or "val".
        fraction: of the images that are for validation.
        seed: another one, another division.

    Raises:
        UserError: there are fewer than two images.
    """
    names = {image.file_name.replace("\\", "/") for image in listing.images}
    if len(names) < 2:
        raise UserError(
            f"{listing.origin} has {len(names)} image: data.val_fraction needs two or more."
        )
    count = min(max(round(fraction * len(names)), 1), len(names) - 1)
    chosen = set(sorted(names, key=lambda name: _draw(name, seed))[:count])
    images = [
        image
        for image in listing.images
        if (image.file_name.replace("\\", "/") in chosen) == (part == "val")
    ]
    ids = {image.id for image in images}
    objects = [entry for entry in listing.objects if entry.image_id in ids]
    return replace(listing, images=images, objects=objects, num_annotations=len(objects))


def _draw(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode(errors="surrogatepass")).digest()
