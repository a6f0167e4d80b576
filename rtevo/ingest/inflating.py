"""A gzip file, inflated piece by piece, and no further than it may go."""

from __future__ import annotations

import zlib
from typing import Any

from rtevo.errors import DicomError
from rtevo.ingest.dicom import TruncatedError

__all__ = ["Inflating"]

PIECE = 1 << 18  # bytes that are fed or inflated at once
FEW_MEMBERS, MEMBER = 64, 4096  # members that a file may have, and one more for each so many bytes that it announces


class Inflating:
    """What a gzip file holds, all of its members (RFC 1952), in the order in which it comes.

    Parameters
    ----------
    path : str
        For messages.
    file : binary file
        Of which at most `size` bytes are read.
    size : int
    """

    def __init__(self, path: str, file: Any, size: int) -> None:
        self._path, self._file, self._size = path, file, size
        self._fed = 0  # bytes of the file
        self._inflater: Any = zlib.decompressobj(wbits=31)
        self._begun = False  # the member has bytes
        self._members = 1
        self._rest = b""  # of the file, fed and not inflated
        self._head = b""
        self._limit = 1 << 62
        self.there = 0  # bytes that were inflated

    def read(self, size: int) -> bytes:
        """Inflate the first bytes, fewer where there are no more; once, before :meth:`between`."""
        while self.there < size and (piece := self._next(size - self.there)):
            self._head += piece
        return self._head

    def limit(self, most: int) -> None:
        """Set how many bytes there may be in all."""
        self._limit = most

    def between(self, begin: int, end: int) -> bytes:
        """Inflate as far as `end`, fewer where there are no more, and return what there is from `begin` on."""
        kept, start = [self._head[begin:end]], len(self._head)
        while self.there < end and (piece := self._next()):
            kept.append(piece[max(0, begin - start) : max(0, end - start)])
            start += len(piece)
        return b"".join(kept)

    def rest(self) -> int:
        """Inflate the rest, and let go of it; returns how many bytes there were in all.

        Raises
        ------
        TruncatedError
            The stream is not whole.
        DicomError
            It is damaged, or there is more than there may be.
        """
        while self._next():
            pass
        return self.there

    def _next(self, most: int = PIECE) -> bytes:
        """Inflate the next bytes; empty at the end."""
        while True:
            if not self._rest and not self._feed():
                if self._begun or self._fed == 0:
                    raise TruncatedError(f"{self._path}: ends at byte {self._size}, within its compressed stream", self._size + 1)
                return b""
            try:
                piece: bytes = self._inflater.decompress(self._rest, min(most, PIECE))
            except zlib.error as error:
                if not any(self._rest) and not self._more():
                    raise TruncatedError(f"{self._path}: ends at byte {self._size}, within its compressed stream", self._size + 1) from None
                raise DicomError(f"{self._path}: cannot be inflated ({error})") from None
            self._begun = True
            self._rest = self._inflater.unconsumed_tail
            self.there += len(piece)
            if self._inflater.eof:
                self._end_member()
            if self.there > self._limit:
                raise DicomError(f"{self._path}: holds more than its header announces, {self._limit} bytes")
            if piece:
                return piece

    def _end_member(self) -> None:
        self._rest, self._begun = self._inflater.unused_data, False
        self._inflater = zlib.decompressobj(wbits=31)
        self._members += 1
        if self._members > FEW_MEMBERS + self.there // MEMBER:
            raise DicomError(f"{self._path}: is made of {self._members} compressed streams that hold {self.there} bytes in all")

    def _feed(self) -> bool:
        self._rest = self._file.read(min(PIECE, self._size - self._fed)) or b""
        self._fed += len(self._rest)
        return bool(self._rest)

    def _more(self) -> bool:
        """Whether anything but zeros follows."""
        while self._feed():
            if any(self._rest):
                return True
        return False
