"""What becomes of each item of a messy data set, held against its manifest.

`python tests/judge_messy.py [FOLDER...]` prints the table "outcome by defect" of docs/data.md, of
the project's own set or of folders of the same form.
"""

import json
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from messy_set import REFUSE, REPAIR, SKIP, USE, write_messy_set

from gfl.data.dataset import CocoDataset
from gfl.data.findings import Findings
from gfl.errors import UserError

# A usual form that is reported, not mended.
PLAIN = {"exif_rotated"}


class Judged:
    """The verdicts on one folder.

    Attributes:
        dataset: of its messy.json.
        rows: (list of the manifest, entry, verdict, kinds of finding or message).
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        findings = Findings()
        annotations = folder / "annotations"
        self.dataset = CocoDataset(
            [(folder / "images", annotations / "messy.json")], findings=findings
        )
        expected = CocoDataset([(folder / "images", annotations / "expected.json")])
        self.expected = expected
        self.found = [
            (finding.kind, finding.policy, item) for finding in findings.all()
            for item in finding.items
        ]  # fmt: skip
        self.rows = [("images", e, *self._image(e)) for e in self.manifest["images"]]
        self.rows += [
            ("annotations", e, *self._annotation(e)) for e in self.manifest["annotations"]
        ]
        self.rows += [("files", e, *self._file(e)) for e in self.manifest["files"]]

    def _image(self, entry: dict) -> tuple[str, str]:
        start = f"messy.json: {entry['file_name']}"
        named = [f for f in self.found if f[2] == start or f[2].startswith(start + ": ")]
        is_used = entry["image_id"] in self.dataset.image_ids.tolist()
        return self._verdict(named, is_used)

    def _annotation(self, entry: dict) -> tuple[str, str]:
        mark = re.compile(rf"messy\.json: annotations\[{entry['index']}\](\W|$)")
        named = [f for f in self.found if mark.match(f[2])]
        is_left_out = any(
            policy == "skip" or kind == "lost_with_image" for kind, policy, _ in named
        )
        return self._verdict(named, not is_left_out)

    def _verdict(self, named: list, is_used: bool) -> tuple[str, str]:
        kinds = ", ".join(dict.fromkeys(kind for kind, _, _ in named))
        if not is_used:
            return (SKIP if named else "left out in silence"), kinds
        mended = any(policy == "repair" and kind not in PLAIN for kind, policy, _ in named)
        return (REPAIR if mended else USE), kinds

    def _file(self, entry: dict) -> tuple[str, str]:
        file = self.folder / entry["file"]
        findings = Findings()
        try:
            dataset = CocoDataset([(self.folder / "images", file)], findings=findings)
        except UserError as error:
            assert file.name in str(error), error
            return REFUSE, "message"
        return (REPAIR if len(dataset.findings) else USE), ""


def outcome_table(judged: list[Judged]) -> str:
    """A markdown table: what, defect, verdict, kinds of finding."""
    outcomes = defaultdict(set)
    for one in judged:
        for part, entry, verdict, kinds in one.rows:
            for defect in entry.get("defects", [entry.get("defect")]):
                outcomes[part, str(defect)].add((verdict, kinds))
    words = {USE: "used", REPAIR: "repaired", SKIP: "left out", REFUSE: "refused"}
    lines = ["| in | defect | outcome | finding |", "|---|---|---|---|"]
    for (part, defect), found in outcomes.items():
        verdicts = ", ".join(sorted({words.get(verdict, verdict) for verdict, _ in found}))
        kinds = ", ".join(sorted({kinds for _, kinds in found if kinds}))
        lines.append(f"| {part} | {defect.replace('_', ' ')} | {verdicts} | {kinds} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(outcome_table([Judged(Path(folder)) for folder in sys.argv[1:]]))
    else:
        with tempfile.TemporaryDirectory() as place:
            print(outcome_table([Judged(write_messy_set(Path(place) / "set"))]))
