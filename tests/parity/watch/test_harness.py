"""Every release is judged by this harness, beside the same versions of everything else."""

import importlib.metadata
import subprocess
import sys

from packaging.requirements import Requirement

from sdpo.parity.watch.harness import lay_out, modules_of, requirements_of
from sdpo.parity.watch.upstreams import Upstream

RELEASED = Upstream("trl", "trl")


def by_name(requirements):
    return {Requirement(text).name: text for text in requirements}


def test_everything_but_the_release_is_what_is_installed_here():
    listed = by_name(requirements_of(RELEASED, "1.15.0", ()))
    assert listed["trl"] == "trl==1.15.0"
    assert listed["msgspec"] == f"msgspec=={importlib.metadata.version('msgspec')}"
    here = importlib.metadata.version("torch").split("+")[0]
    assert listed["torch"] == f"torch=={here}"
    assert "pytest" not in listed


def test_a_candidate_beside_releases_of_another_package_is_installed_too():
    listed = by_name(requirements_of(Upstream("sdpo-rl", "trl"), "1.15.0", ()))
    assert (listed["sdpo-rl"], listed["trl"]) == ("sdpo-rl==0.0.3", "trl==1.15.0")
    assert "sdpo-rl" not in by_name(requirements_of(RELEASED, "1.15.0", ()))


def test_what_the_user_chooses_takes_the_place_of_ours():
    listed = by_name(requirements_of(RELEASED, "1.15.0", ("Transformers<5", "requests")))
    assert "transformers" not in listed
    assert listed["Transformers"] == "Transformers<5"
    assert listed["requests"] == "requests"


def test_a_checkout_gets_what_its_modules_import_and_no_release():
    listed = by_name(requirements_of(Upstream("verl", checkout="SDPO"), "0" * 40, ()))
    assert {"ray", "tensordict", "hydra-core"} <= listed.keys()
    assert "verl" not in listed


def test_the_modules_of_this_harness_are_found_by_another_interpreter(tmp_path):
    code = (
        "import importlib.util as u, sdpo; names = ('reference', 'fixtures', 'parity.cases'); "
        "print(*[u.find_spec(f'sdpo.{name}').origin for name in names])"
    )
    done = subprocess.run(
        # without this environment's packages: only Python's own, and what is laid out
        [sys.executable, "-S", "-c", f"import sys; sys.path.append({packages()!r}); {code}"],
        env=modules_of(lay_out(tmp_path)),
        capture_output=True,
        text=True,
        check=True,
    )
    files = [
        f"{tmp_path}/sdpo/{name}/__init__.py" for name in ("reference", "fixtures", "parity/cases")
    ]
    assert done.stdout.split() == files


def packages():
    """The folder of installed packages; what it says of editable ones is not read under -S."""
    return str(importlib.metadata.distribution("torch").locate_file(""))
