"""What many GPUs would give: bytes of a step, time of their exchange, the share that computes.

Arithmetic on stated figures, not a measurement. docs/scaling.md explains it.
"""

import math
from dataclasses import asdict, dataclass

from gfl.automatic import network_without_content
from gfl.config import load_config
from gfl.errors import UserError

# Weights, and so gradients, are float32 in every precision.
FLOAT = 4
# The sums over processes that the losses are divided by: positives, and weights of boxes.
NORMALISERS = 2
GPUS = (1, 2, 4, 8, 16, 32, 64)
# GB/s in one direction, as the standards name them: 8 bits a byte, no protocol taken off. What a
# machine reaches is for the reader to measure.
NOMINAL = {
    "NVLink 4 (H100, H200)": 450.0,
    "NVLink 3 (A100)": 300.0,
    "PCIe 5.0 x16": 63.0,
    "PCIe 4.0 x16": 31.5,
    "400 Gbit/s": 50.0,
    "100 Gbit/s": 12.5,
    "25 Gbit/s": 3.125,
}
# Of a step's computing, how much gradients can be exchanged beside: see docs/scaling.md.
OVERLAP = 0.5
CLASSES = 80
CONFIGS = ("quickstart", "gfl_r50_fpn_1x", "gfl_r101_fpn_ms_2x", "gfl_n", "gfl_s", "gfl_m", "gfl_l")


@dataclass(frozen=True)
class Payload:
    """What each process of a config hands over.

    Attributes:
        config: name or file.
        parameters, trainable: of the network, how many.
    """

    config: str
    parameters: int
    trainable: int

    @property
    def step_bytes(self) -> int:
        """Bytes of a step: gradients and the two normalisers of the criterion."""
        return FLOAT * (self.trainable + NORMALISERS)


def payload(config: str, num_classes: int = CLASSES) -> Payload:
    """Count a config's network."""
    values = load_config(config)
    model = network_without_content(values, num_classes)
    model.freeze(values.train.freeze)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return Payload(config, sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains))


def ring_bytes(payload_bytes: float, gpus: int) -> float:
    """Bytes that each GPU sends, and receives, in a ring all-reduce.

    n - 1 rounds to sum, n - 1 to spread the sums, each of an n-th of the payload.
    """
    return 2 * (gpus - 1) / gpus * payload_bytes


def exchange_seconds(payload_bytes: float, gpus: int, gigabytes: float) -> float:
    """Seconds of a ring all-reduce over the slowest link, GB/s in one direction; no latency."""
    return ring_bytes(payload_bytes, gpus) / (gigabytes * 1e9)


def efficiency(compute: float, exchange: float, overlap: float = OVERLAP) -> float:
    """Share of a step in which the GPUs compute: compute / (compute + what is not hidden).

    Args:
        compute: seconds of a step without any exchange.
        exchange: seconds of the exchange alone.
        overlap: share of `compute` that the exchange can run beside. With 1 this is
            compute / max(compute, exchange).
    """
    return compute / (compute + max(0.0, exchange - overlap * compute))


def plan(
    configs: list[str],
    step_seconds: float | None = None,
    links: dict[str, float] | None = None,
    overlap: float = OVERLAP,
) -> dict:
    """Bytes of each config; with a step's time also the efficiency, by link and number of GPUs.

    Args:
        configs: names or files; `CONFIGS` if empty.
        step_seconds: of a step of one GPU with its share of the images, measured by the reader.
        links: name to GB/s; `NOMINAL` if None.
        overlap: as in `efficiency`.

    Returns:
        Plain values; `plan_text` prints them.

    Raises:
        UserError: a figure that can not be.
    """
    if step_seconds is not None and not 0 < step_seconds < math.inf:
        raise UserError(f"--step-ms is {step_seconds * 1000:g}, expected more than 0.")
    if not 0 <= overlap <= 1:
        raise UserError(f"--overlap is {overlap:g}, expected 0 to 1.")
    links = NOMINAL if links is None else links
    for name, gigabytes in links.items():
        if not 0 < gigabytes < math.inf:
            raise UserError(f"--gbytes has {name}, expected GB/s, more than 0.")
    counted = [payload(config) for config in configs or CONFIGS]
    rows = [{**asdict(one), "step_bytes": one.step_bytes} for one in counted]
    found = {"step_seconds": step_seconds, "overlap": overlap, "configs": rows}
    if step_seconds is None:
        return found
    for row in rows:
        row["sent_bytes"] = [ring_bytes(row["step_bytes"], n) for n in GPUS]
        row["links"] = {}
        for name, gigabytes in links.items():
            times = [exchange_seconds(row["step_bytes"], n, gigabytes) for n in GPUS]
            shares = [efficiency(step_seconds, t, overlap) for t in times]
            row["links"][name] = {"exchange_seconds": times, "efficiency": shares}
    return {**found, "gpus": list(GPUS)}


def plan_text(found: dict) -> str:
    """A `plan`, printed."""
    lines = [f"{'config':24s}{'parameters':>12s}{'trainable':>12s}{'MB a step':>12s}"]
    for row in found["configs"]:
        megabytes = row["step_bytes"] / 1e6
        numbers = f"{row['parameters']:12,d}{row['trainable']:12,d}{megabytes:12.2f}"
        lines.append(f"{row['config']:24s}{numbers}")
    for row in found["configs"] if "gpus" in found else ():
        step = f"step {found['step_seconds'] * 1000:g} ms, overlap {found['overlap']:g}"
        lines += ["", f"{row['config']}, {step}"]
        lines.append(_row("GPUs", [str(n) for n in found["gpus"]]))
        sent = [f"{sent / 1e6:.1f}" for sent in row["sent_bytes"]]
        lines.append(_row("MB sent by each", sent))
        for name, link in row["links"].items():
            times = [f"{1000 * seconds:.2f}" for seconds in link["exchange_seconds"]]
            lines.append(_row(f"{name}: ms", times))
            lines.append(_row("  efficiency", [f"{share:.3f}" for share in link["efficiency"]]))
    return "\n".join(lines)


def _row(name: str, cells: list[str]) -> str:
    return f"{name:32s}" + "".join(f"{cell:>9s}" for cell in cells)
