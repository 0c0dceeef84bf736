"""Large files are read and written past the page cache (O_DIRECT).

They are read once or written once, so they need not lie in memory a second time. When memory is short, or
fresh as in a virtual machine, a page of the cache costs more time than the disk itself. What the cache holds already is
read from the cache.
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
PAGE = 4096  # bytes; O_DIRECT needs addresses, offsets and sizes that are multiples of it
CHUNK = 64 * 2**20  # bytes of one request at most; the kernel keeps a disk busier than threads do
DIRECT = getattr(os, "O_DIRECT", 0)
LARGE = 256 * 2**20  # bytes; smaller files stay in the cache, because they are read again soon
IN_FLIGHT = 384 * 10**6  # bytes of tensors held at once; so many keep disk and processors busy


def page_up(nbytes: int) -> int:
    """Rounds up to whole pages."""
    return -(-nbytes // PAGE) * PAGE


def new_buffer(nbytes: int) -> memoryview:
    """Returns memory that begins at a page and has room for `nbytes`."""
    memory = mmap.mmap(-1, max(page_up(nbytes), PAGE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if nbytes >= HUGE_PAGE:
        with contextlib.suppress(OSError, AttributeError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def let_go(buffer: memoryview) -> int:
    """Gives a buffer's memory back to the system, even while a view of it is held. Returns its size in bytes."""
    with contextlib.suppress(OSError, AttributeError):
        buffer.obj.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]  # obj is an mmap
    return len(buffer)


def close_all(*fds: int) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)


class DirectReader:
    """Reads large parts of a file: from the page cache what lies there, and the rest directly from the disk.

    Raises OSError when the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.cached_fd = self.direct_fd = -1
        self.path, self.direct = path, True
        self.cached_fd = os.open(path, os.O_RDONLY)
        with contextlib.suppress(OSError):  # the file system has no O_DIRECT
            self.direct_fd = os.open(path, os.O_RDONLY | DIRECT) if DIRECT else -1
        # This replaces __del__, which no longer finds `os` when the process ends.
        weakref.finalize(self, close_all, self.cached_fd, self.direct_fd)

    def read(self, offset: int, nbytes: int, buffer: memoryview) -> memoryview:
        """Returns the `nbytes` from `offset` on, as a view somewhere within `buffer`, which has `space_for(nbytes)`.

        Raises OSError, also when the file is too short.
        """
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
        """Starts to fetch a part into the page cache and does not wait. Page faults would fetch it bit by bit."""
        with contextlib.suppress(OSError, AttributeError):
            os.posix_fadvise(self.cached_fd, offset, nbytes, os.POSIX_FADV_WILLNEED)

    def _read_part(self, at: int, part: memoryview) -> int:
        if self.direct and self.direct_fd >= 0 and at % PAGE == 0 and not self._cached(at + len(part) // 2):
            try:
                return os.preadv(self.direct_fd, [part], at)
            except OSError as e:
                if e.errno != errno.EINVAL:
                    raise
                self.direct = False  # the file system accepted O_DIRECT but cannot do it
        return os.preadv(self.cached_fd, [part], at)

    def _cached(self, at: int) -> bool:
        """Returns whether the byte at `at` is in the page cache; True also when the system cannot tell."""
        try:
            os.preadv(self.cached_fd, [bytearray(1)], at, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True


def in_flight(largest: int) -> int:
    """Returns how many bytes of tensors to hold at once, when the largest tensor has `largest` bytes.

    The result is at most IN_FLIGHT or the largest tensor, whichever is more, because the bound of memory depends on
    that tensor.
    """
    return max(largest, min(2 * largest, IN_FLIGHT))


def rss_bytes() -> int:
    """Returns the bytes of anonymous memory of this process. Before the first tensor it is that of the libraries."""
    try:
        line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("RssAnon:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):  # not Linux
        return 450 * 10**6


def request_bytes(largest: int) -> int:
    """Returns how many bytes to write at once, when the largest tensor has `largest` bytes.

    The bound of memory is twice the largest tensor plus 500 MB. Two write buffers share what the memory in use, the
    tensors in flight, their bitmasks and the buffers of the bitmasks leave of it.
    """
    left = (2 * largest + 500e6 - rss_bytes() - in_flight(largest) - largest / 4 - 2 * HUGE_PAGE) / 2
    return int(max(min(left, largest / 8, 16 * HUGE_PAGE), HUGE_PAGE)) // PAGE * PAGE


def space_for(nbytes: int) -> int:
    """Returns the size of a buffer into which `nbytes` can be read from any offset of a file."""
    return page_up(nbytes) + 2 * PAGE


class BufferPool:
    """Buffers that are used again. All together have at most `budget` bytes; `take` waits until one is free."""

    def __init__(self, budget: int) -> None:
        self.budget, self.total = budget, 0
        self.free: list[memoryview] = []
        self.changed = threading.Condition()
        self.closed = False

    def take(self, nbytes: int) -> memoryview | None:
        """Returns a buffer with space for `nbytes`, or None when the pool was closed."""
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
    """The `nbytes` of a file from `offset` on."""

    path: Path
    offset: int
    nbytes: int


def prefetch(parts: Sequence[ByteRange], budget: int) -> Iterator[tuple[memoryview, Callable[[], None]]]:
    """Yields (bytes, function that gives their memory back) of each part in turn. A thread reads ahead of the caller.

    At most `budget` bytes are in memory, or the largest part if it is larger. Memory that the caller does not give back
    is not used again, and the thread waits when none is left. Raises OSError.
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
    """A new file that is written from front to back by a thread of its own. The first `reserved` bytes wait for
    `close`.

    A `large` file is written past the page cache if the file system can. `chunk` is the size of one request in bytes, a
    multiple of PAGE; twice as many bytes are held in memory. Raises OSError when the file exists or cannot be made.
    """

    def __init__(self, path: Path, reserved: int, large: bool, chunk: int = HUGE_PAGE) -> None:
        self.fd = self.direct_fd = -1
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="lottery-append")
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        if large and DIRECT:
            with contextlib.suppress(OSError):
                self.direct_fd = os.open(path, os.O_WRONLY | DIRECT)
        self.size = reserved  # bytes of the file so far
        self.at = reserved // PAGE * PAGE  # the offset at which the buffer will be written
        self.used = reserved - self.at
        self.chunk, self.buffer, self.spare = chunk, new_buffer(chunk), new_buffer(chunk)
        self.writing: Future[None] | None = None

    def write(self, data: memoryview) -> None:
        """Appends the data. Raises OSError, also when an earlier write failed."""
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
        """Writes the rest, puts `front` at the beginning, and forces all onto the disk. Raises OSError."""
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
        """Closes the file in any state, without writing the rest."""
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
