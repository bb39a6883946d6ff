"""A real nginx that keeps four connections to the server, as the end-to-end tests have it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.e2e.proxies import NGINX, free_port

from .server import until

PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@asynccontextmanager
async def nginx(folder: Path, upstream: int) -> AsyncIterator[int]:
    """Yields its port.

    Raises:
        FileNotFoundError: there is no nginx on this machine.
        TimeoutError: it does not start.
    """
    program = shutil.which("nginx", path=PATH)
    if program is None:
        raise FileNotFoundError("needs nginx: apt install nginx-light")
    folder.mkdir()
    port, conf, errors = free_port(), folder / "nginx.conf", folder / "error.log"
    text = NGINX.format(
        user="user root;" if os.getuid() == 0 else "",
        folder=folder,
        upstream=upstream,
        port=port,
        connection="''",
        keepalive="keepalive 4;",
    )
    conf.write_text(text)
    process = subprocess.Popen([program, "-p", str(folder), "-c", str(conf), "-e", str(errors)])
    try:
        deadline = asyncio.get_running_loop().time() + 20
        while not await _listens(port):
            if process.poll() is not None or asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(f"nginx does not start: {errors.read_text()}")
            await asyncio.sleep(0.05)
        yield port
    finally:
        process.terminate()
        await until(lambda: process.poll() is not None, 10)
        if process.poll() is None:
            process.kill()
