"""Large arrays live in mapped files without names, so that the kernel can take their pages back.

Each file is unlinked before it is mapped: a crash leaves nothing behind.  Where there is no directory, or no room in
it, arrays fall back to anonymous memory, because by then the write they belong to is already acknowledged.
"""

import logging
import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)


class Arena:
    """Makes arrays and byte buffers in unnamed files below `directory`; in memory when it is None."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory

    def zeros(self, shape: tuple[int, ...], dtype: type[np.generic]) -> npt.NDArray[Any]:
        """A writable array of zeros."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if self.directory is None or size == 0:
            return np.zeros(shape, dtype)
        try:
            with tempfile.TemporaryFile(dir=self.directory) as file:
                # Reserved now: a page that finds the disk full later would end the process by SIGBUS.
                os.posix_fallocate(file.fileno(), 0, size)
                mapping = mmap.mmap(file.fileno(), size)
        except OSError as error:
            logger.warning("no mapped file, using memory. bytes=`%s` error=`%s`", size, error)
            return np.zeros(shape, dtype)
        return np.frombuffer(mapping, dtype).reshape(shape)

    def copy(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The array's content, moved here."""
        here = self.zeros(array.shape, array.dtype.type)
        here[...] = array
        return here

    def written(self, write: Callable[[BinaryIO], None]) -> memoryview:
        """The bytes that `write` puts into a file, read-only."""
        try:
            with tempfile.TemporaryFile(dir=self.directory) as file:
                write(file)
                file.flush()
                if self.directory is not None:
                    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                file.seek(0)
                return memoryview(file.read())
        except OSError as error:
            logger.warning("no mapped file, using memory. error=`%s`", error)
        with tempfile.SpooledTemporaryFile(max_size=1 << 62) as memory:
            write(memory)  # type: ignore[arg-type]
            memory.seek(0)
            return memoryview(memory.read())
