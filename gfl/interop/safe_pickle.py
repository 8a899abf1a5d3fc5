"""torch.load for files of strangers: nothing that they contain is run.

A .pth file is a pickle, and a pickle may name any function to be called while it loads. The
unpickler here knows the few that tensors need. Classes of mmengine, mmcv, mmdet and numpy, which
public files hold beside their weights, become objects that do nothing; any other name is refused.
Dicts take plain keys only: hashing a tuple nested a million times would end the process.
"""

import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch

from gfl.errors import UserError

# What a file of torch.save begins with, in its old and its new serialisation; a zip archive that
# was cut off is damaged, and no file of another kind.
PICKLE, ZIP = b"\x80", b"PK"


def load_without_running(path: Path):
    """The content of a file of torch.save, either serialisation.

    Raises:
        UserError: missing, damaged, or holding more than data; the message names what was found.
    """
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "does not exist"
        raise UserError(f"checkpoint {path} {what}: expected a file.")
    reader = _Reader()
    try:
        _refuse_other_kinds(path)
        content = torch.load(
            path, map_location="cpu", weights_only=False, pickle_module=reader.pickle_module
        )
        reader.require_all_storages()
        return content
    except _Refused as refusal:
        raise UserError(
            f"{path} is refused: loading it would run {refusal}, which is code and no data. "
            "Nothing was executed. Get the file from its authors, or ask them for the state dict "
            "alone."
        ) from None
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged or no checkpoint: {reason[:300]}") from None


def _refuse_other_kinds(path: Path) -> None:
    if tarfile.is_tarfile(path):
        raise UserError(f"{path} is a tar archive, as torch wrote before 2017: not supported.")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise UserError(f"{path} is a TorchScript program, expected a checkpoint's dict.")
        return
    with path.open("rb") as file:
        if not file.read(2).startswith((PICKLE, ZIP)):
            raise UserError(f"{path} is no file of torch.save: expected a checkpoint, .pth or .pt.")


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


def _ordered_dict(pairs=()):
    result = OrderedDict()
    for key, value in pairs:
        result[_plain(key)] = value
    return result


def _tensor(storage, offset, size, stride, *more):
    """A tensor that lies in its storage once, as all that are saved do."""
    count = 1
    for side in size:
        count *= side
    held = storage._untyped_storage.nbytes() // storage.dtype.itemsize
    if count > held:
        raise ValueError(f"a tensor of size {tuple(size)} in a storage of {held} numbers")
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, *more)


def _plain(key):
    if isinstance(key, str | bytes | int | float | None | _Inert):
        return key
    raise ValueError(f"a dict with a {type(key).__name__} for a key")


_ALLOWED = {
    ("collections", "OrderedDict"): _Call(_ordered_dict),
    ("torch", "Size"): _Call(torch.Size),
    **{("torch", name): it for name, it in vars(torch).items() if isinstance(it, torch.dtype)},
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
    ("torch._utils", "_rebuild_tensor"): _Call(
        lambda storage, offset, size, stride: _tensor(storage, offset, size, stride, False, None)
    ),
    ("torch._utils", "_rebuild_parameter"): _Call(lambda data, requires_grad, hooks: data),
}
# Old pickles write methods (HistoryBuffer has a table of its own) with getattr, bytes with encode,
# numbers of metrics and optimisers with numpy: none of these reaches the weights.
_INERT = {
    ("argparse", "Namespace"),
    ("collections", "defaultdict"),
    ("collections", "deque"),
    ("datetime", "datetime"),
    ("pathlib", "PosixPath"),
    ("torch", "device"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
    *(
        (module, name)
        for module in ("builtins", "__builtin__")
        for name in ("getattr", "set", "frozenset", "bytearray", "slice", "complex")
    ),
}
_INERT_PROJECTS = ("mmengine", "mmcv", "mmdet", "addict")


class _SafeUnpickler(pickle._Unpickler):  # the one in Python, whose steps can be looked at
    dispatch = dict(pickle._Unpickler.dispatch)
    reader: "_Reader"

    def find_class(self, module: str, name: str):
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if (module, name) in _INERT or module.split(".")[0] in _INERT_PROJECTS:
            return _Inert
        raise _Refused(f"{module}.{name}")

    def load_setitem(self):
        _plain(self.stack[-2])
        super().load_setitem()

    def load_setitems(self):
        for key in self.stack[::2]:
            _plain(key)
        super().load_setitems()

    def load_dict(self):
        for key in self.stack[::2]:
            _plain(key)
        super().load_dict()

    def load_binpersid(self):
        self.reader.note(self.stack[-1])
        super().load_binpersid()

    def load_unsupported(self):
        raise ValueError("a kind of object that no checkpoint holds")

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.BINPERSID[0]] = load_binpersid
    for _code in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.PERSID):
        dispatch[_code[0]] = load_unsupported


class _Reader:
    """One reading: what torch.load takes for the pickle module, and the storages it speaks of."""

    def __init__(self):
        self.named: set[str] = set()
        self.loaded: list = []
        reader = self

        class Unpickler(_SafeUnpickler):
            pass

        Unpickler.reader = reader

        def load(file, **options):
            self.loaded.append(Unpickler(file, **options).load())
            return self.loaded[-1]

        self.pickle_module = SimpleNamespace(
            __name__="gfl's safe pickle", Unpickler=Unpickler, load=load
        )

    def note(self, identity) -> None:
        """Check what a storage is named by, and remember the name."""
        simple = isinstance(identity, tuple) and all(
            part is None or not isinstance(part, tuple | list | dict | set | frozenset)
            for part in identity
        )
        if not simple or len(identity) < 5 or not isinstance(identity[2], str):
            raise ValueError("a storage without a plain name")
        self.named.add(identity[2])

    def require_all_storages(self) -> None:
        """In the old serialisation the list of storages comes last, and could be incomplete."""
        listed = self.loaded[-1] if self.loaded else None
        if isinstance(listed, list) and self.named - set(map(str, listed)):
            raise ValueError("the file names storages that it does not hold")
