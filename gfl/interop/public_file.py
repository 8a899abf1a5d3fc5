"""Reading checkpoints of other projects without running what they contain.

See `gfl/interop/safe_pickle.py` for how; here it is found out what such a file means.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gfl.errors import UserError
from gfl.interop.safe_pickle import load_without_running


@dataclass(frozen=True)
class PublicFile:
    """What is of use in a checkpoint of another project.

    Attributes:
        path: the file.
        sha256: of its bytes.
        state: names to tensors, without "module." before them.
        dropped: entries of `state_dict` that were left out: averages beside the weights, which
            mmcv's and mmengine's hooks have already put in the weights' place.
        class_names: from the file's meta, or None.
        version: mmdet's version, or "".
        config_text: the training config as text, or "".
    """

    path: Path
    sha256: str
    state: dict[str, Tensor]
    dropped: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    version: str = ""
    config_text: str = ""


def read_public_file(path: str | Path) -> PublicFile:
    """Read a .pth of mmdetection, GFocal or GFocalV2 (any torch serialisation since 2018).

    Raises:
        UserError: missing, damaged, without a state dict, or holding more than data; the message
            names what was found. Nothing of the file is executed.
    """
    path = Path(path)
    content = load_without_running(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, expected a checkpoint's dict.")
    if content.get("format") == "gfl":
        raise UserError(f"{path} is a checkpoint of gfl already: nothing to convert.")
    names = ("state_dict", "model", "model_state_dict", "ema_state_dict")
    found = next((name for name in names if isinstance(content.get(name), dict)), None)
    state = content if found is None else content[found]
    if found == "ema_state_dict":
        state = {key: value for key, value in state.items() if key != "steps"}
    averages = tuple(str(key) for key in state if str(key).removeprefix("module.")[:4] == "ema_")
    state = {str(key): value for key, value in state.items() if str(key) not in averages}
    wrong = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if wrong or not state:
        raise UserError(
            f"{path} has no state dict of tensors: "
            + (f"{wrong[0]!r} is a {type(state[wrong[0]]).__name__}." if wrong else "it is empty.")
            + f" Its entries are {', '.join(map(str, list(content)[:8]))}; expected 'state_dict'."
        )
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    meta = content.get("meta") if isinstance(content.get("meta"), dict) else {}
    texts = [meta.get(key) for key in ("config", "cfg")]
    version = meta.get("mmdet_version")
    return PublicFile(
        path=path,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        state=state,
        dropped=averages,
        class_names=_class_names(meta),
        version=version if isinstance(version, str) else "",
        config_text=next((text for text in texts if isinstance(text, str)), ""),
    )


def _class_names(meta: dict) -> tuple[str, ...] | None:
    """mmdet 2 has meta.CLASSES, mmdet 3 meta.dataset_meta.classes (or CLASSES)."""
    inner = meta.get("dataset_meta")
    for place in (meta, inner if isinstance(inner, dict) else {}):
        for key in ("CLASSES", "classes"):
            names = place.get(key)
            names = (names,) if isinstance(names, str) else names
            if isinstance(names, tuple | list) and names:
                if all(isinstance(name, str) for name in names):
                    return tuple(names)
    return None
