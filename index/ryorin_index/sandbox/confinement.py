"""
What a process that reads strangers' files may not do, in layers; each is set where the kernel has it.

- seccomp (Linux on x86-64 and AArch64): no socket, no other program, no opening for writing, no file made, changed or
  removed; in the child also no process, thread or signal.
- Landlock (Linux 5.13): files are read from where Python and its packages lie, and from nowhere else.
- A network namespace of its own, where the process may have one.
- Resource limits: memory, computing time, open files, no written byte, no core dump.
- Python's audit hook, wherever Python runs: the same refusals for what is asked through Python.
"""

from __future__ import annotations

import ctypes
import errno
import mimetypes
import os
import platform
import resource
import signal
import site
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

OPEN_FILES = 64
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 1, 22, 38, 2
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Linux system calls by architecture: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_OPENING = {"x86_64": {2: 1, 257: 2}, "aarch64": {56: 2}}  # open and openat: which argument holds the flags
_REFUSED_ANYWHERE = (424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 437, 438, 442, 452)
# the above: pidfd_send_signal, io_uring_*, open_tree, move_mount, fsopen … fspick, pidfd_open, openat2, pidfd_getfd,
# mount_setattr, fchmodat2
_REFUSED = {
    "x86_64": (
        *(41, 42, 43, 49, 50, 53, 288),  # socket, connect, accept, bind, listen, socketpair, accept4
        *(59, 322, 101, 310, 311),  # execve, execveat, ptrace, process_vm_readv, process_vm_writev
        *(76, 77, 82, 83, 84, 85, 86, 87, 88, 133),  # truncate, ftruncate, rename, mkdir, rmdir, creat, link … mknod
        *(258, 259, 263, 264, 265, 266, 316),  # mkdirat, mknodat, unlinkat, renameat, linkat, symlinkat, renameat2
        *(90, 91, 92, 93, 94, 260, 268),  # chmod, fchmod, chown, fchown, lchown, fchownat, fchmodat
        *(132, 235, 261, 280, 188, 189, 190, 197, 198, 199),  # utime…, utimensat, setxattr…, removexattr…
        *(165, 166, 272, 308, 304, 319),  # mount, umount2, unshare, setns, open_by_handle_at, memfd_create
        *(29, 248, 249, 250, 298, 321, 323),  # shmget, add_key, request_key, keyctl, perf_event_open, bpf, userfaultfd
    ),
    "aarch64": (
        *(198, 199, 200, 201, 202, 203, 242, 221, 281, 117, 270, 271),
        *(33, 34, 35, 36, 37, 38, 276, 45, 46, 52, 53, 54, 55, 88, 5, 6, 7, 14, 15, 16),
        *(39, 40, 97, 268, 265, 279, 194, 217, 218, 219, 241, 280, 282),
    ),
}
_REFUSED_TO_CHILDREN = {
    "x86_64": (
        *(56, 57, 58, 435, 62, 200, 234, 160, 302),  # clone, fork, vfork, clone3, kill, tkill, tgkill, *rlimit*
        *(
            129,
            297,
            141,
            142,
            144,
            203,
            314,
            251,
            440,
        ),  # rt_sigqueueinfo, rt_tgsigqueueinfo; others' priorities, memory
    ),
    "aarch64": (220, 435, 129, 130, 131, 164, 261, 138, 240, 140, 118, 119, 122, 274, 30, 440),
}
# fcntl can have the kernel signal another process: F_SETOWN, F_SETSIG, F_SETOWN_EX.
_SIGNALLING = {"x86_64": {72: (8, 10, 15)}, "aarch64": {25: (8, 10, 15)}}
_REFUSED_EVENTS = ("socket.", "subprocess.", "os.exec", "os.fork", "os.system", "os.posix_spawn", "os.spawn", "pty.")
_CHANGING_EVENTS = frozenset(
    f"os.{name}"
    for name in [
        "chmod",
        "chown",
        "link",
        "mkdir",
        "remove",
        "rename",
        "rmdir",
        "symlink",
        "truncate",
        "utime",
        "setxattr",
        "removexattr",
        "kill",
    ]
)

layers: list[str] = []  # what this process has, for `describe`


def describe(name: str, data: bytes) -> Iterator[list[str]]:
    """The layers that a child has; called through the sandbox."""
    yield layers


def confine_server() -> None:
    """What the server and all its children go without. Call it before anything else is imported."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.unshare(_CLONE_NEWNET) == 0 or libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
        layers.append("network namespace")
    if _landlock(libc):
        layers.append("landlock")
    machine = platform.machine()
    if machine in _REFUSED and _filter(libc, machine, _REFUSED[machine] + _REFUSED_ANYWHERE, _OPENING[machine]):
        layers.append("seccomp")


def confine_child(memory_bytes: int, cpu_s: int) -> None:
    """What a child goes without, besides what its server does; set for good."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_AS, (4 * memory_bytes, 4 * memory_bytes))
    layers.append("resource limits")
    machine = platform.machine()
    if "seccomp" in layers:
        _filter(ctypes.CDLL(None, use_errno=True), machine, _REFUSED_TO_CHILDREN[machine], {}, _SIGNALLING[machine])
    sys.addaudithook(_refuse)
    layers.append("audit hook")


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that forked it ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        mode, flags = arguments[1], arguments[2]
        writing = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool((flags or 0) & _WRITING)
        if writing:
            raise PermissionError("a reader of documents writes no file")
    elif event in _CHANGING_EVENTS or event.startswith(_REFUSED_EVENTS):
        raise PermissionError(f"a reader of documents may not use {event}")


def _filter(
    libc: Any,
    machine: str,
    refused: tuple[int, ...],
    opening: dict[int, int],
    commands: Mapping[int, tuple[int, ...]] = MappingProxyType({}),
) -> bool:
    """
    Install a seccomp filter: a classic BPF program over struct seccomp_data (linux/seccomp.h).

    opening: calls that are refused when the flags in their nth argument ask for more than reading. commands: calls that
    are refused when their second argument is one of these.
    """

    def load(offset: int) -> bytes:
        return struct.pack("<HBBI", 0x20, 0, 0, offset)  # BPF_LD | BPF_W | BPF_ABS

    def jump(code: int, value: int, yes: int, no: int) -> bytes:
        return struct.pack("<HBBI", 0x05 | code, yes, no, value)  # BPF_JMP

    def leave(value: int) -> bytes:
        return struct.pack("<HBBI", 0x06, 0, 0, value)  # BPF_RET

    equal, at_least, any_bit = 0x10, 0x30, 0x40
    refuse, allow = leave(0x00050000 | errno.EPERM), leave(0x7FFF0000)  # SECCOMP_RET_ERRNO, SECCOMP_RET_ALLOW
    program = [load(4), jump(equal, _AUDIT_ARCH[machine], 1, 0), refuse, load(0)]
    if machine == "x86_64":
        program += [jump(at_least, 0x40000000, 0, 1), refuse]  # the same calls by their x32 numbers
    for number, argument in opening.items():
        low_half = 16 + 8 * argument
        program += [jump(equal, number, 0, 4), load(low_half), jump(any_bit, _WRITING, 0, 1), refuse, allow]
    for number, values in commands.items():
        skipped = 1 + 2 * len(values) + 1
        program += [jump(equal, number, 0, skipped), load(24)]
        for value in values:
            program += [jump(equal, value, 0, 1), refuse]
        program.append(allow)
    for number in refused:
        program += [jump(equal, number, 0, 1), refuse]
    program.append(allow)
    code = ctypes.create_string_buffer(b"".join(program))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    whole = Program(len(program), ctypes.addressof(code))
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(whole), 0, 0) == 0)


def _landlock(libc: Any) -> bool:
    """Let files be read where code lies, and nowhere else (https://docs.kernel.org/userspace-api/landlock.html)."""
    create, add, restrict = 444, 445, 446  # the same numbers on every architecture
    version = libc.syscall(create, None, 0, 1)
    if version < 1:
        return False
    handled = (1 << {1: 13, 2: 14}.get(version, 15 if version < 5 else 16)) - 1
    ruleset = libc.syscall(create, ctypes.byref(ctypes.c_uint64(handled)), 8, 0)
    if ruleset < 0:
        return False
    try:
        for path in _readable():
            try:
                descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            allowed = 0b1100 if path.is_dir() else 0b100  # READ_DIR, READ_FILE
            libc.syscall(add, ruleset, 1, struct.pack("<Qi", allowed, descriptor), 0)
            os.close(descriptor)
        return bool(libc.syscall(restrict, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _readable() -> Iterator[Path]:
    """Where Python, its packages and this one lie; time zones."""
    for prefix in {sys.prefix, sys.base_prefix}:
        yield from (Path(prefix, "lib"), Path(prefix, "lib64"))
    for path in (*sys.path, site.getusersitepackages()):
        if Path(path).name in ("site-packages", "dist-packages"):
            yield Path(path)
    for package in ("ryorin", "ryorin_index"):
        yield from map(Path, sys.modules[package].__path__)
    for folder in ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/localtime"):
        yield Path(folder)
    for file in ("/etc/ld.so.cache", "/dev/null", "/dev/urandom"):
        yield Path(file)
    yield from map(Path, mimetypes.knownfiles)  # which the standard library wants to read
