"""A few recorded loss cases in a folder of their own, so that an audit takes a second."""

import json
import shutil
from pathlib import Path

from sdpo.fixtures import PACKAGED

SOME = ("P-L001", "P-L002", "P-L005", "P-L018", "P-L030", "P-L041", "P-L047", "P-L065", "P-L146")


def subset(home: Path, ids) -> Path:
    folder = home / "loss"
    folder.mkdir(parents=True)
    manifest = json.loads((PACKAGED / "loss" / "cases.json").read_text())
    manifest["cases"] = [entry for entry in manifest["cases"] if entry["id"] in ids]
    (folder / "cases.json").write_text(json.dumps(manifest))
    for entry in manifest["cases"]:
        shutil.copy(PACKAGED / "loss" / entry["file"], folder)
    return home
