"""Attempts on the machine: each program solves the task only if its attempt was refused.

So a pass proves the confinement. All are harmless where the confinement fails. Numbers of system
calls are those of x86-64.
"""

# Programs are easier to compare on one line each.
# ruff: noqa: E501

from tests.helpers.programs.honest import Program

_ATTEMPT = (
    "import ctypes, os, socket, subprocess, sys\n"
    "libc = ctypes.CDLL(None, use_errno=True)\n"
    "def call(n, *a):\n    r = libc.syscall(n, *a)\n    if r < 0:\n        raise OSError(ctypes.get_errno(), 'refused')\n    return r\n"
    "def attempt():\n    {body}\n"
    "refused = False\ntry:\n    attempt()\nexcept (OSError, MemoryError):\n    refused = True\n"
    "def add(a, b):\n    return a + b if refused else 'not refused'\n"
)


def _attempt(*body: str) -> Program:
    return Program(_ATTEMPT.format(body="\n    ".join(body)), ("pass",))


REFUSED = {
    "fork": _attempt("if os.fork() == 0:", "    os._exit(0)"),
    "vfork by number": _attempt("if call(58) == 0:", "    os._exit(0)"),
    "clone by number": _attempt("if call(56, 17, 0, 0, 0, 0) == 0:", "    os._exit(0)"),
    "subprocess": _attempt("subprocess.run(['/bin/true'])"),
    "os.system": _attempt("if os.system('true') != 0:", "    raise OSError"),
    "posix_spawn": _attempt("os.posix_spawn('/bin/true', ['true'], {})"),
    "exec": _attempt("os.execv('/bin/true', ['true'])"),
    "multiprocessing": _attempt(
        "import multiprocessing",
        "p = multiprocessing.get_context('fork').Process(target=print)",
        "p.start()",
        "p.join()",
    ),
    "signal to the parent": _attempt("os.kill(os.getppid(), 0)"),
    "signal to process 1": _attempt("os.kill(1, 0)"),
    "signal to all": _attempt("os.kill(-1, 0)"),
    "signal to the group": _attempt("os.killpg(0, 0)"),
    "signal by thread": _attempt("call(200, 1, 0)"),
    "signal by queue": _attempt("call(129, 1, 0, 0)"),
    "signal by descriptor": _attempt("os.pidfd_open(os.getppid())"),
    "signal by ownership": _attempt(
        "import fcntl", "a, b = socket.socketpair()", "fcntl.fcntl(a, fcntl.F_SETOWN, os.getppid())"
    ),
    "trace the parent": _attempt("call(101, 16, os.getppid(), 0, 0)"),
    "read the parent's memory": _attempt("call(310, os.getppid(), 0, 0, 0, 0, 0)"),
    "write the parent's memory": _attempt("open(f'/proc/{os.getppid()}/mem', 'rb+')"),
    "limits of the parent": _attempt(
        "import resource", "resource.prlimit(os.getppid(), resource.RLIMIT_CPU)"
    ),
    "raise own limits": _attempt(
        "import resource",
        "try:",
        "    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        "except ValueError:",
        "    raise OSError",
    ),
    "priority of others": _attempt("os.setpriority(os.PRIO_USER, 0, 1)"),
    "scheduling": _attempt("os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))"),
    "processors": _attempt("os.sched_setaffinity(os.getppid(), {0})"),
    "internet socket": _attempt("socket.socket()"),
    "datagram socket": _attempt("socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)"),
    "unix socket": _attempt("socket.socket(socket.AF_UNIX)"),
    "raw socket": _attempt("socket.socket(socket.AF_INET, socket.SOCK_RAW)"),
    "netlink socket": _attempt("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)"),
    "vsock": _attempt("socket.socket(40, socket.SOCK_STREAM)"),
    "name look-up": _attempt("socket.getaddrinfo('example.com', 80)"),
    "connection": _attempt("socket.create_connection(('127.0.0.1', 9), 1)"),
    "server": _attempt("socket.create_server(('127.0.0.1', 0))"),
    "url": _attempt(
        "import urllib.request", "urllib.request.urlopen('http://127.0.0.1:9/', timeout=1)"
    ),
    "read passwd": _attempt("open('/etc/passwd').read()"),
    "read hostname": _attempt("open('/etc/hostname').read()"),
    "read by symbolic link": _attempt("os.symlink('/etc/passwd', 'p')", "open('p').read()"),
    "read by hard link": _attempt("os.link('/etc/passwd', 'p')", "open('p').read()"),
    "read upwards": _attempt("open('../../../../etc/passwd').read()"),
    "read own environment": _attempt("open('/proc/self/environ').read()"),
    "read own command line": _attempt("open('/proc/self/cmdline').read()"),
    "read own memory": _attempt("open('/proc/self/mem', 'rb')"),
    "read own maps": _attempt("open('/proc/self/maps').read()"),
    "list descriptors": _attempt("os.listdir('/proc/self/fd')"),
    "list processes": _attempt("os.listdir('/proc')"),
    "list the root": _attempt("os.listdir('/')"),
    "list the temporary folder": _attempt("os.listdir('..')"),
    "list the home": _attempt("os.listdir(os.path.expanduser('~'))"),
    "write to the temporary folder": _attempt("open('/tmp/sdpo-attempt', 'w')"),
    "write upwards": _attempt("open('../sdpo-attempt', 'w')"),
    "write to shared memory": _attempt("open('/dev/shm/sdpo-attempt', 'w')"),
    "write to the standard library": _attempt(
        "open(os.path.join(os.path.dirname(os.__file__), 'sdpo-attempt'), 'w')"
    ),
    "create elsewhere": _attempt("os.mkdir('/tmp/sdpo-attempt')"),
    "rename out": _attempt("open('x', 'w').close()", "os.rename('x', '/tmp/sdpo-attempt')"),
    "link out": _attempt("open('x', 'w').close()", "os.link('x', '/tmp/sdpo-attempt')"),
    "change mode": _attempt("os.chmod('/tmp', 0o1777)"),
    "change mode of scratch": _attempt("os.chmod('.', 0o777)"),
    "change owner": _attempt("os.chown('.', os.getuid(), os.getgid())"),
    "change times": _attempt("os.utime('/tmp')"),
    "extended attributes": _attempt("os.setxattr('.', 'user.a', b'1')"),
    "device node": _attempt("os.mknod('d', 0o20666, os.makedev(1, 1))"),
    "open a terminal": _attempt("open('/dev/tty', 'w')"),
    "open kernel memory": _attempt("open('/dev/mem', 'rb')"),
    "open kernel messages": _attempt("open('/dev/kmsg', 'rb')"),
    "system v memory": _attempt("call(29, 4242, 4096, 0o1600)"),
    "system v messages": _attempt("call(68, 4242, 0o1600)"),
    "system v semaphores": _attempt("call(64, 4242, 1, 0o1600)"),
    "posix message queue": _attempt("call(240, b'/sdpo', 0o102, 0o600, 0)"),
    "memory file": _attempt("os.memfd_create('x')"),
    "mount": _attempt("call(165, b'none', b'/tmp', b'tmpfs', 0, 0)"),
    "unmount": _attempt("call(166, b'/tmp', 2)"),
    "new root": _attempt("os.chroot('.')"),
    "new namespaces": _attempt("call(272, 0x10000000)"),
    "join namespaces": _attempt("call(308, 0, 0)"),
    "become another user": _attempt("os.setuid(65534)"),
    "become root": _attempt("os.setresuid(0, 0, 0)"),
    "keys": _attempt("call(250, 0, -3, 1)"),
    "bpf": _attempt("call(321, 0, 0, 0)"),
    "io_uring": _attempt("call(425, 4, 0)"),
    "performance events": _attempt("call(298, 0, 0, -1, -1, 0)"),
    "userfaultfd": _attempt("call(323, 0)"),
    "kernel modules": _attempt("call(175, 0, 0, b'')"),
    "reboot": _attempt("call(169, 0, 0, 0, 0)"),
    "host name": _attempt("call(170, b'x', 1)"),
    "set the clock": _attempt("import time", "time.clock_settime(0, time.time())"),
    "swap": _attempt("call(168, b'/swap')"),
    "file handles": _attempt("call(304, -100, 0, 0)"),
    "watch files": _attempt("call(294, 0)"),
    "personality": _attempt("call(135, 0xffffffff)"),
    "escape the death signal": _attempt("if libc.prctl(1, 0, 0, 0, 0) != 0:", "    raise OSError"),
    "become a subreaper": _attempt("if libc.prctl(36, 1, 0, 0, 0) != 0:", "    raise OSError"),
    "terminal input": _attempt("import fcntl", "fcntl.ioctl(0, 0x5412, b'x')"),
    "memory bomb": _attempt("x = bytearray(2 << 30)"),
    "map memory": _attempt("import mmap", "mmap.mmap(-1, 4 << 30)"),
    "large file": _attempt(
        "import signal",
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
        "with open('f', 'wb') as f:",
        "    for _ in range(200):",
        "        f.write(b'x' * (1 << 20))",
    ),
    "many descriptors": _attempt("keep = [open('/dev/null') for _ in range(5000)]"),
}
