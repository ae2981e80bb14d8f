"""Which checkout of the fork is run: where it lies, its commit, and what was changed in it."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

COMMIT = "0e6d5106abe69f578c63bf38a9394e22905c8773"
VARIABLE = "SDPO_VERL_CHECKOUT"
NEEDED_FILES = (
    "verl/trainer/config/sdpo.yaml",
    "verl/trainer/ppo/core_algos.py",
    "verl/trainer/ppo/ray_trainer.py",
    "verl/trainer/ppo/rollout_corr_helper.py",
    "verl/utils/torch_functional.py",
    "verl/workers/actor/dp_actor.py",
    "verl/workers/config/actor.py",
)
CLONE = f"git clone https://github.com/lasgroup/SDPO && git -C SDPO checkout {COMMIT[:8]}"
FIX = f"{CLONE}, then {VARIABLE}=SDPO sdpo audit verl"


class CheckoutError(Exception):
    """The checkout cannot be run; the message says in one line why, and what to do."""


@dataclass(frozen=True)
class Checkout:
    """A checkout of the fork.

    Attributes:
        root: the folder that holds `verl/`.
        commit: what its own git repository says, None if it has none.
        changed: files below `verl/` that differ from that commit, or are not in it.
        diff: the differences as git prints them, empty without any.
    """

    root: Path
    commit: str | None
    changed: tuple[str, ...] = ()
    diff: str = ""

    @property
    def is_recorded_commit(self) -> bool:
        """Whether it is, unmodified, the commit that the golden data were recorded from."""
        return self.commit == COMMIT and not self.changed

    def described(self) -> str:
        """Which commit it is and whether files of it were modified, beside the recorded one."""
        if self.commit is None:
            state = "a folder without a git repository of its own, commit unknown"
        else:
            other = "" if self.commit == COMMIT else ", another one than recorded"
            state = f"commit {self.commit[:12]}{other}"
        if self.changed:
            names = ", ".join(self.changed[:3])
            more = f" and {len(self.changed) - 3} more" if len(self.changed) > 3 else ""
            state += f", modified: {names}{more}"
        return f"{state}; the golden data are of commit {COMMIT[:12]}"


def find_checkout(folder: Path | None = None) -> Path:
    """Find the folder that holds the fork's package `verl`, and put it first on the path.

    Args:
        folder: where it is; by default what SDPO_VERL_CHECKOUT names, or the folder of a `verl`
            that can be imported.

    Raises:
        CheckoutError: there is none, files of it are missing, or it is a verl without SDPO.
    """
    root = _root(folder)
    missing = [name for name in NEEDED_FILES if not (root / name).is_file()]
    if len(missing) == len(NEEDED_FILES):
        raise CheckoutError(f"no checkout of verl found in {root}: {FIX}")
    if missing and not _mentions_sdpo(root):
        raise CheckoutError(f"{root} is a verl without SDPO, another than lasgroup/SDPO: {FIX}")
    if missing:
        raise CheckoutError(
            f"{root} is no whole checkout of lasgroup/SDPO, {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing: git -C {root} checkout -- verl, or "
            f"{FIX}"
        )
    _put_first(root)
    return root


def find_verl(folder: Path) -> Path:
    """Find the package `verl` of any version in a folder, and put it first on the path.

    Raises:
        CheckoutError: there is none.
    """
    root = _root(folder)
    if not (root / "verl" / "__init__.py").is_file():
        raise CheckoutError(f"no checkout of verl found in {folder}: give the folder above `verl/`")
    _put_first(root)
    return root


def _root(folder: Path | None) -> Path:
    """The folder of the checkout that is meant."""
    named = os.environ.get(VARIABLE, "")
    if folder is None and named:
        folder = Path(named)
    if folder is None:
        folder = _importable()
    root = folder.resolve()
    if not root.is_dir():
        raise CheckoutError(f"no checkout of verl found: {folder} is no folder: {FIX}")
    return root


def _mentions_sdpo(root: Path) -> bool:
    """Whether any of the needed files that are there has the fork's settings or its loss."""
    texts = ((root / name).read_text("utf-8") for name in NEEDED_FILES if (root / name).is_file())
    return any("self_distillation" in text or "SelfDistillation" in text for text in texts)


def _put_first(root: Path) -> None:
    """Let `import verl` find this checkout.

    Raises:
        CheckoutError: another one was imported before.
    """
    if str(root) not in sys.path[:1]:
        sys.path.insert(0, str(root))
    _refuse_another_import(root)


def _importable() -> Path:
    """The folder of a `verl` on the path."""
    try:
        spec = importlib.util.find_spec("verl")
    except (ImportError, ValueError) as error:
        raise CheckoutError(f"no checkout of verl found ({error}): {FIX}") from error
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise CheckoutError(f"no checkout of verl found: {FIX}")
    return Path(places[0]).parent


def _refuse_another_import(root: Path) -> None:
    """Refuse to run one checkout where the package of another is loaded already."""
    loaded = sys.modules.get("verl")
    file = getattr(loaded, "__file__", None)
    if file is not None and Path(file).resolve().parent.parent != root:
        raise CheckoutError(
            f"verl was imported from {Path(file).parent.parent} before {root} was asked for: one "
            "process runs one checkout"
        )


def inspect_checkout(root: Path) -> Checkout:
    """Ask git for the commit and for changed files.

    A repository counts only if its top folder is the checkout's: a plain copy of the fork inside
    of another repository has no commit.
    """
    top = _git(root, "rev-parse", "--show-toplevel").strip()
    if not top or Path(top).resolve() != root:
        return Checkout(root, None)
    commit = _git(root, "rev-parse", "HEAD").strip() or None
    status = _git(root, "status", "--porcelain", "--untracked-files=all", "--", "verl")
    changed = tuple(line[3:] for line in status.splitlines())
    diff = _git(root, "diff", "HEAD", "--", "verl") if changed else ""
    return Checkout(root, commit, changed, diff)


def _git(root: Path, *arguments: str) -> str:
    """What a git command prints, empty if it fails or there is no git."""
    # the checkout's code is run anyway, so that it does not matter whose folder it is
    command = ["git", "-c", "safe.directory=*", "-C", str(root), *arguments]
    # a repository that a hook or another tool named is not the checkout's
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""
