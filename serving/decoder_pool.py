"""Decoding processes of the service: slow files do not delay others, and stop when their client disconnects.

Each file starts in the quick lane. After SLICE seconds of CPU time it moves to the slow lane, whose processes are
paused while quick files need the processors; the oldest of them always runs. If the slow lane is full, the file starts
again when there is room, so that the total memory stays bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.shared.errors import RefusedError
from components.shared.imaging.decode_sandbox import REFUSAL, VIEW, Decoder, EndedError, Template
from components.shared.runtime.threads import count_threads

WORK = "serving.make_view:make_view"
"""The function that a decoding process runs."""
SLICE = 0.1
"""CPU seconds after which a file leaves the quick lane."""
SPARE = 4
"""Files in the quick lane beyond the number of processors."""
SLOW = 8
"""Files in the slow lane."""
STOPPING = "The service is stopping, and this image takes too long to decode. Try again later."


class StoppingError(Exception):
    """The service is stopping and abandons slow files."""


class Decoders:
    """Processes that decode files. All methods but the constructor run in the event loop's thread."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool  # for calls that block briefly
        self._processors = count_threads()
        self._quick = asyncio.Semaphore(self._processors + SPARE)
        self._room = asyncio.Semaphore(SLOW)
        self._idle: asyncio.LifoQueue[Decoder] = asyncio.LifoQueue()
        self._template: Template | None = None
        self._starting: set[asyncio.Future[Decoder]] = set()
        self._slow: list[Decoder] = []
        self._busy = 0
        self._stopping = False

    def start(self) -> None:
        """Start one process for each place in the quick lane."""
        self._template = Template(WORK)
        self._fill()

    def _fill(self) -> None:
        while self._template and self._idle.qsize() + self._busy + len(self._starting) < self._processors + SPARE:
            loop = asyncio.get_running_loop()
            future = loop.run_in_executor(self._pool, Decoder, self._template)
            self._starting.add(future)
            future.add_done_callback(self._started)

    def _started(self, future: asyncio.Future[Decoder]) -> None:
        self._starting.remove(future)
        if not future.exception():
            self._idle.put_nowait(future.result())
        elif self._template:  # it was killed, probably for lack of memory
            self._template.close()
            self._template = Template(WORK)

    def hurry(self) -> None:
        """Abandon all files in the slow lane, now and later."""
        self._stopping = True
        for decoder in self._slow:
            decoder.kill()

    async def close(self) -> None:
        template, self._template = self._template, None
        await asyncio.gather(*self._starting, return_exceptions=True)
        await asyncio.sleep(0)  # lets their callbacks run
        if template:
            template.close()
        while not self._idle.empty():
            self._idle.get_nowait().close()

    async def view(
        self, read: Callable[[], bytes], decoding: dict[str, Any], view_parameters: Any
    ) -> NDArray[np.uint8]:
        """Return the view of a file; raise RefusedError if the file cannot be used."""
        try:
            reply = await self._decode(read, decoding, view_parameters)
        except EndedError as end:
            if self._stopping:
                raise StoppingError from None
            reply = REFUSAL + end.sentence().encode()
        if not reply.startswith(VIEW):
            reason = reply[1:].decode().rstrip(".")
            raise RefusedError(f"{reason[:1].upper()}{reason[1:]}.")
        size = view_parameters[0]
        shape = (size, size, 3) if decoding["colour"] == "rgb" else (size, size)
        return np.frombuffer(reply, np.uint8, offset=1).reshape(shape)

    async def _decode(self, read: Callable[[], bytes], *options: Any) -> bytes:
        async with self._quick:
            decoder = await self._idle.get()
            self._busy += 1
            self._schedule()
            try:
                before = decoder.seconds
                await self._send(decoder, read, *options)
                while not await _is_ready(decoder, SLICE):
                    if decoder.seconds - before >= SLICE:
                        break
                else:
                    return self._receive(decoder)
            except BaseException:  # it ended, or its client disconnected
                self._drop(decoder)
                raise
            finally:
                self._busy -= 1
                self._schedule()
        return await self._decode_slowly(decoder, read, *options)

    async def _decode_slowly(self, decoder: Decoder, read: Callable[[], bytes], *options: Any) -> bytes:
        restart = self._room.locked()
        if restart:
            self._drop(decoder)
        async with self._room:
            if restart:
                decoder = await self._idle.get()
            self._slow.append(decoder)
            self._schedule()
            try:
                if self._stopping:
                    raise StoppingError
                if restart:
                    await self._send(decoder, read, *options)
                await _is_ready(decoder, None)
                return self._receive(decoder)
            except BaseException:
                self._drop(decoder)
                raise
            finally:
                self._slow.remove(decoder)
                decoder.pause(False)
                self._schedule()

    def _schedule(self) -> None:
        """Run as many slow files as there are processors without a quick file, and always the oldest."""
        for index, decoder in enumerate(self._slow):
            decoder.pause(index >= max(1, self._processors - self._busy))
        self._fill()

    def _receive(self, decoder: Decoder) -> bytes:
        reply = decoder.receive()
        self._idle.put_nowait(decoder)
        return reply

    def _drop(self, decoder: Decoder) -> None:
        decoder.kill()
        self._pool.submit(decoder.close)

    async def _send(self, decoder: Decoder, read: Callable[[], bytes], *options: Any) -> None:
        sending = asyncio.get_running_loop().run_in_executor(self._pool, lambda: decoder.send(read(), *options))
        try:
            await asyncio.shield(sending)
        except asyncio.CancelledError:
            decoder.kill()  # this ends the sending, too
            await asyncio.gather(sending, return_exceptions=True)
            raise


async def _is_ready(decoder: Decoder, seconds: float | None) -> bool:
    """Wait until a process replies or ends, for at most so many seconds; return whether it did."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(decoder, ready.set)
    try:
        await asyncio.wait_for(ready.wait(), seconds)
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(decoder)
    return True
