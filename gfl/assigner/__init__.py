"""Which locations answer for which object: ATSS, and the assignments of FCOS and RetinaNet."""

from gfl.assigner.atss import ATSSAssigner
from gfl.assigner.crowd import in_crowd
from gfl.assigner.fcos import FCOSAssigner
from gfl.assigner.retinanet import RetinaNetAssigner

__all__ = ["ATSSAssigner", "FCOSAssigner", "RetinaNetAssigner", "in_crowd"]
