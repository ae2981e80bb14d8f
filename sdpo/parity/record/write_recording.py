"""Writes recorded cases as a folder of golden data: all of it, or nothing."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sdpo.fixtures import FAMILIES, GoldenDataError, load_families
from sdpo.parity.record.recipes import Recording

Recordings = Mapping[str, Sequence[Recording]]
"""Recorded cases by family."""


def write_recording(
    folder: Path, recordings: Recordings, provenance: Mapping[str, object], name: str
) -> None:
    """Write the folder beside its place first and rename it at the end; an older one is replaced.

    Args:
        folder: where the recording is put.
        recordings: the cases.
        provenance: of every manifest.
        name: of the set of cases.

    Raises:
        OSError: it cannot be written; nothing is left of it, and an older one stays.
    """
    with _beside(folder) as new:
        for family, cases in recordings.items():
            (new / family).mkdir()
            manifest = manifest_of(family, cases, provenance, name)
            for case in cases:
                (new / family / case.file).write_bytes(case.data)
            text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
            (new / family / "cases.json").write_text(text, "utf-8")
        if not folder.exists():
            new.rename(folder)
            return
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent)) / "old"
        folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            old.rename(folder)
            raise
        finally:
            shutil.rmtree(old.parent, ignore_errors=True)


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A new folder beside another, removed where it was not renamed."""
    made = next((p for p in (*reversed(folder.parents),) if not p.exists()), None)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    scratch.chmod(0o755)
    try:
        yield scratch
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        raise


def manifest_of(
    family: str, cases: Sequence[Recording], provenance: Mapping[str, object], name: str
) -> dict[str, object]:
    """The manifest of a family."""
    return {
        "family": family,
        "set": name,
        "provenance": dict(provenance),
        "case_count": len(cases),
        "cases": [dict(case.entry) for case in cases],
    }


def differences(folder: Path, recordings: Recordings) -> list[str]:
    """How a folder of golden data differs from what was recorded now, a line for each case.

    Its provenance is not compared, as the day is in it.

    Raises:
        GoldenDataError: the folder holds something else than golden data, or damaged ones.
    """
    before = {(f.name, case.id): case for f in load_families(folder) for case in f}
    now = {(family, str(c.entry["id"])): c for family, cases in recordings.items() for c in cases}
    found = []
    for key in sorted({*before, *now}, key=lambda key: (FAMILIES.index(key[0]), key[1])):
        if key not in now:
            found.append(f"{key[1]} is not recorded any more")
        elif key not in before:
            found.append(f"{key[1]} is new")
        elif before[key].entry != now[key].entry:
            entry = now[key].entry
            names = sorted(n for n in entry if before[key].entry.get(n) != entry[n])
            found.append(f"{key[1]} differs in {', '.join(names) or 'its fields'}")
        else:
            try:
                before[key].tensors()
            except GoldenDataError as error:
                found.append(str(error))
    return found
