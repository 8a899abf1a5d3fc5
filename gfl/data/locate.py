"""From file names in annotations to files, without ever leaving the image folder."""

import os
import stat
from pathlib import Path
from typing import NoReturn

from gfl.errors import UserError


class ImageFolder:
    """A folder that file names can not leave: by "..", an absolute path or a symbolic link.

    The folder itself may be a link. Only regular files count.

    Args:
        folder: where the names start.
    """

    def __init__(self, folder: Path):
        self.folder = str(folder)
        self._root = os.path.realpath(folder)
        self._real_parents: dict[str, str] = {}

    def find(self, name: str) -> tuple[str, str | None]:
        """The path of a file name.

        Returns:
            The path that was tried, and what is wrong with it: None, or "unsafe_path",
            "missing_image", "other_file_name" (written with backslashes) of `gfl.data.findings`.
        """
        path, problem = self._try(name)
        if problem == "missing_image" and "\\" in name:
            other, problem = self._try(name.replace("\\", "/"))
            return (
                (other, problem or "other_file_name")
                if problem != "missing_image"
                else (
                    path,
                    problem,
                )
            )
        return path, problem

    def _try(self, name: str) -> tuple[str, str | None]:
        path = os.path.join(self.folder, name)
        try:
            if not self._is_inside(path):
                return path, "unsafe_path"
            is_file = stat.S_ISREG(os.stat(path).st_mode)
        except (OSError, ValueError):  # ValueError: characters that no file name has
            return path, "missing_image"
        return path, None if is_file else "missing_image"

    def _is_inside(self, path: str) -> bool:
        parent, name = os.path.split(path)
        if parent not in self._real_parents:
            self._real_parents[parent] = os.path.realpath(parent)
        real = os.path.join(self._real_parents[parent], name)
        if name in ("", ".", "..") or os.path.islink(real):
            real = os.path.realpath(real)
        return os.path.commonpath((real, self._root)) == self._root


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, sorted; nothing where it is none.

    Raises:
        UserError: it can not be read.
    """
    if not os.path.isdir(folder):
        return []
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise_unreadable(error)


def raise_unreadable(error: OSError) -> NoReturn:
    """Raise the `UserError` of a folder that can not be listed."""
    raise UserError(
        f"cannot read folder {error.filename}: {error.strerror}. Name one that can be listed."
    ) from None
