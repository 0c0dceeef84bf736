"""Large files past the page cache: read once or written once, they need not lie in memory a second time.

A page of the cache costs more than the disk's own time where memory is fresh (a virtual machine's above all) or short.
What the cache holds already is taken from it.
"""

import contextlib
import errno
import functools
import mmap
import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HUGE_PAGE = 2**21
PAGE = 4096  # what O_DIRECT wants addresses, offsets and sizes to be multiples of
CHUNK = 64 * 2**20  # bytes of one request, at most: the kernel keeps a disk busy better than threads do
DIRECT = getattr(os, "O_DIRECT", 0)
LARGE = 256 * 2**20  # bytes: smaller files are better left in the cache, they are read again soon
IN_FLIGHT = 384 * 10**6  # bytes of tensors held at once: what keeps disk and processors busy


def page_up(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE


def new_buffer(nbytes: int) -> memoryview:
    """Memory that begins on a page."""
    memory = mmap.mmap(-1, max(page_up(nbytes), PAGE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if nbytes >= HUGE_PAGE:
        with contextlib.suppress(OSError, AttributeError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def let_go(buffer: memoryview) -> int:
    """Its memory goes back now, though somebody may still hold the empty hull. Returns how much it was."""
    with contextlib.suppress(OSError, AttributeError):
        buffer.obj.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]  # it is an mmap
    return len(buffer)


def close_all(*fds: int) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)


class DirectReader:
    """A file of which large parts are read: out of the page cache where they lie there, else straight off the disk."""

    def __init__(self, path: Path) -> None:
        self.cached_fd = self.direct_fd = -1
        self.path, self.direct = path, True
        self.cached_fd = os.open(path, os.O_RDONLY)
        with contextlib.suppress(OSError):  # a file system that has no such thing
            self.direct_fd = os.open(path, os.O_RDONLY | DIRECT) if DIRECT else -1
        # not __del__, which at the end of the process finds no `os` any more
        weakref.finalize(self, close_all, self.cached_fd, self.direct_fd)

    def read(self, offset: int, nbytes: int, buffer: memoryview) -> memoryview:
        """`nbytes` from `offset` on, somewhere within `buffer`, which has `space_for(nbytes)`. Raises OSError."""
        first = offset // PAGE * PAGE
        end, at = offset + nbytes, first
        while at < end:
            part = buffer[at - first : at - first + min(CHUNK, page_up(end) - at)]
            got = self._read_part(at, part)
            if not got:
                raise OSError(errno.EIO, f"{self.path} ends before its tensors do")
            at += got
        return buffer[offset - first : offset - first + nbytes]

    def read_ahead(self, offset: int, nbytes: int) -> None:
        """Have the disk fetch a part into the page cache, without waiting for it: faults would ask for it bit by bit."""
        with contextlib.suppress(OSError, AttributeError):
            os.posix_fadvise(self.cached_fd, offset, nbytes, os.POSIX_FADV_WILLNEED)

    def _read_part(self, at: int, part: memoryview) -> int:
        if self.direct and self.direct_fd >= 0 and at % PAGE == 0 and not self._cached(at + len(part) // 2):
            try:
                return os.preadv(self.direct_fd, [part], at)
            except OSError as e:
                if e.errno != errno.EINVAL:
                    raise
                self.direct = False  # a file system that only says it could
        return os.preadv(self.cached_fd, [part], at)

    def _cached(self, at: int) -> bool:
        """Whether one byte is in the page cache; also where nobody can tell."""
        try:
            os.preadv(self.cached_fd, [bytearray(1)], at, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True


def in_flight(largest: int) -> int:
    """How many bytes of tensors to hold at once, of which the largest has so many: memory is bounded by that one."""
    return max(largest, min(2 * largest, IN_FLIGHT))


def rss_bytes() -> int:
    """Bytes of anonymous memory of this process: before its first tensor, the libraries'."""
    try:
        line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("RssAnon:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):  # not Linux
        return 450 * 10**6


def request_bytes(largest: int) -> int:
    """How many bytes to write at once: what the bound of twice the largest tensor and 500 MB leaves beside what is held
    now, the tensors in flight, their bitmasks and the buffers of those, for two buffers."""
    left = (2 * largest + 500e6 - rss_bytes() - in_flight(largest) - largest / 4 - 2 * HUGE_PAGE) / 2
    return int(max(min(left, largest / 8, 16 * HUGE_PAGE), HUGE_PAGE)) // PAGE * PAGE


def space_for(nbytes: int) -> int:
    return page_up(nbytes) + 2 * PAGE


class BufferPool:
    """Buffers that are used again, of so many bytes in all; one that is asked for is waited for."""

    def __init__(self, budget: int) -> None:
        self.budget, self.total = budget, 0
        self.free: list[memoryview] = []
        self.changed = threading.Condition()
        self.closed = False

    def take(self, nbytes: int) -> memoryview | None:
        """A buffer with space for so many bytes; None when the pool was closed."""
        with self.changed:
            while not self.closed:
                fitting = [b for b in self.free if nbytes <= len(b) <= 2 * nbytes]
                if fitting:
                    buffer = min(fitting, key=len)
                    self.free.remove(buffer)
                    return buffer
                while self.free and self.total + nbytes > self.budget:
                    self.total -= let_go(self.free.pop(0))
                if not self.total or self.total + nbytes <= self.budget:
                    buffer = new_buffer(nbytes)
                    self.total += len(buffer)
                    return buffer
                self.changed.wait()
            return None

    def give_back(self, buffer: memoryview) -> None:
        with self.changed:
            self.free.append(buffer)
            self.changed.notify_all()

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.free.clear()
            self.changed.notify_all()


@dataclass(frozen=True)
class ByteRange:
    """So many bytes of a file, from an offset on."""

    path: Path
    offset: int
    nbytes: int


def prefetch(parts: Sequence[ByteRange], budget: int) -> Iterator[tuple[memoryview, Callable[[], None]]]:
    """(bytes, how to give their memory back) of each part in turn, read ahead of the caller by a thread of its own.

    So many bytes are in memory at most, or the largest part. What is never given back is not read into again; the reader
    then waits. Raises OSError.
    """
    pool = BufferPool(max(budget, space_for(max((p.nbytes for p in parts), default=0))))
    ready: queue.SimpleQueue[tuple[memoryview, memoryview] | BaseException] = queue.SimpleQueue()

    def read_ahead() -> None:
        files: dict[Path, DirectReader] = {}
        try:
            for part in parts:
                buffer = pool.take(space_for(part.nbytes))
                if buffer is None:
                    return
                file = files.get(part.path) or files.setdefault(part.path, DirectReader(part.path))
                ready.put((file.read(part.offset, part.nbytes, buffer), buffer))
        except BaseException as e:
            ready.put(e)

    reader = threading.Thread(target=read_ahead, name="lottery-read", daemon=True)
    reader.start()
    try:
        for _ in parts:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            view, buffer = item
            yield view, functools.partial(pool.give_back, buffer)
            del item, view, buffer
    finally:
        pool.close()
        reader.join()


class Appender:
    """A file written front to back, `reserved` bytes at its front left free for `close`. A thread of its own writes it.

    `large`: past the page cache, where the file system can. `chunk`: bytes of a request, a multiple of a page; twice as
    many are held in memory.
    """

    def __init__(self, path: Path, reserved: int, large: bool, chunk: int = HUGE_PAGE) -> None:
        self.fd = self.direct_fd = -1
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="lottery-append")
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        if large and DIRECT:
            with contextlib.suppress(OSError):
                self.direct_fd = os.open(path, os.O_WRONLY | DIRECT)
        self.size = reserved  # so many bytes so far
        self.at = reserved // PAGE * PAGE  # where the buffer will be written
        self.used = reserved - self.at
        self.chunk, self.buffer, self.spare = chunk, new_buffer(chunk), new_buffer(chunk)
        self.writing: Future[None] | None = None

    def write(self, data: memoryview) -> None:
        """Raises OSError, also for what was written before."""
        begin = 0
        while begin < len(data):
            size = min(len(data) - begin, self.chunk - self.used)
            self.buffer[self.used : self.used + size] = data[begin : begin + size]
            self.used += size
            begin += size
            if self.used == self.chunk:
                self._settle()
                self.writing = self.thread.submit(self._write_out, self.buffer, self.at)
                self.buffer, self.spare = self.spare, self.buffer
                self.at, self.used = self.at + self.chunk, 0
        self.size += len(data)

    def close(self, front: bytes) -> None:
        """The rest, `front` at the beginning, and all of it on the disk. Raises OSError."""
        try:
            self._settle()
            self._write_out(self.buffer[: self.used], self.at)
            self._write_out(memoryview(front), 0)
            os.fsync(self.fd)
        finally:
            self.drop()

    def __del__(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Let go of the file, whatever state it is in."""
        self.thread.shutdown()
        for fd in {self.fd, self.direct_fd} - {-1}:
            os.close(fd)
        self.fd = self.direct_fd = -1

    def _settle(self) -> None:
        if self.writing:
            self.writing.result()
            self.writing = None

    def _write_out(self, data: memoryview, at: int) -> None:
        while len(data):
            direct = self.direct_fd >= 0 and len(data) % PAGE == 0 and at % PAGE == 0
            try:
                done = os.pwrite(self.direct_fd if direct else self.fd, data, at)
            except OSError as e:
                if not direct or e.errno != errno.EINVAL:
                    raise
                os.close(self.direct_fd)
                self.direct_fd = -1
                continue
            data, at = data[done:], at + done
