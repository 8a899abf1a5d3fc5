"""All figures, one after the other."""

import gc
import sys
from collections.abc import Callable
from dataclasses import asdict

import torch

from gfl.benchmark.coco_speed import coco_speed
from gfl.benchmark.inference import inference
from gfl.benchmark.light import light_family
from gfl.benchmark.memory import memory
from gfl.benchmark.onnx_latency import onnx_latency
from gfl.benchmark.options import step_and_forward_options
from gfl.benchmark.peer import Peer, PeerMissing, peer_note
from gfl.benchmark.pipeline import data_pipeline
from gfl.benchmark.record import Record, not_measured
from gfl.benchmark.scaling import scaling
from gfl.benchmark.setting import Setting, environment
from gfl.benchmark.start import start
from gfl.benchmark.table import table
from gfl.benchmark.training_step import training_step
from gfl.engine.memory import is_out_of_memory
from gfl.errors import UserError, did_you_mean

# Name to its function of a setting; the first two take a peer as well.
FIGURES: dict[str, Callable[..., list[Record]]] = {
    "train": training_step,
    "infer": inference,
    "data": data_pipeline,
    "eval": coco_speed,
    "start": start,
    "memory": memory,
    "options": step_and_forward_options,
    "scaling": scaling,
    "onnx": onnx_latency,
    "light": light_family,
}
# Minutes long, or of interest to few: measured when named.
ON_REQUEST = ("options", "scaling", "onnx", "light")
WITH_PEER = ("train", "infer")


def benchmark(
    setting: Setting,
    only: tuple[str, ...] = (),
    say: Callable[[str], None] = lambda message: print(message, file=sys.stderr),
) -> dict:
    """Measure.

    Args:
        setting: sizes and device.
        only: names of `FIGURES`; all but `ON_REQUEST` where empty.
        say: takes progress.

    Returns:
        {"environment": {...}, "setting": its attributes, "records": [`Record.to_dict()`, ...]}.

    Raises:
        UserError: a figure that does not exist, or a peer that can not be started.
    """
    for name in only:
        if name not in FIGURES:
            hint = did_you_mean(name, FIGURES)
            raise UserError(f"--only names {name!r}, expected some of {', '.join(FIGURES)}{hint}")
    chosen = [n for n in FIGURES if (n in only if only else n not in ON_REQUEST)]
    where, records = environment(setting), []
    try:
        _add_figures(setting, chosen, where, records, say)
    except BaseException:
        if records:
            so_far = {"environment": where, "records": _plain(records)}
            say(f"measured until then:\n{table(so_far)}")
        raise
    return {
        "environment": where,
        "setting": asdict(setting),
        "records": _plain(records),
    }


def _plain(records: list[Record]) -> list[dict]:
    return [row.to_dict() for row in records]


def _add_figures(
    setting: Setting,
    names: list[str],
    where: dict,
    records: list[Record],
    say: Callable[[str], None],
) -> None:
    """Add the rows of the figures to `records`, and the peer's versions to `where`."""
    peer = None
    try:
        if setting.peer is not None and set(names) & set(WITH_PEER):
            try:
                peer = Peer(setting.peer, setting)
                where["peer"] = peer.versions
            except PeerMissing as error:
                records.append(peer_note(str(error)))
        for name in names:
            say(f"measuring {name} ...")
            beside = (peer,) if name in WITH_PEER else ()
            try:
                records += _measured(name, setting, *beside)
            except PeerMissing as error:  # it has ended: once more, without it
                records.append(peer_note(str(error)))
                peer.close()
                peer = None
                records += _measured(name, setting, peer)
            _release_memory(setting)
            if peer is not None and name == WITH_PEER[-1]:
                peer.close()
                peer = None
    finally:
        if peer is not None:
            peer.close()


def _release_memory(setting: Setting) -> None:
    """Give back what a figure held: the next may measure in processes of its own."""
    gc.collect()
    if setting.device == "cuda":
        torch.cuda.empty_cache()


def _measured(name: str, setting: Setting, *peer: Peer | None) -> list[Record]:
    """The rows of a figure; one that says so where it needs more memory than there is."""
    try:
        return FIGURES[name](setting, *peer)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return [not_measured(name, str(setting), "out of memory: lower --batch or --size")]
