"""A step that was not finite: which images, and the batch itself for inspection."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gfl.data.batch import Normalize
from gfl.distributed import alone
from gfl.engine.checkpoint import write_atomically
from gfl.engine.finite import not_finite
from gfl.engine.precision import PRECISIONS
from gfl.structures import Batch, Predictions

# Files that a work directory holds at most; each is a batch of images.
LIMIT = 5


class BadBatches:
    """Looks for the cause of a step that was skipped, and keeps its batch in `bad_batches/`.

    Args:
        folder: of the files.
        model: the bare network.
        criterion, normalize: as in the loop.
        precision: of the forward.
        files_of: file names of an image id, where they are known.
        teacher: as in the loop.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        criterion: Callable,
        normalize: Normalize,
        precision: str = "fp32",
        files_of: Callable[[int], Sequence[str]] = lambda image_id: (),
        teacher: Callable[[Tensor], Predictions] | None = None,
    ):
        self.folder = folder
        self.model = model
        self.criterion = criterion
        self.normalize = normalize
        self.precision = precision
        self.files_of = files_of
        self.teacher = teacher

    def weights_are_finite(self) -> bool:
        """Whether it is the network rather than the data."""
        return not not_finite(self.model.state_dict())

    @alone()
    @torch.no_grad()
    def culprits(self, batches: Sequence[Batch]) -> list[int]:
        """Ids of the images whose own losses are not finite, each computed alone.

        Of a picture composed of several, all: the first is the one that it stands for.

        Other processes take no part. Statistics of batch-norm are the learned ones here, so a cause
        that lies in the whole batch is not found.
        """
        was_training = self.model.training
        self.model.eval()
        device = self.normalize.mean.device
        found = []
        for batch in (batch.to("cpu") for batch in batches):
            for row in range(len(batch.metas)):
                one = _row(batch, row).to(device)
                images = self.normalize(one.images, one.input_sizes)
                half = self.precision != "fp32"
                with torch.autocast(device.type, PRECISIONS[self.precision], enabled=half):
                    predictions = self.model(images)
                    taught = () if self.teacher is None else (self.teacher(images),)
                losses = self.criterion(predictions, one.targets, *taught)
                if not all(loss.isfinite().item() for loss in losses.values()):
                    found += [batch.metas[row].image_id, *batch.metas[row].others]
        self.model.train(was_training)
        return found

    def names(self, image_ids: Sequence[int]) -> str:
        """Ids with file names."""
        named = [(i, ", ".join(str(name) for name in self.files_of(i))) for i in image_ids[:16]]
        return ", ".join(f"{i} ({files})" if files else str(i) for i, files in named)

    def save(
        self, step: int, batches: Sequence[Batch], culprits: Sequence[int], losses: dict
    ) -> str:
        """Write step_N.pt unless there are enough; say what was done with it.

        The file loads with `weights_only=True`: `images` (uint8, as the network gets them before
        normalisation), `input_sizes`, `targets`, `metas`, `losses`, `image_ids`, `culprits`,
        `files`. Of a batch in several parts it holds the part with the first culprit.
        """
        path = self.folder / f"step_{step}.pt"
        if len(list(self.folder.glob("step_*.pt"))) >= LIMIT:
            return f"not kept, {self.folder} holds {LIMIT} already"
        ids = [[meta.image_id for meta in batch.metas] for batch in batches]
        part = next((i for i, own in enumerate(ids) if set(own) & set(culprits[:1])), 0)
        batch = batches[part].to("cpu")
        shown = [i for meta in batch.metas for i in (meta.image_id, *meta.others)]
        content = {
            "step": step,
            "images": batch.images,
            "input_sizes": batch.input_sizes,
            "targets": {f.name: getattr(batch.targets, f.name) for f in fields(batch.targets)},
            "metas": [asdict(meta) for meta in batch.metas],
            "losses": losses,
            "image_ids": ids[part],
            "culprits": list(culprits),
            "files": {i: [str(name) for name in self.files_of(i)] for i in shown},
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file: torch.save(content, file))
        except OSError as error:
            return f"{path} could not be written: {error.strerror or error}"
        return f"kept in {path}"


def _row(batch: Batch, row: int) -> Batch:
    """One image of a batch, with its padding."""
    rows = slice(row, row + 1)
    targets = {f.name: getattr(batch.targets, f.name)[rows] for f in fields(batch.targets)}
    return Batch(
        batch.images[rows],
        batch.input_sizes[rows],
        replace(batch.targets, **targets),
        batch.metas[rows],
    )
