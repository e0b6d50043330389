"""The slow connections of `bench.connections`, in a process of their own that imports little.

Run `python -m bench.slow HOST PORT CONNECTIONS SECONDS`. It prints a line when it begins, and how many it has opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
import time

REOPEN = 1.0
"""Seconds after which a connection that the service has closed is opened again."""
HEAD = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\n"
KINDS = {
    "silent": b"",
    "slow header": b"GET /health HTTP/1.1\r\nhost: x\r\nx-long: ",
    "slow body": HEAD
    + b'content-length: 1000000\r\n\r\n--b\r\ncontent-disposition: form-data; name="file"; filename="x.png"\r\n\r\n',
    "idle": b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n",
}


async def hold(host: str, port: int, kind: str, until: float, opened: list[int]) -> None:
    """Keep one slow connection open, and open it again when it is closed."""
    while time.time() < until:
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except OSError:
            await asyncio.sleep(REOPEN)
            continue
        opened[0] += 1
        with contextlib.suppress(OSError):
            writer.write(KINDS[kind])
            while time.time() < until:
                try:
                    async with asyncio.timeout(1.0):
                        if not await reader.read(4096):
                            break
                except TimeoutError:
                    if kind in ("slow header", "slow body"):
                        writer.write(b"x")
                        await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()
        await asyncio.sleep(REOPEN)


async def attack(host: str, port: int, connections: int, until: float) -> int:
    """Hold the connections until then; gives how many were opened."""
    opened, kinds = [0], [*KINDS]
    await asyncio.gather(
        *(hold(host, port, kinds[number % len(kinds)], until, opened) for number in range(connections))
    )
    return opened[0]


def main(host: str, port: str, connections: str, seconds: str) -> None:
    wanted, (soft, hard) = int(connections) + 256, resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        sys.exit(f"{connections} connections need {wanted} descriptors, and {hard} are allowed. Raise ulimit -n.")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    print("ready", flush=True)
    print(asyncio.run(attack(host, int(port), int(connections), time.time() + float(seconds))))


if __name__ == "__main__":
    main(*sys.argv[1:])
