"""What a new process executes first: read what to do, become clean, patch if need be, do it.

Run by path, with ``-P``. Before the spec is read nothing but the standard library can be imported,
and before the patching nothing that holds a lock or a socket should be.
"""

import io
import json
import os
import sys


def open_standard() -> None:
    """Open what is closed of the descriptors 0 to 2, on /dev/null.

    Whatever is opened first would take their numbers, and be what a ``print`` writes into: the
    memory of the counters, a client's connection. To be called before anything is opened.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if opened == fd:
                os.set_inheritable(fd, True)
            else:
                os.close(opened)  # another thread was faster: it is open now


def _receive() -> tuple[dict, list[int]]:  # type: ignore[type-arg]
    """The spec and the descriptors that came with it (channel.py has the format)."""
    import array
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, os.dup(3)) as control:
        control.setblocking(True)
        room = socket.CMSG_SPACE(253 * 4)
        data, ancillary, _, _ = control.recvmsg(1 << 18, room, socket.MSG_CMSG_CLOEXEC)
        control.setblocking(False)
    fds = array.array("i")
    for _, _, rights in ancillary:
        fds.frombytes(rights[: len(rights) - len(rights) % fds.itemsize])
    if not data:
        sys.exit(1)  # who started us is gone already
    return json.loads(data[32:]), fds.tolist()


def _unpack(fd: int) -> tuple[dict, io.BufferedReader]:  # type: ignore[type-arg]
    """The state of a master (master/state.py has the format): what it consists of, and the rest."""
    file = open(fd, "rb")  # noqa: SIM115 - whoever reads the rest closes it
    file.seek(0)
    content = json.loads(file.readline())
    sys.path[:] = content["path"]
    return content, file


def _try(fd: int, answer: int) -> None:
    """Say to the old code whether this new code can take its place; nothing is changed by that."""
    os.set_inheritable(answer, False)
    try:
        content, rest = _unpack(fd)
        from sticky.master.upgraded import check

        said = check(content, rest)
    except BaseException as error:  # whatever it is: it would happen to the server otherwise
        ours = any(kind.__name__ == "StickyError" for kind in type(error).__mro__)
        why = str(error) if ours else f"{type(error).__name__}: {error}"
        said = {"no": why[:1000]}
    os.write(answer, json.dumps(said).encode())
    os._exit(0)


def main() -> None:
    """Become what the spec says."""
    open_standard()
    if sys.argv[1] == "trial":
        _try(int(sys.argv[2]), int(sys.argv[3]))
    if sys.argv[1] == "upgraded":
        content, rest = _unpack(int(sys.argv[2]))
        from sticky.master.upgraded import go_on

        go_on(content, rest)
    # Descriptors that whoever started the program left inheritable are nobody's here.
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(3, False)
    spec, fds = _receive()
    sys.path[:] = spec["path"]
    if spec["role"] == "master":
        from sticky.master.master import launched

        launched(spec, fds)
        return
    if spec["role"] == "watcher":
        from sticky.master.watcher import main as watch

        watch(spec)

    import sticky.outlet  # noqa: F401 - while os.write is what it is
    from sticky.worker.classes import prepare

    prepare(spec["options"]["worker_class"])
    from sticky.worker.main import main

    main(spec, fds)


if __name__ == "__main__":
    main()
