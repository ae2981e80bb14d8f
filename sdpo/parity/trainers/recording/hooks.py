"""Replace functions by ones that also tell what they were given and what they returned.

A hook that is not there, or never fires, would leave a stage looking covered by nothing, so either
is an error and never a pass.
"""

import functools
import importlib.metadata
import inspect
from collections.abc import Callable
from typing import Any

from sdpo.parity.cases.checked_call import CandidateError

SHOWN_VERSIONS = ("trl", "transformers", "peft", "accelerate", "torch")
Arguments = dict[str, Any]
"""Arguments of a call by parameter name, defaults included."""
Seen = Callable[[Arguments, Any], None]


def installed_versions(*packages: str) -> str:
    """List `name version, …` of the installed packages that decide how a trainer behaves."""
    versions = []
    for name in dict.fromkeys([*filter(None, packages), *SHOWN_VERSIONS]):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(versions)


class Watch:
    """All hooks of one run. Use as a context manager: on leaving, everything is put back.

    Args:
        package: the audited distribution, named in error messages.
    """

    def __init__(self, package: str = ""):
        self.package = package
        self.calls: dict[str, int] = {}
        self.required: set[str] = set()
        self.undo: list[Callable[[], Any]] = []

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        while self.undo:
            self.undo.pop()()

    def function(self, holder: Any, name: str, seen: Seen, *, required: bool = True) -> None:
        """Call `seen(arguments, result)` after every call of `holder.name`.

        Args:
            holder: a module, class instance or class; only the attribute on it is replaced.
            name: attribute that holds the function.
            seen: gets the arguments by parameter name, defaults included, and the result.
            required: whether not being called in a run is an error (see `check`).

        Raises:
            CandidateError: there is no such function.
        """
        label = f"{getattr(holder, '__name__', type(holder).__name__)}.{name}"
        original = getattr(holder, name, None)
        if not callable(original):
            raise CandidateError(
                "config",
                f"hook {label}: there is no such function any more; the adapter was written for "
                f"another version. Installed: {installed_versions(self.package)}",
            )
        signature = inspect.signature(original)

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self.calls[label] += 1
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            seen(dict(bound.arguments), result)
            return result

        self.expect(label, required=required)
        self.replace(holder, name, watched)

    def replace(self, holder: Any, name: str, value: Any) -> None:
        """Put another value in place of an attribute until the watch ends."""
        had, before = name in vars(holder), getattr(holder, name)
        setattr(holder, name, value)
        self.undo.append(lambda: setattr(holder, name, before) if had else delattr(holder, name))

    def expect(self, label: str, *, required: bool = True) -> None:
        """Register something that counts its own calls in `calls`."""
        self.calls.setdefault(label, 0)
        if required:
            self.required.add(label)

    def check(self) -> None:
        """Check that every required hook fired.

        Raises:
            CandidateError: one did not.
        """
        silent = sorted(label for label in self.required if self.calls[label] == 0)
        if silent:
            raise CandidateError(
                "config",
                f"{', '.join(f'hook {label} did not fire' for label in silent)}: the trainer no "
                "longer goes that way, so what it does there is unknown; versions: "
                f"{installed_versions(self.package)}",
            )
