"""Writing ONNX files."""

import json
from pathlib import Path

import torch

from gfl.interop import export_forms  # noqa: F401  registers `suppress`
from gfl.interop.exported import INPUTS
from gfl.interop.onnx_network import require

# The first with every operator of ours at hand in torch's exporter (DeformConv is of 19).
OPSET = 20


def write_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    outputs: dict[str, tuple],
    metadata: dict,
    opset: int = OPSET,
) -> None:
    """Write a program as ONNX.

    Args:
        program: of an export form.
        path: file to write.
        outputs: names and shapes, free sizes as names.
        metadata: goes to `metadata_props`: text as it is, everything else as JSON.
        opset: of the ONNX standard.

    Raises:
        UserError: a package is missing.
    """
    require("onnx", "onnxscript")
    import onnx_ir

    written = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=opset,
        input_names=list(INPUTS),
        output_names=list(outputs),
        custom_translation_table={torch.ops.gfl.suppress.default: _suppress_in_onnx},
        verbose=False,
    )
    graph = written.model.graph
    for node in graph:  # symbols such as "32*s92" say nothing, and the inputs' get better names
        for value in node.outputs:
            if value.shape is not None and not value.shape.is_static():
                value.shape = None
    shapes = [("batch", 3, "height", "width"), ("batch", 2), *outputs.values()]
    for value, shape in zip([*graph.inputs, *graph.outputs], shapes, strict=True):
        value.shape = onnx_ir.Shape(shape)
    for key, value in metadata.items():
        text = value if isinstance(value, str) else json.dumps(value)
        written.model.metadata_props[key] = text
    written.save(path, external_data=False)


def _suppress_in_onnx(boxes, scores, iou: float, threshold: float, limit: int):
    """`suppress` by ONNX's own NMS, which knows batches and classes."""
    from onnxscript import opset18 as op

    selected = op.NonMaxSuppression(
        boxes,
        scores,
        op.Constant(value_ints=[limit]),
        op.Constant(value_floats=[iou]),
        op.Constant(value_floats=[threshold]),
    )
    return op.ScatterND(op.Sub(scores, scores), selected, op.GatherND(scores, selected))
