"""Speed and memory: each figure beside its limit and its rivals, measured in one run."""
