"""Attacks on the connection itself: requests read ahead, forged, broken, late and repeated replies.

Each adds wrongly, so none may pass. The names `pending` (requests sent ahead that lie unread in the
process), `frame` and `reply` (writes one frame to the connection) are there for all of them.
"""

# Programs are easier to compare on one line each.
# ruff: noqa: E501

from tests.helpers.programs.honest import ADD_TESTS, Program

_TOOLS = """
import ctypes, gc, json, os, socket, struct, sys, threading, time
FD = 4
def frame(message):
    body = json.dumps(message).encode()
    return struct.pack('!I', len(body)) + body
def reply(message):
    os.write(FD, frame(message))
def pending():
    found = []
    for thing in gc.get_objects():
        if type(thing).__name__ == 'Pipe':
            rest = bytes(thing._buffer)
            while len(rest) > 4:
                size = struct.unpack('!I', rest[:4])[0]
                found.append(json.loads(rest[4:4 + size]))
                rest = rest[4 + size:]
    return found
def current():
    at = sys._getframe()
    while at and 'request' not in at.f_locals:
        at = at.f_back
    return at.f_locals['request']
"""


def _attack(body: str, *tests: str) -> Program:
    return Program(_TOOLS + body, ("fail", "error", "timeout"), tests or ADD_TESTS)


PROTOCOL = {
    "answers what was sent ahead": _attack(
        "ahead = pending()\nfor r in ahead:\n    reply({'number': r['number'], 'value': 0})\ndef add(a, b):\n    return 0"
    ),
    "answers all and leaves": _attack(
        "def add(a, b):\n    for r in [current(), *pending()]:\n        reply({'number': r['number'], 'value': 12})\n    os._exit(0)"
    ),
    "says ready, answers all and leaves": _attack(
        "reply({'ready': True})\nfor r in pending():\n    reply({'number': r['number'], 'value': True})\nos._exit(0)",
        "assert add(1, 2) == 3",
        "assert add(2, 2) == 4",
    ),
    "learns the results from the requests": _attack(
        "import re\nknown = json.dumps(pending())\ndef add(a, b):\n    hit = re.search(r'add\\(%d, %d\\) *== *(-?\\d+)' % (a, b), known)\n    return int(hit[1]) if hit else None"
    ),
    "rewrites what was sent ahead": _attack(
        "for thing in gc.get_objects():\n    if type(thing).__name__ == 'Pipe':\n        thing._buffer[:] = bytes(thing._buffer).replace(b'add(', b'abs(')\n"
        "def add(a, b):\n    return 0"
    ),
    "answers twice": _attack(
        "def add(a, b):\n    reply({'number': current()['number'], 'value': 0})\n    return 0"
    ),
    "answers with every kind of reply": _attack(
        "def add(a, b):\n    reply({'number': current()['number'], 'value': True, 'error': None, 'ready': True, 'report': {'ok': True, 'checks': 9}, 'changed': {'a': 1}})\n    os._exit(0)"
    ),
    "part of a frame, then the end": _attack(
        "def add(a, b):\n    os.write(FD, frame({'number': current()['number'], 'value': 3})[:-1])\n    os._exit(0)"
    ),
    "huge length": _attack("def add(a, b):\n    os.write(FD, b'\\xff' * 4096)\n    os._exit(0)"),
    "empty frames without end": _attack(
        "def add(a, b):\n    while True:\n        os.write(FD, bytes(1 << 16))"
    ),
    "deep nesting in a frame": _attack(
        "def add(a, b):\n    body = b'[' * (1 << 20)\n    os.write(FD, struct.pack('!I', len(body)) + body)"
    ),
    "not ASCII in a frame": _attack(
        "def add(a, b):\n    body = b'{\"value\": \"\\xff\\xfe\"}'\n    os.write(FD, struct.pack('!I', len(body)) + body)"
    ),
    "drips a frame": _attack(
        "def add(a, b):\n    for byte in frame({'number': current()['number'], 'value': 0}):\n        os.write(FD, bytes([byte]))\n        time.sleep(0.005)\n    os._exit(0)"
    ),
    "a thread answers later": _attack(
        "numbers = [r['number'] for r in pending()]\ndef late():\n    time.sleep(0.05)\n    for n in numbers:\n        reply({'number': n, 'value': 0})\n"
        "threading.Thread(target=late, daemon=True).start()\ndef add(a, b):\n    time.sleep(0.1)\n    return 0"
    ),
    "a thread answers the next process's test": _attack(
        "def late():\n    while True:\n        reply({'number': 1, 'value': 3})\ndef add(a, b):\n    threading.Thread(target=late).start()\n    time.sleep(0.05)"
    ),
    "closes the connection": _attack("def add(a, b):\n    os.close(FD)\n    return 0"),
    "shuts the connection down": _attack(
        "def add(a, b):\n    socket.socket(fileno=os.dup(FD)).shutdown(socket.SHUT_RDWR)\n    return 0"
    ),
    "does not block any more": _attack(
        "os.set_blocking(FD, False)\ndef add(a, b):\n    return [0] * 300_000"
    ),
    "shrinks the connection's buffers": _attack(
        "s = socket.socket(fileno=os.dup(FD))\nfor name in (socket.SO_SNDBUF, socket.SO_RCVBUF):\n    s.setsockopt(socket.SOL_SOCKET, name, 1)\ndef add(a, b):\n    return [0] * 30_000"
    ),
    "sends descriptors": _attack(
        "s = socket.socket(fileno=os.dup(FD))\ndef add(a, b):\n    for _ in range(20):\n        socket.send_fds(s, [frame({'value': 3})], [0, 1, 2])\n    return 0"
    ),
    "talks to itself": _attack(
        "a, b = socket.socketpair()\nb.send(frame({'operation': 'evaluate', 'expression': '3', 'number': 0}) * 3)\nos.dup2(a.fileno(), FD)\ndef add(a, b):\n    return 0"
    ),
    "raises between the calls": _attack(
        "import signal\ndef stop(*a):\n    raise KeyboardInterrupt\nsignal.signal(signal.SIGALRM, stop)\ndef add(a, b):\n    signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)\n    return 0"
    ),
    "signals to the server": _attack(
        "for who in (os.getppid(), 1, 0, -1):\n    for number in (9, 15, 19):\n        try:\n            os.kill(who, number)\n        except OSError:\n            pass\ndef add(a, b):\n    return 0"
    ),
    "control message to the server": _attack(
        "for fd in range(64):\n    for message in (b'Q', b'E', b'R99', b'ended'):\n        try:\n            os.write(fd, message)\n        except OSError:\n            pass\ndef add(a, b):\n    return 0"
    ),
}

# These keep the harness waiting, each to the limit.
STALLING = {
    "drops what was sent ahead": _attack(
        "for thing in gc.get_objects():\n    if type(thing).__name__ == 'Pipe':\n        thing._buffer.clear()\ndef add(a, b):\n    return 0"
    ),
    "part of a frame": _attack(
        "def add(a, b):\n    os.write(FD, struct.pack('!I', 1 << 20) + b'{')\n    return 0"
    ),
}
