"""mmdetection's GFL in another environment, timed in turn with ours."""

import contextlib
import json
import subprocess
from pathlib import Path

import torch

from gfl.benchmark.record import Record, not_measured
from gfl.benchmark.setting import NUM_CLASSES, OBJECTS, Setting
from gfl.errors import UserError

OURS = "mmdetection GFL"
PROGRAM = Path(__file__).with_name("peer_program.py")


class PeerMissing(Exception):
    """The other environment can not run mmdetection's GFL; the text says why."""


class Peer:
    """A process of another interpreter that does one step or one forward when told to.

    Args:
        python: interpreter of an environment where mmdet can be imported.
        setting: as ours; the backbone must be a ResNet.

    Raises:
        UserError: there is no such interpreter.
        PeerMissing: it can not import mmdet, or mmdet can not build the network.
    """

    def __init__(self, python: str, setting: Setting):
        depth = setting.backbone.removeprefix("resnet")
        if not depth.isdigit():
            raise PeerMissing(f"no mmdetection config for {setting.backbone}")
        options = {
            "depth": int(depth),
            "size": setting.size,
            "batch": setting.batch,
            "device": setting.device,
            "precision": setting.precision,
            "channels_last": setting.channels_last,
            "threads": torch.get_num_threads(),
            "classes": NUM_CLASSES,
            "objects": OBJECTS,
        }
        command = [python, str(PROGRAM), json.dumps(options)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise UserError(f"--peer is {python}, which can not be started: {error}") from None
        ready = self._answer()
        if "missing" in ready:
            self.close()
            raise PeerMissing(f"{python}: {ready['missing']}")
        self.versions = ready["versions"]

    def seconds(self, what: str) -> float:
        """Do "train" (a step) or "infer" (a forward of one image) once; seconds by its clock.

        Raises:
            PeerMissing: the process has ended.
        """
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(what + "\n")
            self._process.stdin.flush()
        answer = self._answer()
        if "missing" in answer:
            raise PeerMissing(answer["missing"])
        return answer["seconds"]

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _answer(self) -> dict:
        """The next line of its stdout that is ours; libraries print there too."""
        for line in self._process.stdout:
            if line.startswith("gfl-peer "):
                return json.loads(line.removeprefix("gfl-peer "))
        return {"missing": f"the process ended with status {self._process.wait()}"}


def peer_note(why: str) -> Record:
    """The row of a peer that was asked for and is not there."""
    return not_measured("peer", OURS, why)
