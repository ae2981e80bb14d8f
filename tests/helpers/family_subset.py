"""A few recorded cases of each family in a folder of their own, for audits of whole updates."""

import json
import shutil
from pathlib import Path

from sdpo.fixtures import PACKAGED
from tests.helpers.golden_subset import SOME, subset

PROMPTS = ("P-R001", "P-R003", "P-R006", "P-R012", "P-R015", "P-R026", "P-R032", "P-R045", "P-R060")
UPDATES = ("P-U002", "P-U013", "P-U016", "P-U030")


def family_subset(home: Path, losses=SOME, prompts=PROMPTS, updates=UPDATES) -> Path:
    """Write the cases with their manifests, models and tokenizer.

    Args:
        home: a folder for them.
        losses: ids of the loss.
        prompts: ids of teacher prompts.
        updates: ids of updates.
    """
    subset(home, losses)
    for family, ids in (("reprompt", prompts), ("update", updates)):
        other = shutil.ignore_patterns("P-*")
        shutil.copytree(PACKAGED / family, home / family, ignore=other)
        manifest = json.loads((home / family / "cases.json").read_text())
        manifest["cases"] = [entry for entry in manifest["cases"] if entry["id"] in ids]
        (home / family / "cases.json").write_text(json.dumps(manifest))
        for entry in manifest["cases"]:
            shutil.copy(PACKAGED / family / entry["file"], home / family)
    return home
