"""Text to token files: documents are encoded by several processes and written by one, in their order.

The result depends on the sources and the tokenizer alone, not on the number of processes. Whether a document is held
out for validation follows from its bytes, so that a text that occurs twice never stands on both sides. Files have
their names only when they are whole; whatever ends the work before that leaves nothing.

Between the processes travel frames of bytes: no pickle. What must not live here: the screen (`worker/offline`).
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import signal
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from worker.data.corpus import Tokens
from worker.data.documents import Source, read_documents
from worker.data.tokenfile import TRAIN_FILE, VALIDATION_FILE, Header, TokenFileWriter
from worker.data.tokenizer import Tokenizer, TokenizerError, open_tokenizer

BATCH_BYTES = 1 << 20
"""So much text is encoded at a time."""
END_SECONDS = 5.0
"""How long an encoder may take to end by itself."""
_COUNT = struct.Struct("<I")
_FAILED = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be made of what."""

    sources: tuple[Source, ...]
    out: Path
    tokenizer: str
    """`bytes`, or a tokenizer.json, or a folder with one."""
    end_of_document: str | None
    text_field: str
    validation_share: float
    processes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The files that were written."""

    train: Header
    validation: Header | None


class EncoderDied(Exception):
    """An encoding process ended in the middle of its work."""


def prepare(plan: Plan, *, after_batch: Callable[[int, int, int], None]) -> Prepared:
    """Write `train.tokens`, and `validation.tokens` if a share is held out, into a folder that exists.

    `after_batch` hears of bytes read, documents and tokens so far. Raises DataError, TokenizerError, EncoderDied,
    OSError.
    """
    tokenizer = open_tokenizer(plan.tokenizer, end=plan.end_of_document)
    vocabulary = tokenizer.vocabulary
    names = [TRAIN_FILE, VALIDATION_FILE] if plan.validation_share else [TRAIN_FILE]
    with contextlib.ExitStack() as stack:
        writers = []
        for name in names:
            writer = TokenFileWriter(
                plan.out / name,
                vocabulary=vocabulary.size,
                tokenizer_name=vocabulary.name,
                tokenizer=vocabulary.tokenizer,
            )
            stack.callback(writer.abandon)
            writers.append(writer)
        encoders = stack.enter_context(_encoders(plan, tokenizer))
        for batch, encoded, read in _encoded(_batches(plan), encoders):
            for document, tokens in zip(batch, encoded, strict=True):
                held = plan.validation_share > 0 and share_of(document) < plan.validation_share
                writers[held].add(tokens, text_bytes=len(document))
            after_batch(read, sum(each.documents for each in writers), sum(each.tokens for each in writers))
        if any(writer.tokens == 0 for writer in writers):
            raise TokenizerError(
                "one of the files would hold no token: name more text, or another --validation-share"
            )
        headers = [writer.finish() for writer in writers]
    return Prepared(train=headers[0], validation=headers[1] if len(headers) > 1 else None)


def share_of(document: bytes) -> float:
    """Where in [0, 1) a document falls, by its bytes alone."""
    return int.from_bytes(hashlib.blake2b(document, digest_size=8).digest(), "little") / 2.0**64


_Batch = tuple[list[bytes], int]
"""Documents, and how many bytes of all sources have been read after them."""


def _batches(plan: Plan) -> Iterator[_Batch]:
    documents: list[bytes] = []
    size = before = 0
    for source in plan.sources:
        for document in read_documents(source, text_field=plan.text_field):
            documents.append(document.text)
            size += len(document.text)
            if size >= BATCH_BYTES:
                yield documents, before + document.read_bytes
                documents, size = [], 0
        before += source.bytes
    if documents:
        yield documents, before


_Encode = Callable[[Sequence[bytes]], None]
_Take = Callable[[], list[Tokens]]


@dataclass(frozen=True, slots=True)
class _Encoder:
    """Takes one batch at a time: `send`, then `take`."""

    send: _Encode
    take: _Take


def _encoded(
    batches: Iterator[_Batch], encoders: Sequence[_Encoder]
) -> Iterator[tuple[list[bytes], list[Tokens], int]]:
    """Each batch with its tokens, in order: encoders take turns, and each has at most one batch in hand."""
    waiting: deque[tuple[_Encoder, _Batch]] = deque()
    for number, batch in enumerate(batches):
        encoder = encoders[number % len(encoders)]
        if len(waiting) == len(encoders):
            first, (documents, read) = waiting.popleft()
            yield documents, first.take(), read
        encoder.send(batch[0])
        waiting.append((encoder, batch))
    for encoder, (documents, read) in waiting:
        yield documents, encoder.take(), read


@contextlib.contextmanager
def _encoders(plan: Plan, tokenizer: Tokenizer) -> Iterator[list[_Encoder]]:
    """Processes of this one, which end with it; where one is enough, or tokens are bytes, no other process."""
    if plan.processes == 1 or not tokenizer.vocabulary.tokenizer:
        results: deque[list[Tokens]] = deque()
        yield [
            _Encoder(send=lambda documents: results.append(tokenizer.encode(documents)), take=results.popleft)
        ]
        return
    context = multiprocessing.get_context("spawn")
    started: list[tuple[BaseProcess, Connection]] = []
    try:
        for _ in range(plan.processes):
            mine, theirs = context.Pipe()
            process: BaseProcess = context.Process(
                target=encode_for, args=(theirs, plan.tokenizer, plan.end_of_document), daemon=True
            )
            process.start()
            theirs.close()
            started.append((process, mine))
        yield [_remote(connection) for _, connection in started]
    finally:
        for _, connection in started:
            connection.close()  # an encoder without anybody to talk to ends
        for process, _ in started:
            process.join(END_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()


def _remote(connection: Connection) -> _Encoder:
    def send(documents: Sequence[bytes]) -> None:
        try:
            connection.send_bytes(_COUNT.pack(len(documents)))
            for document in documents:
                connection.send_bytes(document)
        except OSError as error:
            raise EncoderDied("an encoding process has ended; was it killed for want of memory?") from error

    def take() -> list[Tokens]:
        try:
            (count,) = _COUNT.unpack(connection.recv_bytes())
            if count == _FAILED:
                raise TokenizerError(connection.recv_bytes().decode())
            return [np.frombuffer(connection.recv_bytes(), dtype=np.uint32) for _ in range(count)]
        except (OSError, EOFError) as error:
            raise EncoderDied("an encoding process has ended; was it killed for want of memory?") from error

    return _Encoder(send=send, take=take)


def encode_for(connection: Connection, tokenizer_path: str, end_of_document: str | None) -> None:
    """The life of an encoding process: batches in, tokens out, until nobody talks to it any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    tokenizer = open_tokenizer(tokenizer_path, end=end_of_document)
    with contextlib.suppress(EOFError, OSError):
        while True:
            (count,) = _COUNT.unpack(connection.recv_bytes())
            documents = [connection.recv_bytes() for _ in range(count)]
            try:
                encoded = tokenizer.encode(documents)
            except TokenizerError as error:
                connection.send_bytes(_COUNT.pack(_FAILED))
                connection.send_bytes(str(error).encode())
                continue
            connection.send_bytes(_COUNT.pack(count))
            for tokens in encoded:
                connection.send_bytes(tokens.astype(np.uint32).tobytes())
