"""Bytes that a piece of work hands to collectives, whoever calls them."""

from collections import Counter

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CollectiveTraffic(TorchDispatchMode):
    """Counts the collectives that run while it is entered, those of DDP's reducer among them.

    Attributes:
        calls: by the name of torch's operator, such as "allreduce_".
        bytes: of the tensors that each hands over, on this process.
    """

    def __init__(self):
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__
            # Its tensors come first, or the list that a gathering fills.
            tensors = [leaf for leaf in tree_leaves(args[:1]) if isinstance(leaf, Tensor)]
            self.calls[name] += 1
            self.bytes[name] += sum(t.numel() * t.element_size() for t in tensors)
        return func(*args, **(kwargs or {}))
