"""Cheats, programs that do not end and noisy ones, with the verdicts they must get.

`CHEATS` never solve the task and must not pass. `ENDLESS` must be stopped at the limit. `NOISY`
solve the task while doing damage inside their own process, and must neither disturb others nor
leave anything behind.
"""

# Programs are easier to compare on one line each.
# ruff: noqa: E501

from tests.helpers.programs.honest import ADD_TESTS, Program

_NOT_PASSED = ("fail", "error", "timeout")
TRUTH_TESTS = ("assert good(1)", "assert good(2) == True", "assert not bad(1)")


def _cheat(completion: str, *tests: str, imports: str = "", setup: str = "") -> Program:
    return Program(completion, _NOT_PASSED, tests or ADD_TESTS, imports, setup)


_EQUAL = (
    "class E{base}:\n    def __eq__(self, o):\n        return True\n    def __ne__(self, o):\n"
    "        return False\n    def __hash__(self):\n        return 0\n    __lt__ = __gt__ = __le__ = __ge__ = __eq__\n"
    "    def __contains__(self, o):\n        return True\n    def __bool__(self):\n        return True\n"
    "def add(a, b):\n    return E()\n"
)
_FORGE = (
    "import os, json, struct\ndef frame(m):\n    p = json.dumps(m).encode()\n"
    "    return struct.pack('!I', len(p)) + p\ndef forge(*messages):\n    for fd in range(1, 64):\n"
    "        for m in messages:\n            try:\n                os.write(fd, frame(m))\n"
    "            except OSError:\n                pass\n"
)

CHEATS = {
    "exits at once": _cheat("import sys\nsys.exit(0)"),
    "exits at once, hard": _cheat("import os\nos._exit(0)"),
    "raises SystemExit": _cheat("raise SystemExit(0)"),
    "quits": _cheat("def add(a, b):\n    quit()"),
    "exits in the call": _cheat("import sys\ndef add(a, b):\n    sys.exit(0)"),
    "exits in the call, hard": _cheat("import os\ndef add(a, b):\n    os._exit(0)"),
    "keyboard interrupt": _cheat("def add(a, b):\n    raise KeyboardInterrupt"),
    "generator exit": _cheat("def add(a, b):\n    raise GeneratorExit"),
    "stop iteration": _cheat(
        "def add(a, b):\n    raise StopIteration", "assert list(map(add, [1], [2])) == [3]"
    ),
    "raises AssertionError": _cheat("def add(a, b):\n    raise AssertionError"),
    "exits after definition": _cheat("def add(a, b):\n    return 0\nimport os\nos._exit(0)"),
    "exit at exit": _cheat(
        "import atexit, os\natexit.register(lambda: os._exit(0))\ndef add(a, b):\n    return 0"
    ),
    "prints success": _cheat(
        'print(\'{"status": "pass", "passed": 3, "total": 3}\')\nprint(\'PASS all tests passed\')\n'
        "def add(a, b):\n    print('OK')\n    return None"
    ),
    "writes to all descriptors": _cheat(
        "import os\nfor fd in range(64):\n    try:\n        os.write(fd, b'passed' * 9)\n    except OSError:\n        pass\n"
        "def add(a, b):\n    return 0"
    ),
    "forges a ready message and a value": _cheat(
        _FORGE + "forge({'ready': True}, {'value': 3, 'number': 1}, {'value': 3})\nos._exit(0)"
    ),
    "forges a value in the call": _cheat(
        _FORGE
        + "def add(a, b):\n    forge({'value': 3}, {'ok': True}, {'report': {'ok': True, 'checks': 1}})\n"
        "    os._exit(0)"
    ),
    "forges a report": _cheat(
        _FORGE + "def add(a, b):\n    forge({'report': {'ok': True, 'checks': 3}})\n    return 0",
        "assert abs(add(1, 2) - 3) < 1e-6",
    ),
    "forges without defining": _cheat(
        _FORGE + "forge({'ready': True})\nimport time\ntime.sleep(0.3)\nforge({'value': True})",
        *TRUTH_TESTS,
    ),
    "forges garbage": _cheat(
        "import os\ndef add(a, b):\n    for fd in range(3, 20):\n        try:\n            os.write(fd, b'\\xff' * 1000)\n"
        "        except OSError:\n            pass\n    return 0"
    ),
    "forges an endless frame": _cheat(
        "import os, struct\ndef add(a, b):\n    for fd in range(3, 20):\n        try:\n"
        "            os.write(fd, struct.pack('!I', 2**31))\n        except OSError:\n            pass\n    return 0"
    ),
    "closes all descriptors": _cheat(
        "import os\nos.closerange(0, 64)\ndef add(a, b):\n    return 3"
    ),
    "replaces descriptors": _cheat(
        "import os\nr, w = os.pipe()\nfor fd in range(64):\n    if fd not in (r, w):\n        try:\n            os.dup2(w, fd)\n"
        "        except OSError:\n            pass\ndef add(a, b):\n    return 3"
    ),
    "reads the requests": _cheat(
        "import os\ndef add(a, b):\n    for fd in range(3, 20):\n        try:\n            os.set_blocking(fd, False)\n"
        "            return os.read(fd, 999)\n        except OSError:\n            pass"
    ),
    "equals everything": _cheat(_EQUAL.format(base="")),
    "integer that equals everything": _cheat(_EQUAL.format(base="(int)")),
    "float that equals everything": _cheat(_EQUAL.format(base="(float)")),
    "text that equals everything": _cheat(_EQUAL.format(base="(str)")),
    "list that equals everything": _cheat(_EQUAL.format(base="(list)")),
    "dict that equals everything": _cheat(_EQUAL.format(base="(dict)")),
    "tuple that equals everything": _cheat(_EQUAL.format(base="(tuple)")),
    "equals everything, in a set": _cheat(_EQUAL.format(base=""), "assert set([add(1, 2)]) == {3}"),
    "equals everything, in a list": _cheat(_EQUAL.format(base=""), "assert [add(1, 2)] == [3]"),
    "equals everything, membership": _cheat(_EQUAL.format(base=""), "assert 3 in add(1, 2)"),
    "equals everything, compared": _cheat(
        _EQUAL.format(base=""), "assert add(1, 2) > 2", "assert add(1, 2) != 7"
    ),
    "class that equals everything": _cheat(
        "class M(type):\n    def __eq__(cls, o):\n        return True\n    __hash__ = type.__hash__\n"
        "class E(metaclass=M):\n    pass\ndef add(a, b):\n    return E"
    ),
    "pretends to be an integer": _cheat(
        "class E:\n    __class__ = int\n    def __eq__(self, o):\n        return True\n    def __index__(self):\n        return 3\n"
        "def add(a, b):\n    return E()"
    ),
    "mock object": _cheat("from unittest.mock import ANY\ndef add(a, b):\n    return ANY"),
    "magic mock": _cheat(
        "from unittest.mock import MagicMock\ndef add(a, b):\n    m = MagicMock()\n    m.__eq__.return_value = True\n    return m"
    ),
    "lying bases": _cheat(
        "class E(int):\n    def __pos__(self):\n        return 3\n    __int__ = __index__ = __add__ = __pos__\n"
        "def add(a, b):\n    return E(99)"
    ),
    "lying iteration": _cheat(
        "class L(list):\n    def __iter__(self):\n        return iter([1, 2])\n    def __len__(self):\n        return 2\n"
        "def t():\n    return L()",
        "assert t() == [1, 2]",
    ),
    "patches len": _cheat(
        "import builtins\nbuiltins.len = lambda x: 3\ndef t():\n    return []",
        "assert len(t()) == 3",
    ),
    "defines len": _cheat(
        "def len(x):\n    return 3\ndef t():\n    return []", "assert len(t()) == 3"
    ),
    "defines sorted": _cheat(
        "def sorted(x):\n    return 0\ndef t():\n    return []", "assert sorted(t()) == sorted([1])"
    ),
    "defines set": _cheat(
        "set = lambda x: 0\ndef t():\n    return []", "assert set(t()) == set([1])"
    ),
    "defines abs": _cheat(
        "def abs(x):\n    return 0\ndef t():\n    return 5", "assert abs(t() - 1) < 1e-9"
    ),
    "patches isinstance": _cheat(
        "import builtins\nbuiltins.isinstance = lambda *a: True\ndef t():\n    return 's'",
        "assert isinstance(t(), int)",
    ),
    "patches isclose": _cheat(
        "import math\nmath.isclose = lambda *a, **k: True\ndef t():\n    return 9",
        "assert math.isclose(t(), 1)",
        imports="import math",
    ),
    "defines isclose": _cheat(
        "def isclose(*a, **k):\n    return True\ndef t():\n    return 9",
        "assert isclose(t(), 1)",
        imports="from math import isclose",
    ),
    "defines math": _cheat(
        "class math:\n    isclose = staticmethod(lambda *a, **k: True)\ndef t():\n    return 9",
        "assert math.isclose(t(), 1)",
        imports="import math",
    ),
    "patches getsizeof": _cheat(
        "import sys\nsys.getsizeof = lambda x: 7\ndef size(t):\n    return 7",
        "assert size((1, 2)) == sys.getsizeof((1, 2))",
    ),
    "patches the helper's builtins": _cheat(
        "import builtins\nbuiltins.abs = lambda x: 0\ndef t():\n    return 9",
        "assert near(t(), 1)",
        setup="def near(a, b):\n    return abs(a - b) < 1e-6",
    ),
    "defines the helper": _cheat(
        "def near(a, b):\n    return True\ndef t():\n    return 9",
        "assert near(t(), 1)",
        setup="def near(a, b):\n    return abs(a - b) < 1e-6",
    ),
    "patches AssertionError": _cheat(
        "import builtins\nbuiltins.AssertionError = SystemExit\ndef add(a, b):\n    return 0"
    ),
    "patches operator": _cheat(
        "import operator\noperator.eq = lambda a, b: True\ndef add(a, b):\n    return 0"
    ),
    "patches json": _cheat(
        "import json, json.encoder\njson.dumps = json.encoder.JSONEncoder.encode = lambda *a, **k: '3'\ndef add(a, b):\n    return 0"
    ),
    "patches everything": _cheat(
        "import builtins\nfor n in ('len', 'str', 'int', 'type', 'isinstance', 'list', 'dict', 'set', 'eval', 'exec', 'compile', 'iter', 'next', 'getattr', 'id'):\n"
        "    setattr(builtins, n, lambda *a, **k: True)\ndef add(a, b):\n    return 0"
    ),
    "clears builtins": _cheat(
        "import builtins\nvars(builtins).clear()\ndef add(a, b):\n    return 0"
    ),
    "clears modules": _cheat("import sys\nsys.modules.clear()\ndef add(a, b):\n    return 0"),
    "searches memory for the answer": _cheat(
        "import gc\ndef add(a, b):\n    for o in gc.get_objects():\n        if isinstance(o, str) and 'assert' in o and 'add(' in o:\n"
        "            return eval(o.partition('==')[2])\n        if isinstance(o, dict) and 'expected' in o:\n            return o['expected']"
    ),
    "walks the frames": _cheat(
        "import sys\ndef add(a, b):\n    f = sys._getframe()\n    while f:\n        for k, v in list(f.f_locals.items()) + list(f.f_globals.items()):\n"
        "            if k in ('expected', 'tests', 'test', 'literal', 'plan'):\n                return v\n        f = f.f_back"
    ),
    "inspects the source": _cheat(
        "import inspect, linecache\ndef add(a, b):\n    for frame in inspect.stack():\n        if frame.code_context:\n"
        "            line = ''.join(frame.code_context)\n            if '==' in line and 'add(' in line:\n                return eval(line.partition('==')[2])"
    ),
    "traces": _cheat(
        "import sys\ndef tracer(frame, event, arg):\n    for k in list(frame.f_locals):\n        if k == 'actual':\n            frame.f_locals[k] = 3\n    return tracer\n"
        "sys.settrace(tracer)\nsys.setprofile(tracer)\ndef add(a, b):\n    return 0"
    ),
    "patches the runner": _cheat(
        "import sys\nfor n, m in list(sys.modules.items()):\n    if 'sandbox' in n:\n        for k in list(vars(m)):\n"
        "            if callable(getattr(m, k)) and k[0] == '_':\n                try:\n                    setattr(m, k, lambda *a, **k: 3)\n                except Exception:\n                    pass\n"
        "def add(a, b):\n    return 0"
    ),
    "patches the encoder": _cheat(
        "import sys\nm = sys.modules['sdpo.benchmark.sandbox.values']\nm.Encoder.encode = lambda self, v: True\ndef add(a, b):\n    return 0"
    ),
    "exception hook": _cheat(
        "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\ndef add(a, b):\n    return 1 / 0"
    ),
    "import hook": _cheat(
        "import builtins\nold = builtins.__import__\nbuiltins.__import__ = lambda *a, **k: None\ndef add(a, b):\n    return 0"
    ),
    "audit hook": _cheat(
        "import sys, os\nsys.addaudithook(lambda *a: None)\ndef add(a, b):\n    return 0"
    ),
    "thread that exits": _cheat(
        "import threading, os, time\nthreading.Thread(target=lambda: (time.sleep(0.1), os._exit(0)), daemon=True).start()\n"
        "def add(a, b):\n    time.sleep(1)\n    return 0"
    ),
    "thread that forges": _cheat(
        _FORGE + "import threading\ndef go():\n    while True:\n        forge({'value': 3})\n"
        "threading.Thread(target=go, daemon=True).start()\ndef add(a, b):\n    return 0"
    ),
    "destructor": _cheat(
        "import os\nclass D:\n    def __del__(self):\n        os._exit(0)\ndef add(a, b):\n    return D()"
    ),
    "evil repr": _cheat(
        "import os\nclass D:\n    def __repr__(self):\n        os._exit(0)\n    __str__ = __repr__\ndef add(a, b):\n    return D()"
    ),
    "evil exception": _cheat(
        "class X(Exception):\n    def __str__(self):\n        raise SystemExit(0)\ndef add(a, b):\n    raise X()"
    ),
    "exception named like success": _cheat(
        "class PASSED(Exception):\n    pass\ndef add(a, b):\n    raise PASSED('3 of 3 tests passed')"
    ),
    "segmentation fault": _cheat("import ctypes\ndef add(a, b):\n    ctypes.string_at(0)"),
    "abort": _cheat("import os\ndef add(a, b):\n    os.abort()"),
    "kills itself": _cheat("import os\ndef add(a, b):\n    os.kill(os.getpid(), 9)"),
    "stack overflow": _cheat(
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n    def __getattr__(self, n):\n        return getattr(self, n + 'x')\n"
        "def add(a, b):\n    return A().x"
    ),
    "always true where falsehood is tested": _cheat(
        "def good(x):\n    return True\nbad = good", *TRUTH_TESTS
    ),
    "no function, truth tests": _cheat("import os\nos._exit(0)", *TRUTH_TESTS),
    "no tests": _cheat("def add(a, b):\n    return a + b", ""),
    "test without an assert": _cheat("def add(a, b):\n    return a + b", "add(1, 2)", "x = 1"),
    "test that does not parse": _cheat("def add(a, b):\n    return a + b", "assert add(1, 2 == 3"),
    "assert that is not reached": _cheat(
        "def add(a, b):\n    return a + b", "if add(1, 2) == 4:\n    assert True"
    ),
    "answers with the set-up's constant": _cheat(
        "def f():\n    return 0", "assert f() == ANSWER", setup="ANSWER = 42"
    ),
    "decimal bomb": _cheat(
        "from decimal import Decimal\ndef t():\n    return Decimal('1e999999999')",
        "assert t() == 3",
    ),
    "equal hashes": _cheat(
        "def t():\n    return {i * (2**61 - 1) << 70 for i in range(1, 2)} | {i * (2**61 - 1) for i in range(2**10, 2**10 + 4000)}",
        "assert t() == {1}",
    ),
    "collision in a list of keys": _cheat("def t():\n    return [[]] * 100_000", "assert t() == 3"),
    "forges a fraction that takes hours": _cheat(
        "import sys\nm = sys.modules['sdpo.benchmark.sandbox.values']\n"
        "m.Encoder.encode = lambda self, v: {'F': ['Fraction', '1e999999999']}\ndef add(a, b):\n    return 0"
    ),
    "exponential sharing": _cheat(
        "def t():\n    x = [0] * 1000\n    for _ in range(60):\n        x = [x, x]\n    return x",
        "assert t() == []",
    ),
}

ENDLESS = {
    name: Program(completion, ("timeout",))
    for name, completion in {
        "loop at the top": "while True:\n    pass",
        "loop in the call": "def add(a, b):\n    while True:\n        pass",
        "sleep": "import time\ndef add(a, b):\n    time.sleep(1000)",
        "loop that catches everything": (
            "def add(a, b):\n    while True:\n        try:\n            while True:\n                pass\n        except BaseException:\n            pass"
        ),
        "ignores signals": (
            "import signal\nfor s in range(1, 65):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError):\n        pass\n"
            "def add(a, b):\n    while True:\n        pass"
        ),
        "blocks signals": "import signal\nsignal.pthread_sigmask(0, range(1, 65))\nwhile True:\n    pass",
        "loop in C": "def add(a, b):\n    return sum(range(10**15))",
        "power": "def add(a, b):\n    return 7 ** 10**9",
        "regular expression": "import re\ndef add(a, b):\n    return re.match('(a+)+$', 'a' * 60 + 'b')",
        "thread that loops": (
            "import threading\ndef go():\n    while True:\n        pass\nthreading.Thread(target=go).start()\ndef add(a, b):\n    go()"
        ),
        "deadlock": "import threading\ndef add(a, b):\n    l = threading.Lock()\n    l.acquire()\n    l.acquire()",
        "pauses": "import signal\ndef add(a, b):\n    while True:\n        signal.pause()",
        "endless output": "def add(a, b):\n    while True:\n        print('x' * 100000)",
        "endless string": "class S(str):\n    def __str__(self):\n        while True:\n            pass\ndef add(a, b):\n    raise ValueError(S('x')).with_traceback(None) if str(S('x')) else 0",
        "endless exception text": (
            "class X(Exception):\n    def __str__(self):\n        while True:\n            pass\ndef add(a, b):\n    raise X"
        ),
    }.items()
}
ENDLESS["endless generator, listed"] = Program(
    "def up():\n    while True:\n        yield 1",
    ("timeout", "fail"),
    ("assert list(up()) == [1]",),
)
ENDLESS["stops itself"] = Program(
    "import os\ndef add(a, b):\n    os.kill(os.getpid(), 19)", ("timeout",)
)
ENDLESS["decimal bomb"] = Program(
    "from decimal import Decimal\ndef t():\n    return Decimal('1e999999999')",
    ("timeout", "fail"),
    ("assert int(t()) == 3",),
)
ENDLESS["endless truth"] = Program(
    "class T:\n    def __bool__(self):\n        while True:\n            pass\ndef t():\n    return T()",
    ("timeout",),
    ("assert t()",),
)

_SOLVED = "\ndef add(a, b):\n    return a + b\n"
NOISY = {
    name: Program(completion + _SOLVED, ("pass", "fail", "error", "timeout"))
    for name, completion in {
        "leaves files": "for i in range(500):\n    open(f'f{i}', 'w').write('x' * 100)",
        "leaves deep folders": "import os\nfor i in range(3000):\n    os.mkdir('d')\n    os.chdir('d')",
        "leaves odd names": "for n in (b'\\xff\\xfe', b'a\\nb', b'-rf', b' ', b'*'):\n    open(n, 'w').close()",
        "leaves a locked folder": "import os\nos.mkdir('d', 0)\nos.mkdir('e')\nos.umask(0o777)\nos.mkdir('e/f')",
        "leaves links": "import os\nos.symlink('/', 'l')\nos.symlink('l', 'l2')\nos.symlink('nowhere', 'n')\nos.mkfifo('p')",
        "fills the scratch folder": (
            "try:\n    for i in range(100):\n        open(f'f{i}', 'wb').write(b'x' * (8 << 20))\nexcept OSError:\n    pass"
        ),
        "many threads": (
            "import threading, time\ntry:\n    for _ in range(5000):\n        threading.Thread(target=time.sleep, args=(100,), daemon=True).start()\n"
            "except (RuntimeError, MemoryError):\n    pass"
        ),
        "tries to fork many": "import os\nfor _ in range(1000):\n    try:\n        if os.fork() == 0:\n            os._exit(0)\n    except OSError:\n        pass",
        "daemon": (
            "import os, time\ntry:\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n            time.sleep(60)\n        os._exit(0)\nexcept OSError:\n    pass"
        ),
        "own session": "import os\ntry:\n    os.setsid()\nexcept OSError:\n    pass",
        "mutes its own errors": "import sys\nsys.stderr = sys.stdout = sys.stdin = None",
        "changes the random state": "import random\nrandom.seed(7)",
        "locale": "import locale\ntry:\n    locale.setlocale(locale.LC_ALL, 'tr_TR.UTF-8')\nexcept locale.Error:\n    pass",
    }.items()
}
