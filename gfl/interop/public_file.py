"""Reading checkpoints of other projects without running what they contain.

A .pth file is a pickle, and a pickle may name any function to be called while it loads. The
unpickler here knows the few that tensors need. Classes of mmengine, mmcv, mmdet and numpy, which
public files hold beside their weights, become objects that do nothing; any other name is refused.
"""

import hashlib
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from gfl.errors import UserError


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
    content = _load(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, expected a checkpoint's dict.")
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


def _load(path: Path):
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist.")
    if tarfile.is_tarfile(path):
        raise UserError(f"{path} is a tar archive, as torch wrote before 2017: not supported.")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise UserError(f"{path} is a TorchScript program, expected a checkpoint's dict.")
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_SAFE_PICKLE)
    except _Refused as refusal:
        raise UserError(
            f"{path} is refused: loading it would run {refusal}, which is code and no data. "
            "Nothing was executed. Get the file from its authors, or ask them for the state dict "
            "alone."
        ) from None
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged or no checkpoint: {reason[:300]}") from None


class _Refused(Exception):
    """The pickle names something that is neither data nor known to be harmless."""


class _Inert:
    """Stands for an object that we have no use for: takes everything, does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, value):
        pass

    def extend(self, values):
        pass


class _Call:
    """A function that a pickle may call but not change."""

    def __init__(self, function: Callable):
        self._function = function

    def __call__(self, *args):
        return self._function(*args)

    def __setstate__(self, state):
        raise _Refused("a change of torch's own functions")


_TENSOR_MAKERS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    **{("torch", name): it for name, it in vars(torch).items() if isinstance(it, torch.dtype)},
    **{("torch._utils", name): _Call(getattr(torch._utils, name)) for name in _TENSOR_MAKERS},
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset, list, dict, tuple, int, float, complex, bool, str, bytes)
    },
}
# Old pickles write methods (HistoryBuffer has a table of its own) with getattr, bytes with encode,
# numbers of metrics and optimisers with numpy: none of these reaches the weights.
_INERT = {
    ("builtins", "getattr"),
    ("__builtin__", "getattr"),
    ("_codecs", "encode"),
    ("argparse", "Namespace"),
    ("datetime", "datetime"),
    ("pathlib", "PosixPath"),
    ("collections", "defaultdict"),
    ("collections", "deque"),
    ("torch", "device"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
}
_INERT_PROJECTS = ("mmengine", "mmcv", "mmdet", "addict")


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if (module, name) in _INERT or module.split(".")[0] in _INERT_PROJECTS:
            return _Inert
        raise _Refused(f"{module}.{name}")


def _safe_load(file, **options):
    return _SafeUnpickler(file, **options).load()


# What torch.load takes in place of the pickle module.
_SAFE_PICKLE = SimpleNamespace(
    __name__="gfl's safe pickle", Unpickler=_SafeUnpickler, load=_safe_load
)
