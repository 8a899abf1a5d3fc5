"""What can be wrong with a data set, what is then done, and the record of what was found."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from gfl.errors import UserError, printable

# Names of a kind that a finished data set keeps; a `Findings` holds all of them.
SHOWN = 5


class Kind(NamedTuple):
    """A kind of defect.

    Attributes:
        what: noun phrase in the plural.
        policies: legal ones, the default first. repair: mend it as `repaired` says; skip: leave the
            item out; fail: stop. ("note",) is no defect, merely reported.
        repaired: what the report says after a repair.
    """

    what: str
    policies: tuple[str, ...]
    repaired: str = ""

    @property
    def is_note(self) -> bool:
        return self.policies == ("note",)


_REPAIR = ("repair", "skip", "fail")
_SKIP = ("skip", "fail")
_NOTE = ("note",)

KINDS = {
    # Image files
    "missing_image": Kind("images whose file is missing", _SKIP),
    "unsafe_path": Kind("images outside their image folder", ("fail", "skip")),
    "other_file_name": Kind(
        "images named otherwise", _REPAIR, "images found under a slightly different name"
    ),
    "duplicate_file": Kind(
        "repeated images of one file",
        ("skip", "repair", "fail"),
        "repeated images of one file joined with the first",
    ),
    "unreadable_image": Kind("unreadable images", _SKIP),
    "truncated_image": Kind("images cut off", _SKIP),
    "missing_end_marker": Kind(
        "JPEG files without end marker", _REPAIR, "JPEG files read without their end marker"
    ),
    "wrong_extension": Kind(
        "images of another format than their name says", _REPAIR, "images read by content, not name"
    ),
    "exif_rotated": Kind("images with EXIF orientation", _REPAIR, "images turned upright (EXIF)"),
    "invalid_exif": Kind(
        "images with an EXIF orientation that does not exist",
        _REPAIR,
        "images with an EXIF orientation that does not exist, taken as upright",
    ),
    "missing_size": Kind(
        "images without a legible size", _REPAIR, "image sizes taken from the file, none stated"
    ),
    "wrong_size": Kind(
        "images of another size than stated, boxes fit the file",
        _REPAIR,
        "image sizes taken from the file, another one stated",
    ),
    "boxes_of_other_size": Kind(
        "images of another size than stated, boxes do not fit the file", _SKIP
    ),
    "bad_annotation_file": Kind("annotation files that can not be read", _SKIP),
    # Objects
    "bad_annotation": Kind("annotations that are not legible", _SKIP),
    "number_as_text": Kind("numbers written as text", _REPAIR, "numbers read from text"),
    "duplicate_annotation_id": Kind(
        "annotations whose id is taken", _REPAIR, "annotations renumbered, their id was taken"
    ),
    "missing_annotation_id": Kind("annotations without id", _REPAIR, "annotations given an id"),
    "unknown_category": Kind("boxes of unknown categories", _SKIP),
    "unknown_image": Kind("boxes of unknown images", _SKIP),
    "bad_box": Kind("boxes that are not four numbers", _SKIP),
    "not_finite_box": Kind("boxes that are not finite", _SKIP),
    "degenerate_box": Kind("boxes without positive width and height", _SKIP),
    "normalised_box": Kind("boxes that look like fractions of the image", _SKIP),
    "absurd_box": Kind(
        "boxes over ten images wide", ("skip", "repair", "fail"), "absurd boxes clipped"
    ),
    "outside_box": Kind("boxes wholly outside their image", _SKIP),
    "small_box": Kind("boxes under 1 pixel", _SKIP),
    "clipped_box": Kind(
        "boxes reaching out of their image", _REPAIR, "boxes clipped to their image"
    ),
    "duplicate_box": Kind("repeated boxes", _SKIP),
    "polygon": Kind("polygons", _REPAIR, "polygons read as their bounding box"),
    "emptied_image": Kind(
        "images that lost all boxes",
        _REPAIR,
        "images that lost all boxes, kept as background",
    ),
    # Whole files
    "normalised_file": Kind(
        "files of boxes in fractions of the image",
        ("fail", "repair"),
        "files of boxes in fractions",
    ),
    "xyxy_file": Kind(
        "files of boxes as x1 y1 x2 y2", ("fail", "repair"), "files of boxes as x1 y1 x2 y2"
    ),
    # No defects
    "divided": Kind("data sets divided by data.val_fraction", _NOTE),
    "overfit": Kind("data sets cut down by data.overfit", _NOTE),
    "other_class": Kind("boxes of classes that data.classes leaves out", _NOTE),
    "lost_with_image": Kind("boxes of images that are left out", _NOTE),
    "missing_label_file": Kind("images without label file (background)", _NOTE),
    "difficult": Kind("objects marked difficult (used as any other)", _NOTE),
}


class Finding(NamedTuple):
    """All that was found of one kind; `items` says where, the first few in a finished data set."""

    kind: str
    count: int
    policy: str
    items: tuple[str, ...]


class Findings:
    """The record of one reading of a data set.

    Args:
        policy: {kind: policy} where it is not the default.
        fail: False lists what must not be, and leaves it out, without stopping.
    """

    def __init__(self, policy: Mapping[str, str] | None = None, fail: bool = True):
        self.policy = {kind: entry.policies[0] for kind, entry in KINDS.items()} | dict(
            policy or {}
        )
        self.fail = fail
        self._items: dict[str, list[str]] = {}

    def add(self, kind: str, item: str, detail: str = "") -> bool:
        """Record a defect; tells whether the item stays.

        Args:
            kind: of `KINDS`.
            item: where it is.
            detail: what is there.
        """
        text = printable(f"{item}: {detail}" if detail else item)
        self._items.setdefault(kind, []).append(text.replace("\n", " "))
        return self.policy[kind] in ("repair", "note")

    def all(self) -> list[Finding]:
        """What was found, in the order of `KINDS`, with every item."""
        return [
            Finding(kind, len(self._items[kind]), self.policy[kind], tuple(self._items[kind]))
            for kind in KINDS
            if kind in self._items
        ]

    def summary(self) -> tuple[Finding, ...]:
        """What was found, with the first `SHOWN` items of each kind."""
        return tuple(finding._replace(items=finding.items[:SHOWN]) for finding in self.all())

    def counts(self) -> Counter:
        """Numbers by what was done, for the log."""
        return Counter({phrase(finding): finding.count for finding in self.all()})

    def raise_failures(self) -> None:
        """Stop for kinds whose policy is fail.

        Raises:
            UserError: names the first item of each such kind.
        """
        failed = [finding for finding in self.all() if finding.policy == "fail"]
        if failed and self.fail:
            raise UserError(" ".join(_refusal(finding) for finding in failed))


def phrase(finding: Finding) -> str:
    """What was done with the findings of a kind."""
    kind = KINDS[finding.kind]
    if finding.policy == "repair":
        return kind.repaired
    return {"skip": f"{kind.what} left out", "fail": f"{kind.what}: not allowed"}.get(
        finding.policy, kind.what
    )


def _refusal(finding: Finding) -> str:
    others = [p for p in KINDS[finding.kind].policies if p != "fail"]
    return (
        f"{finding.count} {KINDS[finding.kind].what}, the first is {finding.items[0]}. Mend the "
        f"data, or set data.policy.{finding.kind}={' or '.join(others)}."
    )
