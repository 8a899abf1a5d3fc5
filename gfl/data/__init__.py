"""From files to batches: dataset, transforms, samplers, batch, loader."""

import os

# albumentations asks the network for updates when imported, unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
