"""What an annotation file or folder says, of whatever format, before any image is looked at."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from gfl.data.findings import Findings
from gfl.errors import UserError, did_you_mean


class ListedImage(NamedTuple):
    """An image as listed; `size` is (h, w) as stated, None where nothing legible is."""

    id: int
    file_name: str
    size: tuple[float, float] | None


class ListedObject(NamedTuple):
    """An object as listed.

    Attributes:
        place: where it stands, for messages; a number is that of a COCO annotation.
        image_id, category_id: of the listing.
        box: x, y, width, height; pixels, or fractions where the listing is `relative`.
        crowd: whether it is a region of many.
        area: pixels, NaN where none is stated.
        segmentation: as a COCO file has it, if it was asked for.
    """

    place: int | str
    image_id: int
    category_id: int
    box: tuple[float, float, float, float]
    crowd: bool
    area: float
    segmentation: object = None


@dataclass
class Listing:
    """Images and objects of one source.

    Attributes:
        origin: file or folder, for messages.
        folder: of the images; file names are relative to it and can not leave it.
        categories: id to name, in order of the labels.
        images: those of this source; ids are distinct.
        objects: of known images and categories.
        num_annotations: how many were listed, whether legible or not.
        num_listed: images that were listed, also those whose annotations can not be read.
        relative: boxes are fractions of width and height.
        lists_classes: `categories` are all there are, not only those that have objects.
    """

    origin: str
    folder: Path
    categories: dict[int, str]
    images: list[ListedImage]
    objects: list[ListedObject]
    num_annotations: int
    num_listed: int
    relative: bool = False
    lists_classes: bool = True
    _names: dict[int, str] = field(default_factory=dict)

    def place(self, entry: ListedObject) -> str:
        """Where an object stands: file, number, image."""
        self._names = self._names or {image.id: image.file_name for image in self.images}
        if isinstance(entry.place, str):
            return entry.place
        name = Path(self.origin).name
        return f"{name}: annotations[{entry.place}] ({self._names.get(entry.image_id)})"

    def with_classes(self, names: Sequence[str]) -> "Listing":
        """The same with the classes `names` too, which have no objects, if it lists no classes."""
        missing = [name for name in names if name not in self.categories.values()]
        if self.lists_classes or not missing:
            return self
        more = enumerate(missing, max(self.categories, default=-1) + 1)
        return replace(self, categories=self.categories | dict(more))

    def keep_classes(self, names: tuple[str, ...], findings: Findings) -> "Listing":
        """The same with the categories `names` only, in that order.

        Raises:
            UserError: there is no category of a name.
        """
        id_of = {name: category_id for category_id, name in self.categories.items()}
        for name in names:
            if name not in id_of:
                raise UserError(
                    f"data.classes names {name!r}, which {self.origin} does not have"
                    f"{did_you_mean(name, id_of)} Its classes: {', '.join(id_of)}."
                )
        kept = {id_of[name]: name for name in names}
        objects = []
        for entry in self.objects:
            if entry.category_id in kept:
                objects.append(entry)
            else:
                findings.add("other_class", self.place(entry), self.categories[entry.category_id])
        left_out = len(self.objects) - len(objects)
        return replace(
            self,
            categories=kept,
            objects=objects,
            num_annotations=self.num_annotations - left_out,
        )
