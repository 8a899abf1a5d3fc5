"""Which locations answer for which object: ATSS, and the assignments that it is compared with."""

from gfl.assigner.atss import ATSSAssigner
from gfl.assigner.crowd import WithoutIgnored, in_crowd
from gfl.assigner.fcos import FCOSAssigner
from gfl.assigner.retinanet import RetinaNetAssigner
from gfl.assigner.simota import SimOTAAssigner
from gfl.assigner.tal import TaskAlignedAssigner

__all__ = [
    "ATSSAssigner",
    "FCOSAssigner",
    "RetinaNetAssigner",
    "SimOTAAssigner",
    "TaskAlignedAssigner",
    "WithoutIgnored",
    "in_crowd",
]
