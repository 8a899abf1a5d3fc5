"""The schema of the configuration: keys, units, defaults, legal values and combinations.

One file a section. `gfl.build` checks the names of components and makes objects of them;
`gfl.config` reads files.
"""

from pydantic import Field

from gfl.schema.data import Data
from gfl.schema.model import Assigner, Loss, Model, Postprocess
from gfl.schema.section import Section
from gfl.schema.train import Train


class Config(Section):
    """Everything that defines a run."""

    data: Data = Data()
    model: Model = Model()
    assigner: Assigner = Assigner()
    loss: Loss = Loss()
    postprocess: Postprocess = Postprocess()
    train: Train = Train()
    device: str | None = Field(default=None, pattern=r"^(cpu|cuda(:\d+)?)$")
    """cpu, cuda or cuda:N; null takes a GPU where there is one."""

    def to_dict(self) -> dict:
        """Plain values, as they go to YAML and checkpoints."""
        return self.model_dump(mode="json")
