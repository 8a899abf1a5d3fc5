"""Does a distribution over scores help where class labels are wrong? Detector and classifier.

    python tools/experiments/noisy_labels.py classifier --data data/bccd --out runs/noisy
    python tools/experiments/noisy_labels.py detector --data data/shapes --out runs/noisy

Of the training labels a share is flipped to another class, each with the same chance; val and test
keep theirs. The same network learns with `model.head.score: scalar` and `distribution` (for the
classifier: their losses, one against all). Finished runs are kept in OUT and not repeated.
"""

import argparse
import functools
import json
import sys
from pathlib import Path

from compared import kept, last_ap, same_settings, table

from gfl.cli import command

SHARES = (0.0, 0.2, 0.4)
SCORES = ("scalar", "distribution")
NUM_BINS = 11
# Side of the classifier's pictures, pixels, and how many of a class it is trained on at most.
CROP, PER_CLASS = 32, 200
CLASSIFIER_EPOCHS = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("classifier", "detector"))
    parser.add_argument("--data", required=True, help="a folder in COCO layout")
    parser.add_argument("--out", required=True, help="folder of runs and tables")
    parser.add_argument("--config", default="quickstart", help="of the detector")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the detector")
    args = parser.parse_intermixed_args()
    out = Path(args.out) / args.what
    same_settings(out, {name: getattr(args, name) for name in ("data", "config", "overrides")})
    run = classify if args.what == "classifier" else detect
    rows = {}
    for share in SHARES:
        rows[f"{share:.0%} of the labels flipped"] = [
            [
                kept(
                    out / f"{score}_{share:g}_{seed}.json",
                    functools.partial(run, args, out, score, share, seed),
                )
                for seed in range(args.seeds)
            ]
            for score in SCORES
        ]
    measure = "balanced accuracy on test" if args.what == "classifier" else "AP on val"
    text = table(rows, SCORES, f"{measure}, {args.seeds} seeds")
    (out / "table.md").write_text(text)
    print(text, end="")
    return 0


def flip(labels, num_classes: int, share: float, seed: int):
    """(n,) int labels, of which each is another class with the chance `share`."""
    import numpy as np

    rng = np.random.default_rng([seed, 1])
    others = (labels + rng.integers(1, num_classes, len(labels))) % num_classes
    return np.where(rng.random(len(labels)) < share, others, labels)


# The detector -----------------------------------------------------------------------------------


def detect(args, out: Path, score: str, share: float, seed: int) -> float:
    """AP on val after training on flipped labels."""
    import numpy as np

    from gfl.config import load_config

    folder = Path(args.data)
    content = json.loads((folder / "annotations/train.json").read_text())
    ids = [category["id"] for category in content["categories"]]
    labels = np.array([ids.index(a["category_id"]) for a in content["annotations"]])
    for annotation, label in zip(
        content["annotations"], flip(labels, len(ids), share, seed), strict=True
    ):
        annotation["category_id"] = ids[label]
    flipped = out / f"train_{share:g}_{seed}.json"
    flipped.write_text(json.dumps(content))
    config = load_config(
        args.config,
        [
            "data.path=null",
            f"data.train={{images: {folder}/images, annotations: {flipped}}}",
            f"data.val={{images: {folder}/images, annotations: {folder}/annotations/val.json}}",
            "data.draw_sample=false",
            f"model.head.score={score}",
            f"model.head.score_bins={NUM_BINS}",
            f"train.seed={seed}",
            *args.overrides,
        ],
    )
    work_dir = out / f"{score}_{share:g}_{seed}"
    return last_ap(config, work_dir)


# The classifier ---------------------------------------------------------------------------------


def classify(args, out: Path, score: str, share: float, seed: int) -> float:
    """Balanced accuracy on the boxes of test after training on flipped labels of train."""
    import numpy as np
    import torch

    from gfl.losses import quality_focal_loss, score_distribution_loss
    from gfl.structures import expected_score

    images, labels = crops(args.data, "train")
    rng = np.random.default_rng([seed, 2])
    kept = np.concatenate(
        [rng.permutation(np.flatnonzero(labels == k))[:PER_CLASS] for k in np.unique(labels)]
    )
    images, labels = images[torch.from_numpy(kept)], labels[kept]
    num_classes = int(labels.max()) + 1
    noisy = torch.from_numpy(flip(labels, num_classes, share, seed))
    target = torch.nn.functional.one_hot(noisy, num_classes).float()

    torch.manual_seed(seed)
    bins = NUM_BINS if score == "distribution" else 1
    network = small_network(num_classes * bins)
    torch.manual_seed(seed)  # the same batches and mirror images for both, whatever was drawn
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.05)
    steps = CLASSIFIER_EPOCHS * (len(images) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)

    def scores_of(logits):
        return expected_score(logits) if bins > 1 else logits[..., 0].sigmoid()

    for _ in range(CLASSIFIER_EPOCHS):
        for batch in torch.randperm(len(images)).split(32)[: len(images) // 32]:
            pictures = images[batch]
            if torch.rand(()) < 0.5:
                pictures = pictures.flip(-1)
            logits = network(pictures).unflatten(1, (num_classes, bins))
            if bins > 1:
                loss = score_distribution_loss(logits, target[batch])
            else:
                loss = quality_focal_loss(logits[..., 0], target[batch])
            optimizer.zero_grad()
            loss.sum(1).mean().backward()
            optimizer.step()
            schedule.step()
    network.eval()
    images, labels = crops(args.data, "test")
    with torch.no_grad():
        found = scores_of(network(images).unflatten(1, (num_classes, bins))).argmax(1).numpy()
    return float(np.mean([(found[labels == k] == k).mean() for k in np.unique(labels)]))


def small_network(num_outputs: int):
    """Four strided convolutions with batch norm, and a linear layer."""
    from torch import nn

    layers, width = [], 3
    for channels in (32, 64, 128, 128):
        layers += [
            nn.Conv2d(width, channels, 3, 2, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        width = channels
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_outputs)
    )


@functools.cache
def crops(folder: str, split: str):
    """(n, 3, CROP, CROP) float pictures of a split's boxes, and their (n,) labels."""
    import cv2
    import numpy as np
    import torch

    from gfl import build
    from gfl.config import load_config

    dataset = build.build_dataset(load_config("bccd_r18", [f"data.path={folder}"]), split)
    pictures, labels = [], []
    for sample in (dataset[i] for i in range(len(dataset))):
        for x1, y1, x2, y2 in sample.boxes.round().astype(int):
            cut = sample.image[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
            pictures.append(cv2.resize(cut, (CROP, CROP), interpolation=cv2.INTER_AREA))
        labels.extend(sample.labels)
    pictures = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    return pictures / 127.5 - 1, np.array(labels)


if __name__ == "__main__":
    sys.exit(command.run(main))
