"""The service's decoding processes: a file that takes long holds up no other, and ends with its client's connection.

Each file begins in the quick lane. One that takes more than SLICE seconds of CPU time goes on in the slow lane, whose
processes are paused while quick files need the processors; the oldest of them always runs. Where the slow lane is full,
the file is begun again once there is room, so that the memory of all processes together stays bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.shared.errors import RefusedError
from components.shared.imaging.decoder import REFUSAL, VIEW, Decoder, EndedError, Template
from components.shared.runtime.threads import count_threads

WORK = "serving.decoding:look_at"
"""What a decoding process runs."""
SLICE = 0.1
"""CPU seconds after which a file leaves the quick lane."""
SPARE = 4
"""Files in the quick lane beyond the number of processors."""
SLOW = 8
"""Files in the slow lane."""
ENDING = "The service is ending, and this image would take it too long. Ask again later."


class EndingError(Exception):
    """The service is ending and gives up what takes long."""


class Decoders:
    """Processes that make views of files. All methods but the constructor belong to the event loop's thread."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool  # for what blocks for a moment
        self._processors = count_threads()
        self._quick = asyncio.Semaphore(self._processors + SPARE)
        self._room = asyncio.Semaphore(SLOW)
        self._idle: asyncio.LifoQueue[Decoder] = asyncio.LifoQueue()
        self._template: Template | None = None
        self._coming: set[asyncio.Future[Decoder]] = set()
        self._late: list[Decoder] = []
        self._busy = 0
        self._ending = False

    def start(self) -> None:
        """Have as many processes as quick files may be decoded side by side."""
        self._template = Template(WORK)
        self._fill()

    def _fill(self) -> None:
        while self._template and self._idle.qsize() + self._busy + len(self._coming) < self._processors + SPARE:
            loop = asyncio.get_running_loop()
            coming = loop.run_in_executor(self._pool, Decoder, self._template)
            self._coming.add(coming)
            coming.add_done_callback(self._came)

    def _came(self, coming: asyncio.Future[Decoder]) -> None:
        self._coming.remove(coming)
        if not coming.exception():
            self._idle.put_nowait(coming.result())
        elif self._template:  # it was killed, likely for want of memory
            self._template.close()
            self._template = Template(WORK)

    def hurry(self) -> None:
        """Give up all files in the slow lane, now and from now on."""
        self._ending = True
        for decoder in self._late:
            decoder.kill()

    async def close(self) -> None:
        """End the processes."""
        template, self._template = self._template, None
        await asyncio.gather(*self._coming, return_exceptions=True)
        await asyncio.sleep(0)  # so that those are among the idle
        if template:
            template.close()
        while not self._idle.empty():
            self._idle.get_nowait().close()

    async def view(
        self, read: Callable[[], bytes], decoding: dict[str, Any], view_parameters: Any
    ) -> NDArray[np.uint8]:
        """Return what a model sees of a file; raise a ValueError with a sentence where the file cannot be used."""
        try:
            answer = await self._answer(read, decoding, view_parameters)
        except EndedError as end:
            if self._ending:
                raise EndingError from None
            answer = REFUSAL + end.sentence().encode()
        if not answer.startswith(VIEW):
            reason = answer[1:].decode().rstrip(".")
            raise RefusedError(f"{reason[:1].upper()}{reason[1:]}.")
        side = view_parameters[0]
        shape = (side, side, 3) if decoding["colour"] == "rgb" else (side, side)
        return np.frombuffer(answer, np.uint8, offset=1).reshape(shape)

    async def _answer(self, read: Callable[[], bytes], *about: Any) -> bytes:
        async with self._quick:
            decoder = await self._idle.get()
            self._busy += 1
            self._settle()
            try:
                before = decoder.seconds
                await self._send(decoder, read, *about)
                while not await _is_ready(decoder, SLICE):
                    if decoder.seconds - before >= SLICE:
                        break
                else:
                    return self._received(decoder)
            except BaseException:  # it ended, or its client has gone
                self._drop(decoder)
                raise
            finally:
                self._busy -= 1
                self._settle()
        return await self._slowly(decoder, read, *about)

    async def _slowly(self, decoder: Decoder, read: Callable[[], bytes], *about: Any) -> bytes:
        again = self._room.locked()
        if again:
            self._drop(decoder)
        async with self._room:
            if again:
                decoder = await self._idle.get()
            self._late.append(decoder)
            self._settle()
            try:
                if self._ending:
                    raise EndingError
                if again:
                    await self._send(decoder, read, *about)
                await _is_ready(decoder, None)
                return self._received(decoder)
            except BaseException:
                self._drop(decoder)
                raise
            finally:
                self._late.remove(decoder)
                decoder.pause(False)
                self._settle()

    def _settle(self) -> None:
        """Let as many of the slow lane run as there are processors without a quick file, and the oldest in any case."""
        for place, decoder in enumerate(self._late):
            decoder.pause(place >= max(1, self._processors - self._busy))
        self._fill()

    def _received(self, decoder: Decoder) -> bytes:
        answer = decoder.receive()
        self._idle.put_nowait(decoder)
        return answer

    def _drop(self, decoder: Decoder) -> None:
        """End a process."""
        decoder.kill()
        self._pool.submit(decoder.close)

    async def _send(self, decoder: Decoder, read: Callable[[], bytes], *about: Any) -> None:
        sending = asyncio.get_running_loop().run_in_executor(self._pool, lambda: decoder.send(read(), *about))
        try:
            await asyncio.shield(sending)
        except asyncio.CancelledError:
            decoder.kill()  # which ends the sending, too
            await asyncio.gather(sending, return_exceptions=True)
            raise


async def _is_ready(decoder: Decoder, seconds: float | None) -> bool:
    """Wait for the answer, or the end, of a process; at most so many seconds."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(decoder, ready.set)
    try:
        await asyncio.wait_for(ready.wait(), seconds)
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(decoder)
    return True
