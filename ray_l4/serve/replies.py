"""One reply: the tokens of a request as they come from the model's thread, as text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from fastapi import Request

from ray_l4.serve.answer_text import AnswerText
from ray_l4.serve.asked import Asked
from ray_l4.serve.generator import Job, NewTokens
from ray_l4.serve.problems import RequestError
from ray_l4.serve.served_model import ServedModel


class Reply:
    """A continuation under way."""

    def __init__(
        self, model: ServedModel, asked: Asked, deadline: float, stop: Sequence[str] = (), streams: bool = False
    ) -> None:
        """Queue the request. ``deadline``: time of the event loop at which it is given up.

        Raises RequestError if the queue is full.
        """
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[NewTokens] = asyncio.Queue()
        self._deadline = deadline
        self._text = AnswerText(model.tokenizer.decode, stop, asked.strip)
        self.prompt_tokens = len(asked.prompt.ids)
        self.finish: str | None = None
        """Why it has ended: ``stop`` or ``length``; None while it goes on."""
        self._job = Job(asked.prompt, asked.decoding, self._tell, every_token=streams or bool(stop))
        model.generator.submit(self._job)

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *error: object) -> None:
        self._job.dropped = True

    def _tell(self, new: NewTokens) -> None:
        """Pass on what the model's thread says."""
        try:
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, new)
        except RuntimeError:  # the loop has ended, and nobody waits for the answer
            self._job.dropped = True

    @property
    def usage(self) -> dict[str, int]:
        """Numbers of tokens so far."""
        new = len(self._text.ids)
        total = self.prompt_tokens + new
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": new, "total_tokens": total}

    async def pieces(self) -> AsyncIterator[str]:
        """Yield the text piece by piece. Raises RequestError if the model fails or takes too long."""
        while self.finish is None:
            new = await self._next()
            if new.finish is None:
                piece = self._text.add(new.ids)
                if self._text.stopped:
                    self.finish, piece = "stop", self._text.add_last([])
            else:
                piece = self._text.add_last(new.ids)
                self.finish = "stop" if self._text.stopped else new.finish
            if piece:
                yield piece

    async def whole(self, request: Request) -> str:
        """Return the whole text; gives up if the client does."""
        with self:
            gone = asyncio.ensure_future(_disconnected(request))
            text = asyncio.ensure_future(self._joined())
            try:
                await asyncio.wait([gone, text], return_when=asyncio.FIRST_COMPLETED)
                if not text.done():
                    raise RequestError(499, "the client closed the connection", "client_gone")
                return text.result()
            finally:
                gone.cancel()
                text.cancel()

    async def _joined(self) -> str:
        return "".join([piece async for piece in self.pieces()])

    async def _next(self) -> NewTokens:
        try:
            async with asyncio.timeout_at(self._deadline):
                new = await self._arrived.get()
        except TimeoutError as error:
            raise RequestError(
                504, "the answer took longer than a request may take", "timeout", retry_after=5
            ) from error
        if new.failure is not None:
            raise new.failure
        return new


async def _disconnected(request: Request) -> None:
    """Wait until the client closes the connection; its whole body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
