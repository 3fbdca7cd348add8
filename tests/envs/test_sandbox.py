"""What a hostile program may try. Every attempt is real; what it achieves is looked at outside."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from rlx.envs import sandbox
from rlx.envs.sandbox import Limits, run

ROOT = Path(__file__).parents[2]
WHY_NOT = sandbox.why_not()
isolated = pytest.mark.skipif(bool(WHY_NOT), reason=f"no isolation here: {WHY_NOT}")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
SHORT = Limits(wall_s=5, cpu_s=5)


def said(source, **limits):
    return run(source, limits=Limits(**{"wall_s": 20, "cpu_s": 20, **limits})).stdout.decode()


def alive(marker):
    """Processes of this machine whose command line holds the marker."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in file.read_bytes():
                found.append(file.parent.name)
        except OSError:
            continue
    return found


def gone(marker, patience_s=5.0):
    until = time.monotonic() + patience_s
    while alive(marker) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(marker)


# a child that outlives its parents, and whose command line can be found
DAEMON = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)  # MARKER"],
                         start_new_session=True, stdin=-3, stdout=-3, stderr=-3)
print("started", flush=True)
"""


@isolated
def test_a_program_reads_its_input_and_its_output_comes_back():
    result = run("print(sum(map(int, input().split())), end='!')", "3 4\n", SHORT)
    assert (result.status, result.stdout, result.ok) == ("exit 0", b"7!", True)
    assert run("raise SystemExit(3)").status == "exit 3"
    assert run("import os; os.abort()").status == f"signal {int(signal.SIGABRT)}"


@isolated
def test_input_that_is_never_read_does_not_block():
    assert run("print('done')", "x" * 10**6, SHORT).stdout == b"done\n"


@isolated
def test_files_outside_can_be_neither_read_nor_written(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("the answer")
    secret.chmod(0o644)
    source = f"""
import os
for path in {[str(secret), f"/proc/self/root{secret}", "/etc/passwd"]!r}:
    try:
        print(open(path).read())
    except OSError as error:
        print(type(error).__name__)
for path in {[str(tmp_path / "new"), "/usr/new", "/new", "/tmp/new", "/dev/new"]!r}:
    try:
        open(path, "w").write("x")
        print("written")
    except OSError as error:
        print(type(error).__name__)
"""
    words = said(source).split()
    assert words[:3] == ["FileNotFoundError"] * 3
    assert "written" not in words and len(words) == 8
    assert sorted(tmp_path.iterdir()) == [secret]
    assert not Path("/usr/new").exists() and not Path("/new").exists()


@isolated
def test_what_it_sees_of_this_machine_is_read_only():
    source = """
import os, sys
for path in ("/", "/usr", os.path.realpath(sys.base_prefix), "/dev/null", "/box"):
    print(os.statvfs(path).f_flag & os.ST_RDONLY, os.statvfs(path).f_flag & os.ST_NOSUID)
"""
    assert said(source).split() == ["1", "2"] * 4 + ["0", "2"]
    assert said("import os; print(sorted(os.listdir('/dev')))") == (
        "['null', 'random', 'urandom', 'zero']\n"
    )


@isolated
def test_nothing_of_its_directory_is_left_for_the_next():
    source = "import os; print(os.getcwd(), os.listdir()); open('left', 'w').write('x')"
    assert said(source) == said(source) == "/box ['main.py']\n"
    assert not Path("/box").exists()


@isolated
def test_no_network_not_even_to_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        port = listener.getsockname()[1]
        source = f"""
import socket
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, 40):  # 40: virtual machines
    try:
        socket.socket(family).connect(("127.0.0.1", {port}))
        print("connected")
    except OSError as error:
        print(error.errno)
"""
        assert said(source).split() == ["1"] * 4  # EPERM
        with pytest.raises(TimeoutError):
            listener.accept()


@isolated
def test_a_fork_bomb_is_bounded_and_leaves_nobody():
    marker = uuid.uuid4().hex
    source = DAEMON.replace("MARKER", marker) + (
        "n = 0\n"
        "try:\n"
        "    while True:\n"
        "        if os.fork() == 0:\n"
        "            while True: os.fork() if n > 99 else None\n"
        "        n += 1\n"
        "except OSError:\n"
        "    print(n, flush=True)\n"
    )
    first, n = said(source, processes=8, wall_s=6).split()
    assert first == "started" and 2 <= int(n) <= 7
    assert gone(marker)


@isolated
def test_threads_count_as_processes():
    source = (
        "import threading, time\n"
        "try:\n"
        "    for n in range(99):\n"
        "        threading.Thread(target=time.sleep, args=(1,), daemon=True).start()\n"
        "except RuntimeError:\n"
        "    print(n)\n"
    )
    assert 3 <= int(said(source)) <= 7


@isolated
def test_a_daemon_ends_with_the_program():
    marker = uuid.uuid4().hex
    assert said(DAEMON.replace("MARKER", marker)) == "started\n"
    assert gone(marker)


@isolated
@pytest.mark.parametrize(
    "source, limits, status",
    [
        ("while True: pass", {"wall_s": 1.0}, "time"),
        ("import time; time.sleep(99)", {"wall_s": 1.0}, "time"),
        ("import sys; sys.stdout.close(); import os; os.close(1)\nwhile True: pass",
         {"wall_s": 1.0}, "time"),
        ("while True: pass", {"cpu_s": 1}, "signal 9"),
        ("while True: print('x' * 999)", {"output_kb": 64}, "output"),
        ("x = bytearray(2**31)", {"memory_mb": 256}, "exit 1"),
        ("x = []\nwhile True: x.append(bytes(2**20))", {"memory_mb": 256}, "exit 1"),
        ("open('a', 'wb').write(bytes(2**22))", {"file_mb": 1}, "exit 1"),
    ],
)  # fmt: skip
def test_limits(source, limits, status):
    start = time.monotonic()
    result = run(source, limits=Limits(**{"wall_s": 10, **limits}))
    assert result.status == status and len(result.stdout) <= 64 * 1024
    assert time.monotonic() - start < 8


@isolated
def test_many_small_files_share_one_limit():
    source = (
        "try:\n"
        "    for i in range(99): open(f'f{i}', 'wb').write(bytes(2**19))\n"
        "except OSError as error: print(i, error.errno)\n"
    )
    count, errno = said(source, file_mb=2).split()
    assert int(count) <= 4 and errno == "28"  # no space left


# Memory that RLIMIT_AS does not see. Each program prints how many MB it holds, or is stopped.
BY_CALL = """
import ctypes, fcntl, mmap, os, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.shmat.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
MB, held = 2**20, 0
def pages(size, flags, fd=-1, at=None):
    p = libc.mmap(at, size, 3, flags, fd, 0)
    if p in (None, 2**64 - 1):
        raise OSError(ctypes.get_errno(), "mmap")
    return p
def checked(value):
    if value < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return value
try:
    BODY
except OSError as error:
    pass
print(int(held), flush=True)
"""
ESCAPES = {
    "System V shared memory": """
    while held < 1024:
        segment = checked(libc.shmget(0, 32 * MB, 0o1600))
        p = libc.shmat(segment, None, 0)
        ctypes.memset(p, 1, 32 * MB); libc.shmdt(ctypes.c_void_p(p)); held += 32""",
    "System V semaphores": """
    while held < 1024: checked(libc.semget(0, 32000, 0o1600)); held += 2""",
    "System V messages": """
    message = ctypes.create_string_buffer(b"1" * 8008)
    for _ in range(16000):
        queue = checked(libc.msgget(0, 0o1600))
        while libc.msgsnd(queue, message, 8000, 0o4000) == 0: held += 8000 / MB""",
    "memfd_create": """
    while held < 1024:
        file = os.memfd_create("x")
        for _ in range(16): held += os.write(file, bytes(MB)) / MB""",
    "memfd_secret": "held += 1024 * (libc.syscall(447, 0) >= 0)",
    "anonymous pages that are shared": """
    while held < 1024:
        p = pages(32 * MB, 0x21); ctypes.memset(p, 1, 32 * MB)
        libc.munmap(p + 4096, 32 * MB - 4096); held += 32""",
    "/dev/zero, shared": """
    zero = os.open("/dev/zero", os.O_RDWR)
    while held < 1024:
        p = pages(32 * MB, 1, zero); ctypes.memset(p, 1, 32 * MB)
        libc.munmap(p + 4096, 32 * MB - 4096); held += 32""",
    "one page of a huge one": "held += 1024 * (libc.prctl(42, 0, 0, 0, 0) != 1)",
    "pages lent to a pipe": """
    p, (_, end) = pages(4096, 0x22), os.pipe()
    span = (ctypes.c_size_t * 2)(p, 4096)
    checked(libc.vmsplice(end, span, 1, 0)); held += 1024""",
    "attributes of a file": """
    open("f", "w")
    while held < 1024: os.setxattr("f", f"user.{held}", bytes(60000)); held += 60000 / MB""",
    "empty files": """
    while held < 1024: os.symlink("x" * 99, f"{held}"); held += 0.001""",
    "timers": """
    timer = ctypes.c_void_p()
    while held < 50: checked(libc.timer_create(0, None, ctypes.byref(timer))); held += 0.001""",
    "buffers of sockets": """
    for a, b in (socket.socketpair() for _ in range(28)):
        keep = held, a, b
        a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * MB); held += 16""",
    "io_uring": "held += 1024 * (libc.syscall(425, 4096, bytes(200)) >= 0)",
    "asynchronous input": """
    held += 1024 * (libc.syscall(206, 64, ctypes.byref(ctypes.c_ulong())) >= 0)""",
    "watches of files": "held += 1024 * (libc.inotify_init1(0) >= 0)",
    "one page of a huge one that was asked for": """
    p = pages(4 * MB, 0x22); ctypes.memset(p, 1, 4 * MB)
    at = ctypes.c_void_p((p + 2 * MB - 1) // (2 * MB) * (2 * MB))
    held += 1024 * (libc.madvise(at, ctypes.c_size_t(2 * MB), 25) == 0)  # MADV_COLLAPSE""",
    "huge pages": "pages(2 * MB, 0x40022); held += 1024",
    "page tables": """
    for i in range(30000): ctypes.memset(pages(4096, 0x100022, -1, (1 << 33) + (i << 31)), 1, 1)
    held = 1024""",
    "children, in sum": """
    for _ in range(4):
        if os.fork() == 0:
            x = b"1" * (100 * MB); time.sleep(9); os._exit(0)
    time.sleep(5); held = 1024""",
    "a child whose first thread is gone": """
    for _ in range(3):
        if os.fork() == 0:
            import threading
            def other(): x = b"1" * (100 * MB); time.sleep(9)
            threading.Thread(target=other).start(); libc.pthread_exit(None)
    time.sleep(5); held = 1024""",
}  # fmt: skip


@isolated
@pytest.mark.parametrize("way", ESCAPES)
def test_no_memory_beside_the_limit(way):
    source = BY_CALL.replace("BODY", ESCAPES[way].strip())
    result = run(source, limits=Limits(wall_s=20, cpu_s=20, memory_mb=200))
    if result.status != "memory":
        assert result.ok and int(result.stdout) < 40, result


@isolated
def test_what_children_share_counts_once():
    source = """
import os, time
x = b"1" * (120 * 2**20)
for _ in range(4):
    if os.fork() == 0: time.sleep(0.5); os._exit(0)
time.sleep(0.5)
print(len(x))
"""
    assert said(source, memory_mb=200) == f"{120 * 2**20}\n"


@isolated
def test_nobody_else_can_be_signalled():
    source = """
import os
for pid in (1, os.getppid(), PARENT):
    try:
        os.kill(pid, 9)
        print("sent")
    except OSError as error:
        print(type(error).__name__)
print(os.getpid())
""".replace("PARENT", str(os.getpid()))
    words = said(source).split()
    assert words[-1] == "2" and words[2] == "ProcessLookupError"
    # as a user of its own it may not signal init; sharing init's user, the signal has no effect
    assert words[0] in ("PermissionError", "sent")


@isolated
def test_privileged_calls_are_refused():
    source = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, *arguments):
    print(name, getattr(libc, name)(*arguments), ctypes.get_errno())
attempt("unshare", 0x10000000)
attempt("mount", b"x", b"/box", b"tmpfs", 0, b"")
attempt("ptrace", 16, 1, 0, 0)
attempt("setns", 0, 0)
attempt("syscall", 56, 0x10000011, 0, 0, 0, 0)  # clone into a new user namespace
attempt("setuid", 0)
"""
    words = said(source).split()
    assert words[1::3] == ["-1"] * 6 and set(words[2::3]) <= {"1", "22"}, words


@isolated
def test_the_programs_die_with_whoever_started_them():
    marker = uuid.uuid4().hex
    inner = DAEMON.replace("MARKER", marker) + "import time; time.sleep(60)"
    code = f"from rlx.envs import sandbox; sandbox.run({inner!r}, limits=sandbox.Limits(wall_s=60))"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    until = time.monotonic() + 20
    while not alive(f"time.sleep(60)  # {marker}") and time.monotonic() < until:
        time.sleep(0.05)
    assert len(alive(f"time.sleep(60)  # {marker}")) >= 1
    parent.kill()
    parent.wait()
    assert gone(marker)


def test_without_isolation_there_are_limits_and_a_directory_that_goes():
    source = "import os; open('left', 'w').write('x'); print(os.getcwd())"
    result = run(source, limits=SHORT, isolate=False)
    where = Path(result.stdout.decode().strip())
    assert result.ok and where.name.startswith("rlx-unsafe-") and not where.exists()
    assert run("while True: pass", limits=Limits(wall_s=1.0), isolate=False).status == "time"
    result = run(
        "import os, time; print(os.getpid(), flush=True); time.sleep(60)",
        limits=Limits(wall_s=1.0),
        isolate=False,
    )
    stat, until = Path(f"/proc/{int(result.stdout)}/stat"), time.monotonic() + 5
    while stat.exists() and ") Z" not in stat.read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert result.status == "time" and (not stat.exists() or ") Z" in stat.read_text())


def elsewhere(words, code):
    """Standard output of Python code run by another program, by an interpreter all may run."""
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if shutil.which(words[0]) is None or python is None:
        pytest.skip(f"{words[0]} or a Python of the system is missing")
    version = subprocess.run([python, "-V"], capture_output=True, text=True).stdout.split()[-1]
    if tuple(map(int, version.split(".")[:2])) < (3, 11):
        pytest.skip(f"the system's Python is {version}")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    done = subprocess.run([*words, python, "-c", code], capture_output=True, text=True, cwd="/")
    if "ModuleNotFoundError: No module named 'rlx'" in done.stderr:
        pytest.skip("the repository is closed to other users")
    assert done.returncode == 0, done.stderr
    return done.stdout


ATTEMPTS = """
from rlx.envs.sandbox import Limits, run, why_not
print(why_not() or "isolated")
def said(source, **limits):
    result = run(source, limits=Limits(wall_s=10, **limits))
    print(result.status, result.stdout.decode().strip())
said("import os; print(os.path.exists('/etc/passwd'), os.path.exists('/tmp'))")
said("import socket; socket.socket()")
said('''
import os, time
n = 0
try:
    while True:
        if os.fork() == 0: time.sleep(9)
        n += 1
except OSError: print(n < 8)
''')
said("import os; os.kill(1, 9); os.kill(1, 15); print(os.getpid())")
said("import os; print(os.path.exists(" + repr(sys.path[0]) + "), os.getuid())")
said("x = bytearray(2**31)", memory_mb=256)
said("import os, time; [os.kill(1, n) for n in range(1, 65)]; time.sleep(.1); print(os.getpid())")
said("import os, signal; signal.signal(2, signal.SIG_IGN); os.kill(0, 2); print(os.getpid())")
said("import resource; resource.prlimit(1, resource.RLIMIT_AS, (0, 0))")
said("import os; os.memfd_create('x')")
said("import mmap; mmap.mmap(-1, 4096)")
said('''
import os, time
[(b"1" * 10**8, time.sleep(9)) for _ in range(4) if os.fork() == 0]
time.sleep(9)''', memory_mb=256)
said("while True: pass", cpu_s=1)
"""


@as_root
def test_walls_stand_for_an_ordinary_user_too():
    lines = elsewhere(["runuser", "-u", "nobody", "--"], ATTEMPTS).splitlines()
    if lines[0] != "isolated":
        pytest.skip(f"no user namespaces: {lines[0]}")
    assert lines[1:] == ["exit 0 False False", "exit 1 ", "exit 0 True", "exit 0 2"] + [
        "exit 0 False 65534", "exit 1 ", "exit 0 2", "exit 0 2", "exit 1 ", "exit 1 ", "exit 1 ",
        "memory ", "signal 9 ",
    ]  # fmt: skip


@as_root
def test_children_count_in_sum_where_processes_are_hidden():
    """Clusters mount /proc with hidepid=2."""
    code = """
from rlx.envs.sandbox import Limits, run, why_not
if why_not():
    sys.exit(print("no user namespaces:", why_not()))
source = '''
import ctypes, os, time
ctypes.CDLL(None).prctl(4, 0)  # hide
[(b"1" * 10**8, time.sleep(9)) for _ in range(4) if os.fork() == 0]
time.sleep(9)'''
print(run(source, limits=Limits(wall_s=9, memory_mb=256)).status)
"""
    mounted = 'mount -t proc -o hidepid=2 proc /proc && exec runuser -u nobody -- "$@"'
    words = ["unshare", "-m", "--propagation", "private", "sh", "-c", mounted, "sh"]
    if subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("no /proc can be mounted here")
    said = elsewhere(words, code)
    if said.startswith("no user namespaces"):
        pytest.skip(said)
    assert said == "memory\n"


@as_root
def test_where_namespaces_are_denied_nothing_runs():
    code = """
from rlx.envs import sandbox
print(sandbox.why_not())
try:
    print(sandbox.run("print('ran')"))
except sandbox.SandboxError as error:
    print("refused", error)
"""
    lines = elsewhere(["setpriv", "--bounding-set=-sys_admin"], code).splitlines()
    denied = "[Errno 1] unshare: Operation not permitted"
    assert lines == [denied, f"refused {denied}"]
