#!/usr/bin/env python3
"""Chromium that is not told when network interfaces come and go: a program, to be started in its place.

Whenever an address of the machine changes, as with each container of other tests, Chromium breaks off the requests
that wait for a connection (ERR_NETWORK_CHANGED), also those to 127.0.0.1, and a page stays without some of its scripts.
It learns of addresses through netlink sockets; without them, it takes the network to be there.
"""

import ctypes
import errno
import os
import platform
import socket
import struct
import sys

_SOCKET = {"x86_64": 41, "aarch64": 198}  # the number of the system call
_SET_SECCOMP, _SET_NO_NEW_PRIVS, _FILTER = 22, 38, 2  # linux/prctl.h, linux/seccomp.h
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h
_NUMBER, _FIRST_ARGUMENT = 0, 16  # where they are in struct seccomp_data
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def without_netlink() -> None:
    """Refuse this process, and what it starts, netlink sockets."""
    instructions = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (_LOAD, 0, 0, _NUMBER),
            (_JUMP_IF_EQUAL, 0, 3, _SOCKET[platform.machine()]),
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            (_JUMP_IF_EQUAL, 0, 1, socket.AF_NETLINK),
            (_RETURN, 0, 0, _ERROR | errno.EAFNOSUPPORT),
            (_RETURN, 0, 0, _ALLOW),
        )
    )
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(instructions) // 8, instructions)
    for arguments in ((_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_SET_SECCOMP, _FILTER, ctypes.byref(program))):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    if sys.platform == "linux":
        without_netlink()
    os.execv(os.environ["JHLAUNCHER_TEST_BROWSER"], sys.argv)
