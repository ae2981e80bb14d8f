"""What a fork server and each of its children give up, and the list of layers that took effect."""

import os
import resource
import signal
import sys
from collections.abc import Callable

from sdpo.benchmark.sandbox.confinement import kernel, landlock, seccomp

_MEGABYTE = 1 << 20
# Enough for a program with a few files and an event loop.
_OPEN_FILES = 64
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_DATA = ("/usr/share/zoneinfo", "/etc/localtime", "/usr/lib/locale")

CORE_LAYERS = ("resource-limits", "no-new-privileges", "landlock", "seccomp")


class Confinement:
    """Prepares the limits of a fork server once, so that a child needs few calls.

    `layers` lists what is active. What the kernel refuses is left out of the list, never assumed.
    """

    def __init__(self, layers: list[str], disabled: frozenset[str]) -> None:
        self.layers = list(layers)
        self._disabled = disabled
        self._restrict: Callable[[], int] | None = None
        self._filter: seccomp.ChildFilter | None = None
        self._die_with_server: Callable[[], int] | None = None

    def prepare(self, scratch: str, memory: int, file_size: int) -> None:
        """Limit this process and prepare what its children install.

        Args:
            scratch: The only writable folder.
            memory: Address space in MiB.
            file_size: Largest file in MiB.
        """
        kernel.limit_memory_arenas()
        if sys.platform == "linux":
            arguments = (kernel.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            self._die_with_server = kernel.prepared("prctl", *arguments)
        self._try("resource-limits", lambda: _limit_resources(memory, file_size))
        self._try("no-new-privileges", lambda: kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1))
        self._try("no-capabilities", kernel.drop_capabilities)
        self._try("landlock", lambda: self._make_rules(scratch))
        self._try("seccomp", self._install_filter)

    def _try(self, layer: str, action: Callable[[], object]) -> None:
        if layer in self._disabled:
            return
        try:
            action()
        except (OSError, ValueError):
            return
        self.layers.append(layer)

    def _make_rules(self, scratch: str) -> None:
        rules = landlock.ruleset(_readable(), [scratch, "/dev/null"])
        self._restrict = landlock.restriction(rules)

    def _install_filter(self) -> None:
        """Install the server's filter if the children's takes hold in a trial child."""
        prepared = seccomp.ChildFilter(kernel.machine())
        child = os.fork()
        if child == 0:
            os._exit(_filter_works(prepared))
        if os.waitpid(child, 0)[1] != 0:
            raise OSError("the filter does not take hold on this kernel")
        seccomp.install_in_server(kernel.machine())
        self._filter = prepared

    def apply(self, cpu_seconds: int) -> None:
        """Confine this process, a child of the prepared one, for good.

        Raises:
            OSError: If a layer that worked before is refused now.
        """
        os.setsid()
        if self._die_with_server is not None:
            self._die_with_server()
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        if self._restrict is not None:
            self._restrict()
        if self._filter is not None:
            self._filter.install(os.getpid())


def _filter_works(prepared: seccomp.ChildFilter) -> int:
    """Exit status for the trial child: 0 if the filter takes hold as it should."""
    try:
        seccomp.install_in_server(kernel.machine())
        prepared.install(os.getpid())
        os.getppid()
        os.fork()
    except PermissionError:
        return 0
    return 1


def _limit_resources(memory: int, file_size: int) -> None:
    limits = {
        resource.RLIMIT_AS: memory * _MEGABYTE,
        resource.RLIMIT_FSIZE: file_size * _MEGABYTE,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
    }
    for name, value in limits.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))


def _readable() -> list[str]:
    """List the standard library and the folders of the shared libraries that it needs."""
    folders = {os.path.dirname(os.__file__)}
    folders.update(path for path in sys.path if path and os.path.isdir(path))
    with open("/proc/self/maps") as maps:
        files = {line.split(maxsplit=5)[5].strip() for line in maps if line.count("/")}
    folders.update(os.path.dirname(name) for name in files if ".so" in name)
    return [*sorted(folders), "/etc/ld.so.cache", *_DATA, *_DEVICES]
