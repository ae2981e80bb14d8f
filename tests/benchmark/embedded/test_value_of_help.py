"""The embedded model is the one its manifest names, is small, and uses a demonstration."""

import hashlib
import json

from sdpo.benchmark.embedded.lessons import taught
from sdpo.benchmark.problems.prompts import embedded_folder, load_data
from sdpo.benchmark.runs.models import load_model, load_tokenizer
from sdpo.benchmark.runs.settings import load
from sdpo.benchmark.scoring.pass_at_1 import complete
from sdpo.settings.determinism import deterministic


def test_files_are_those_of_the_manifest():
    folder = embedded_folder()
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    found = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in manifest["sha256"]
    }
    assert found == manifest["sha256"]
    assert 1e6 <= manifest["parameters"] <= 5e6
    assert sum(path.stat().st_size for path in folder.iterdir()) < 16e6


def test_a_demonstration_is_used_and_a_wrong_one_believed():
    settings, problems = load("sdpo"), load_data("embedded").only("validation").problems[:16]
    tokenizer = load_tokenizer("embedded")
    swapped = [problems[place - 1].code for place in range(len(problems))]
    prompts = [one.text for one in problems]
    prompts += [taught(one.text, solution=one.code) for one in problems]
    prompts += [
        taught(one.text, solution=code) for one, code in zip(problems, swapped, strict=True)
    ]
    conversations = [[{"role": "user", "content": text}] for text in prompts]
    with deterministic():
        texts = complete(load_model(settings.model), tokenizer, conversations, settings.eval)
    plain, shown, wrong = texts[:16], texts[16:32], texts[32:]
    right = [one.code for one in problems]
    hits = [sum(a == b for a, b in zip(one, right, strict=True)) for one in (plain, shown, wrong)]
    assert hits[1] >= 8 > hits[0]
    assert hits[2] <= hits[0]
