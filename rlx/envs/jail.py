"""The process that runs a foreign program: started by rlx.envs.sandbox, standard library only.

    stage 0    unshares mount, PID, network, IPC and UTS namespaces, forks, waits
    init       PID 1 of the new namespace: builds its own root, forks, waits for the program; when
               init ends, the kernel kills everything that the program left behind
    program    resource limits, another user, no capabilities, no privileged system calls

Started by root, the program runs under a user id that nobody has; otherwise in a user namespace. It
sees /usr, the libraries and the interpreter's directory, read-only, and owns /box, a file system in
memory that vanishes with the namespace. There is no /proc and no network; `socket` is refused as
well, because some families have no namespaces. The first line written to the report descriptor is
`exit N`, `signal N`, or `refused: reason` if the isolation could not be set up.

Limits of a process (RLIMIT_AS) cover neither memory that no process maps nor the sum over several
processes. Calls that create the former are refused (a file can be mapped privately, not shared),
which leaves: 64 MB of pipes (the kernel's usual limit per user), 0.2 MB (its usual default) per
socket of at most 512, /box. rlx.envs.sandbox bounds the sum by polling. Looked-up names and read
files stay in the kernel's caches, which it evicts at need. A cgroup would count all of it, but
creating one takes rights that users of clusters and containers lack; without one, `bwrap` and
`nsjail` do not stop it either.

Sources: man 7 namespaces, 2 pivot_root, 2 seccomp, 2 mount_setattr (Linux 5.12), 5.14 for a count
of processes within a user namespace.
"""

import ctypes
import marshal
import os
import resource
import signal
import struct
import sys

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
MNT_DETACH, AT_FDCWD, AT_RECURSIVE, SYS_MOUNT_SETATTR = 2, -100, 0x8000, 442
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_SET_THP_DISABLE = 1, 22, 38, 41
UNUSED_USERS, USER_COUNT = 61184, 4000  # user ids that no person has (systemd's dynamic ids)

# (x86_64, aarch64) numbers, None if there is no such call. Refused: privileged calls, and calls
# that keep memory which no process is charged for.
SYSCALLS = {
    "socket": (41, 198), "ptrace": (101, 117), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186),
    "mq_open": (240, 180), "memfd_create": (319, 279), "vmsplice": (278, 75), "io_setup": (206, 0),
    "inotify_init": (253, None), "inotify_init1": (294, 26), "fanotify_init": (300, 262),
    "setsockopt": (54, 208),  # it could enlarge buffers
}  # fmt: skip
# Refused if a bit of the mask is set in the argument: numbers, argument, mask.
ARGUMENTS = {
    "clone": (56, 220, 0, 0x7E020080),  # any namespace
    # MAP_SHARED: pages that stay while one page is mapped; MAP_HUGETLB: not in VmRSS
    "mmap": (9, 222, 3, 0x40001),
    "prlimit64": (302, 261, 0, 0xFFFFFFFF),  # of another process
}
NEWEST = 424  # calls from here on (Linux 5.1) have the same numbers everywhere; libraries cope
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, audit number

libc = ctypes.CDLL(None, use_errno=True)


def call(name, *arguments):
    """Call a function of the C library; raises OSError if it fails."""
    if getattr(libc, name)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source, target, kind, flags, data=""):
    words = [None if word is None else word.encode() for word in (source, target, kind)]
    call("mount", *words, ctypes.c_ulong(flags), data.encode())


def column_and_audit():
    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(0, f"seccomp: no table for {machine}")
    return MACHINES[machine]


def new_namespaces():
    """Stage 0. Without root, a user namespace gives the right to create the others."""
    uid, gid, others = os.geteuid(), os.getegid(), 0
    for flag in (CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS):
        others |= flag
    call("unshare", others if uid == 0 else others | CLONE_NEWUSER)
    if uid != 0:
        for file, line in (("setgroups", "deny"), ("uid_map", uid), ("gid_map", gid)):
            with open(f"/proc/self/{file}", "w") as f:
                f.write(line if file == "setgroups" else f"{line} {line} 1")


def bind(path):
    """Make `path` of the old root visible at the same place of the new one; links stay links."""
    old = f"/old{path}"
    if not os.path.lexists(old) or os.path.lexists(path):
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.islink(old):
        os.symlink(os.readlink(old), path)
        return
    if os.path.isdir(old):
        os.mkdir(path)
    else:
        open(path, "x").close()
    mount(old, path, None, MS_BIND | MS_REC)


def build_root(paths, scratch_mb):
    """A new root in memory: `paths` read-only, /box writable, nothing else."""
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    os.mkdir("/tmp/old")
    column, _ = column_and_audit()
    call("syscall", SYSCALLS["pivot_root"][column], b"/tmp", b"/tmp/old")
    os.chdir("/")
    for path in paths:
        bind(path)
    os.mkdir("/box")
    call("umount2", b"/old", MNT_DETACH)
    os.rmdir("/old")
    read_only = struct.pack("QQQQ", MS_RDONLY | MS_NOSUID, 0, 0, 0)
    size = ctypes.c_size_t(len(read_only))
    call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, read_only, size)
    size = f"size={scratch_mb}m,nr_inodes=4096,mode=1777"  # attributes count as inodes
    mount("tmpfs", "/box", "tmpfs", MS_NOSUID | MS_NODEV, size)
    os.chdir("/box")


def limit(limits):
    """Limits of one process, except the number of processes, which includes threads."""
    mb = 2**20
    for name, value in (
        ("AS", limits["memory_mb"] * mb),
        ("CPU", limits["cpu_s"]),
        ("NPROC", limits["processes"]),
        ("FSIZE", limits["file_mb"] * mb),
        ("NOFILE", 64),
        ("CORE", 0),
        ("MEMLOCK", 0),
        ("MSGQUEUE", 0),
        ("SIGPENDING", 64),  # timers too
    ):
        number = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))


def filter_syscalls():
    """Seccomp: EPERM for the tables above, ENOSYS from NEWEST on; other architectures die."""
    column, audit = column_and_audit()
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, allow, deny, absent = 0x80000000, 0x7FFF0000, 0x50001, 0x50026  # errno 1 and 38
    code = [(load, 0, 0, 4), (equal, 1, 0, audit), (give, 0, 0, kill), (load, 0, 0, 0)]
    code += [(at_least, 0, 1, NEWEST), (give, 0, 0, absent)]  # x32 calls too
    for number in (numbers[column] for numbers in SYSCALLS.values()):
        code += [] if number is None else [(equal, 0, 1, number), (give, 0, 0, deny)]
    for *numbers, argument, mask in ARGUMENTS.values():
        code += [(equal, 0, 4, numbers[column]), (load, 0, 0, 16 + 8 * argument)]
        code += [(any_bit, 0, 1, mask), (give, 0, 0, deny), (give, 0, 0, allow)]
    code += [(give, 0, 0, allow)]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    program = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(packed))
    call("prctl", PR_SET_SECCOMP, 2, program, 0, 0)


def become(user):
    os.setsid()  # so that kill(0, ...) cannot reach processes outside
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)  # from here on without capabilities
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", PR_SET_THP_DISABLE, 1, 0, 0, 0)  # huge pages stay while one small page does
    filter_syscalls()


def program(spec, user):
    """Never returns."""
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)  # without isolation, only this ends it
    limit(spec["limits"])
    if spec["isolate"]:
        become(user)
    nothing = os.open("/dev/null", os.O_WRONLY)
    os.dup2(nothing, 2)
    if spec["channel"] >= 0:
        os.set_inheritable(spec["channel"], True)
    os.execve(spec["argv"][0], spec["argv"], spec["env"])


def init(spec, user):
    """PID 1: the line for the report. Signals from inside do not reach it.

    It stays "dumpable": if /proc hides processes that are not (hidepid), polling would miss them.
    """
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
    source = os.pread(spec["source"], os.fstat(spec["source"]).st_size, 0)
    os.close(spec["source"])
    if spec["isolate"]:
        build_root(spec["paths"], spec["limits"]["file_mb"])
    with open("main.py", "wb") as f:
        f.write(source)
    pid = os.fork()
    if pid == 0:
        program(spec, user)
    os.closerange(0, 3)
    while True:
        child, status = os.wait()  # includes orphans
        if child == pid:
            code = os.waitstatus_to_exitcode(status)
            return f"exit {code}" if code >= 0 else f"signal {-code}"


def main():
    spec = marshal.loads(bytes.fromhex(sys.argv[1]))  # json takes 3 ms to import
    os.set_inheritable(spec["report"], False)  # hidden from the program
    user = UNUSED_USERS + os.getpid() % USER_COUNT
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which PID 1 ignores
    try:
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
        if spec["isolate"]:
            new_namespaces()
        pid = os.fork()
        if pid == 0:
            os.write(spec["report"], f"{init(spec, user)}\n".encode())
            os._exit(0)
        os.closerange(0, 3)
        os.close(spec["report"])
        os.waitpid(pid, 0)
    except BaseException as error:
        os.write(spec["report"], f"refused: {error}\n".encode())
        os._exit(1)


if __name__ == "__main__":
    main()
