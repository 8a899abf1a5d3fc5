"""Seeded damage to configs and annotation files."""

import copy
import json
import random

ODD = [
    None, True, False, 0, -1, 1, 1.5, 1e400, -1e300, float("nan"), 2**70, 10**400, "", "x", "0",
    "1e5", "NaN", "../../etc/passwd", "/", "a\0b", "\ud800", "\u00fc" * 300, [], {}, [[]], [None],
    {"a": 1}, [1, 2, 3, 4], ["1", 2, 3.0, "x"], {"id": 1},
]  # fmt: skip
# Text that YAML reads in ways of its own.
ODD_TEXT = [
    "!!timestamp x", "!!int abc", "2021-99-99", "&a [*a]", "*nowhere", "{a: 1, a: 2}", "? [1]", "~",
    "1e-3", "0x", "!!python/object/apply:os.system [ls]", "'", '"', "{", "[", "- ", ": ", "\t", "%",
    "<<: 3", "1:2:3", "\0", "off", ".inf", ".nan", "!!binary x", "|", ">", "!!bool maybe",
    "!!set {a}", "!!float z", "!!omap 3", "@", "`",
]  # fmt: skip


def spots(value: object, path: tuple = ()) -> list[tuple]:
    """Paths to every value in nested dicts and lists."""
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    else:
        return [path]
    found = [path] if path else []
    for key, part in inner:
        found += spots(part, (*path, key))
    return found


def mutated_values(values: dict | list, rng: random.Random) -> object:
    """A copy with up to four values replaced, removed, renamed, repeated or exchanged."""
    values = copy.deepcopy(values)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = spots(values)
        if not places:
            break
        *way, last = rng.choice(places)
        holder = values
        for key in way:
            holder = holder[key]
        kind = rng.choice(("replace", "replace", "remove", "rename", "repeat", "exchange", "scale"))
        if kind == "remove":
            del holder[last]
        elif kind == "rename" and isinstance(holder, dict):
            holder[rng.choice(["x", "id", str(last).upper(), str(last) + "s", 3])] = holder.pop(
                last
            )
        elif kind == "repeat" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        elif kind == "scale" and isinstance(holder[last], int | float) and abs(holder[last]) < 1e9:
            holder[last] *= rng.choice((-1, 0, 1e-3, 1000, 1e9))
        elif kind == "exchange":
            other = rng.choice(places)
            part = values
            for key in other:
                try:
                    part = part[key]
                except (LookupError, TypeError):
                    break
            holder[last] = copy.deepcopy(part)
        else:
            holder[last] = copy.deepcopy(rng.choice(ODD))
    return values


def mutated_text(text: str, rng: random.Random) -> bytes:
    """The same text with a few bytes, pieces or lines changed."""
    content = bytearray(text.encode())
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(content) + 1)
        until = min(at + rng.choice((1, 3, 20)), len(content))
        kind = rng.choice(("cut", "flip", "drop", "insert", "odd", "repeat"))
        if kind == "cut" and rng.random() < 0.3:
            del content[at:]
        elif kind == "flip" and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif kind == "drop":
            del content[at:until]
        elif kind == "insert":
            content[at:at] = bytes(rng.randrange(256) for _ in range(3))
        elif kind == "repeat":
            content[at:at] = content[at:until]
        else:
            start = content.rfind(b":", 0, at)
            content[start + 1 : until] = b" " + rng.choice(ODD_TEXT).encode()
    return bytes(content)


def mutated_json(values: dict, rng: random.Random) -> bytes:
    """A json file, mostly one that still parses."""
    if rng.random() < 0.75:
        return json.dumps(mutated_values(values, rng)).encode()
    return mutated_text(json.dumps(values), rng)
