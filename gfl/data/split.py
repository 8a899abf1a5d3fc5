"""Dividing one set of images into training and validation, or taking a few of it."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

from gfl.data.listing import ListedImage, Listing
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
    names = {_name(image) for image in listing.images}
    if len(names) < 2:
        raise UserError(
            f"{listing.origin} has {len(names)} image: data.val_fraction needs two or more."
        )
    count = min(max(round(fraction * len(names)), 1), len(names) - 1)
    chosen = set(sorted(names, key=lambda name: _draw(name, seed))[:count])
    return _with_images(listing, lambda name: (name in chosen) == (part == "val"))


def few_of(listing: Listing, count: int, seed: int) -> Listing:
    """That many images of a listing, those with objects first; all, if there are no more.

    Which ones depends on file names and seed alone.
    """
    with_objects = {entry.image_id for entry in listing.objects}
    order = sorted(
        listing.images, key=lambda image: (image.id not in with_objects, _draw(_name(image), seed))
    )
    chosen = {_name(image) for image in order[:count]}
    return _with_images(listing, lambda name: name in chosen)


def _name(image: ListedImage) -> str:
    return image.file_name.replace("\\", "/")


def _with_images(listing: Listing, is_taken: Callable[[str], bool]) -> Listing:
    """What a listing says of the images whose names are taken; the share of lost ones stays."""
    images = [image for image in listing.images if is_taken(_name(image))]
    ids = {image.id for image in images}
    objects = [entry for entry in listing.objects if entry.image_id in ids]
    num_listed = round(listing.num_listed * len(images) / max(len(listing.images), 1))
    return replace(
        listing,
        images=images,
        objects=objects,
        num_annotations=len(objects),
        num_listed=num_listed,
    )


def _draw(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode(errors="surrogatepass")).digest()
