"""What an exported network says, as `Detections`: the way back of `gfl.interop.export_forms`."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from gfl.boxes import xyxy_to_ltrb
from gfl.errors import UserError
from gfl.grid import make_grid
from gfl.models.box_representation import BoxRepresentation
from gfl.postprocess import Postprocess
from gfl.structures import Detections, Grid, ImageMeta, Predictions

# Names of the inputs of every form, see `gfl.interop.export_forms`.
INPUTS = ("images", "input_sizes")


@dataclass(frozen=True)
class ExportedForm:
    """How an exported network ends.

    Attributes:
        name: "raw", "decoded" or "nms".
        level_strides: of the pyramid, pixels.
        grid_origin: a name of `gfl.grid.ORIGINS`.
        score_threshold: with "nms", the one inside.
        anchors_per_cell: locations at each place of a level.
    """

    name: str
    level_strides: tuple[int, ...]
    grid_origin: str
    score_threshold: float
    anchors_per_cell: int = 1

    @classmethod
    def of(cls, metadata: dict) -> "ExportedForm":
        """The form of a file, by its metadata."""
        grid = metadata["grid"]
        threshold = metadata["thresholds"]["score"]
        anchors = grid.get("anchors_per_cell", 1)
        return cls(metadata["form"], tuple(grid["strides"]), grid["origin"], threshold, anchors)

    def detections(
        self,
        outputs: dict[str, Tensor],
        size: tuple[int, int],
        postprocess: Postprocess,
        metas: tuple[ImageMeta, ...],
        rescale: bool = True,
    ) -> list[Detections]:
        """Do what is left to do.

        Args:
            outputs: by name, as the form's class lists them.
            size: (h, w) of the network input, padding included.
            postprocess: the rules; with "nms" only its score threshold has a say.
            metas: B entries.
            rescale: as in `Postprocess`.

        Raises:
            UserError: something is asked for that the form has left behind.
        """
        if postprocess.distributions and self.name != "raw":
            raise UserError(
                f"distributions are asked for, but the file has the form {self.name!r}, which "
                "holds none: export with --form raw."
            )
        if self.name == "nms":
            return self._final(outputs, postprocess.score_threshold, metas, rescale)
        levels = tuple(tuple(-(-side // s) for side in size) for s in self.level_strides)
        device = outputs["scores"].device
        grid = make_grid(
            levels, self.level_strides, self.grid_origin, device, self.anchors_per_cell
        )
        rules = copy.copy(postprocess)
        rules.background_channel = False
        if self.name == "raw":
            sides = outputs["distributions"].log().flatten(2)
        else:
            sides, rules.box = _decoded_sides(outputs, grid), DecodedSides()
        return rules(Predictions(outputs["scores"].logit(), sides, grid), metas, rescale)

    def _final(self, outputs, threshold: float, metas, rescale: bool) -> list[Detections]:
        if threshold < self.score_threshold:
            raise UserError(
                f"score_threshold {threshold} is below the {self.score_threshold} inside the "
                "exported file: export with a checkpoint of a lower postprocess.score_threshold, "
                "or with --form decoded."
            )
        found = []
        for row, meta in enumerate(metas):
            # Best first: a higher threshold cuts off the end, and suppressed nothing that stays.
            count = int((outputs["scores"][row] > threshold).sum())
            mine = {name: outputs[name][row, :count] for name in outputs if name != "count"}
            scale = mine["boxes"].new_tensor(meta.scale * 2 if rescale else (1.0,) * 4)
            mine["boxes"], mine["edge_std"] = mine["boxes"] / scale, mine["edge_std"] / scale
            found.append(Detections(**mine))
        return found


class DecodedSides(BoxRepresentation):
    """Sides that are decoded already.

    Its channels are four expected distances and their four deviations, in strides.
    """

    def ltrb_cells(self, sides: Tensor) -> Tensor:
        return sides[..., :4]

    def edge_std_cells(self, sides: Tensor) -> Tensor:
        return sides[..., 4:]


def _decoded_sides(outputs: dict[str, Tensor], grid: Grid) -> Tensor:
    ltrb = xyxy_to_ltrb(grid.centers, outputs["boxes"])
    return torch.cat((ltrb, outputs["edge_std"]), -1) / grid.strides[:, None]
