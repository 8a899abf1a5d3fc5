"""Where the tiles of a large picture lie: one layout for training, evaluation and prediction."""

Place = tuple[int, int, int, int]
"""(x1, y1, x2, y2), whole pixels of the picture."""


def windows(size: tuple[int, int], tile: int, overlap: float) -> list[Place]:
    """Windows of at most `tile` pixels that cover a picture of (h, w), row by row.

    Neighbours share `overlap` of their side or a little more, so that an object up to that size
    is whole in one of them.
    """
    starts = [_starts(side, tile, overlap) for side in size]
    return [
        (x, y, min(x + tile, size[1]), min(y + tile, size[0])) for y in starts[0] for x in starts[1]
    ]


def tile_places(size: tuple[int, int], tile: int, overlap: float, whole: bool) -> list[Place]:
    """`windows`, and the whole picture behind them if `whole` and there are several."""
    places = windows(size, tile, overlap)
    if whole and len(places) > 1:
        places.append((0, 0, size[1], size[0]))
    return places


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    if side <= tile:
        return [0]
    step = max(int(tile * (1 - overlap)), 1)
    count = -(-(side - tile) // step) + 1
    return [round(i * (side - tile) / (count - 1)) for i in range(count)]
