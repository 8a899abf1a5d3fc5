"""The schema's section about learning from another detector."""

from pydantic import Field

from gfl.schema.section import Float, Probability, Section


class Distill(Section):
    """Learning the side distributions of a larger detector (localisation distillation)."""

    teacher: str | None = None
    """A checkpoint (of gfl, or a public .pth) with the same strides, reg_max and bin_width."""
    weight: Float = Field(default=0.25, gt=0)
    """Of each of the two terms, on positives and on the region around them."""
    temperature: Float = Field(default=10.0, gt=0)
    """Softens both distributions before they are compared."""
    region: Probability = 0.25
    """The region around an object's positives begins at this share of their least DIoU; 1 has
    none."""
