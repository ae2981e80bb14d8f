"""What the README promises: its commands exist, its example runs and says what is printed there."""

import re
import tomllib
from pathlib import Path

from sdpo.parity.audit.audit import audit
from sdpo.parity.audit.request import Request
from sdpo.parity.render.text import first_line, text_report

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def between(name: str) -> str:
    found = re.search(f"<!-- {name}: begin -->(.*?)<!-- {name}: end -->", README, re.DOTALL)
    assert found is not None
    return found[1].strip()


def example() -> str:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    return code[1]


def test_example_is_named_as_the_readme_prints_it(tmp_path, monkeypatch):
    (tmp_path / "my_loss.py").write_text(example(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run = audit(Request("my_loss.py:sdpo_loss"))
    assert run.exit_code == 1
    words = r"(candidate|first|coverage|explained_by|repro)=[^=]*(?= \w+=|$)"
    printed = between("example").strip("`").strip()
    matches = [m[0] for m in re.finditer(words, printed)]
    assert matches
    for match in matches:
        assert match in first_line(run)
    assert run.first_stage == "support"
    assert any(name.startswith("M04") for name in run.explained_by)


def test_example_with_its_fault_removed_as_the_readme_says_exits_with_0(tmp_path, monkeypatch):
    line = re.search(r"`(_, s, t = support\(.*?\))` it is `(\w+)`", README)
    assert line is not None
    repaired = re.sub(r"_, t, s = support\(.*  # a fault.*", line[1], example())
    assert repaired != example()
    (tmp_path / "repaired.py").write_text(repaired, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run = audit(Request("repaired.py:sdpo_loss"))
    assert (run.verdict, run.exit_code) == (line[2], 0), first_line(run)
    assert {row.id for row in run.improvements} == {"D01", "D02", "D03"}
    assert all(row.reason in text_report(run) for row in run.improvements)


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|^)make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_commands_without_make_install_declared_extras():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for extra in re.findall(r"\.\[(\w+)\]", README):
        assert extra in extras


def test_verdict_table_names_all_stages():
    from sdpo.parity.cases.stages import NAMES

    table = between("verdicts")
    assert all(f"`{name}`" in table for name in NAMES)


def test_trainers_table_is_the_one_of_the_peers_page():
    from sdpo.parity.cases.stages import NAMES
    from sdpo.parity.faults.catalogue import BY_ID

    block, page = between("trainers"), (ROOT / "docs" / "peers.md").read_text(encoding="utf-8")
    rows = [line for line in block.splitlines() if re.match(r"\| +\d+ \|", line)]
    assert [row.split("`")[1] for row in rows] == list(NAMES)
    assert all(row in page for row in rows)
    for name in ("sdpo-trainer", "trl", "sdpo-rl"):
        (line,) = (line for line in block.splitlines() if f"`sdpo audit {name}`" in line)
        assert line.removeprefix("- ") in page
    faults = set(re.findall(r"\bM\d+[a-z]?\b", block))
    assert faults
    assert faults <= BY_ID.keys()
    for versions in re.findall(r"(?:TRL|sdpo-rl) \d+\.\d+\.\d+", README):
        assert versions in block, versions
