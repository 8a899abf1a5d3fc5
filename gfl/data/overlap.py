"""Images that two data sets share."""

import os


def shared_line(train, val) -> str | None:
    """What to say of images that are trained on and evaluated on; None if there are none.

    Args:
        train, val: data sets; only those that name their files (`path(index)`) are compared.
    """
    if not (hasattr(train, "path") and hasattr(val, "path")):
        return None
    files = {os.path.abspath(train.path(index)) for index in range(len(train))}
    shared = [path for i in range(len(val)) if (path := os.path.abspath(val.path(i))) in files]
    if not shared:
        return None
    return (
        f"{len(shared)} of {len(val)} images of val are images of train too ({shared[0]}, ...): "
        "AP on val says little of new images."
    )
