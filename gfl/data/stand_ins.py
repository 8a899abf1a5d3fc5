"""Images that can not be read while a training runs; others take their places."""

from collections.abc import Callable

from gfl.data.native_batch import NativeBatch
from gfl.errors import UserError
from gfl.structures import Batch


class StandIns:
    """Looks at each batch of a training; names what could not be read, once.

    Args:
        num_images: of the data set.
        max_share: largest fraction of them that may be replaced.
        say: takes messages.
    """

    def __init__(self, num_images: int, max_share: float, say: Callable[[str], None]):
        self.num_images, self.max_share, self.say = num_images, max_share, say
        self._told: set[str] = set()

    def __call__(self, batch: Batch | NativeBatch) -> None:
        """Take the next batch.

        Raises:
            UserError: more images than `max_share` have been replaced by now.
        """
        new = {meta.stands_in_for for meta in batch.metas} - self._told - {""}
        self._told |= new
        for reason in sorted(new):
            self.say(f"WARNING: {reason} Another one takes its place.")
        if len(self._told) > self.max_share * self.num_images:
            raise UserError(
                f"{len(self._told)} of {self.num_images} images could be read when the training "
                f"began and can not be now, more than data.max_skipped {self.max_share:g}: see "
                f"what has become of them. The last: {max(new)}"
            )
