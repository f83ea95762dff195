"""ClickHouse's compressed frames and the HTTP content encodings.

A frame is CityHash128 of what follows it | method | u32 size of header and data | u32 raw size |
data, little endian; the checksum is verified before anything is decompressed.
"""

import bz2
import gzip
import lzma
import struct
import zlib

import lz4.block
import lz4.frame
import zstandard
from clickhouse_cityhash.cityhash import CityHash128

from .engine import EngineError

CHECKSUM_BYTES = 16
HEADER_BYTES = 9
METHOD_NONE, METHOD_LZ4, METHOD_ZSTD = 0x02, 0x82, 0x90
FRAME_RAW_BYTES = 1024 * 1024
# The server's own limit for one frame.
FRAME_BYTES_MAX = 0x40000000


def checksum(data):
    """The sixteen bytes that precede a frame whose header and data are `data`."""
    hashed = CityHash128(data).to_bytes(16, "little")
    # ClickHouse writes the halves the other way round, each little endian.
    return hashed[8:] + hashed[:8]


def decode(body):
    """The raw bytes of a body made of frames."""
    out = []
    at = 0
    body = memoryview(body)
    while at < len(body):
        if len(body) - at < CHECKSUM_BYTES + HEADER_BYTES:
            raise truncated(len(body) - at, CHECKSUM_BYTES + HEADER_BYTES)
        method, size, raw_size = struct.unpack_from("<BII", body, at + CHECKSUM_BYTES)
        if method not in (METHOD_NONE, METHOD_LZ4, METHOD_ZSTD):
            raise EngineError.named(
                "UNKNOWN_COMPRESSION_METHOD",
                f"Unknown codec family code: {method}: the compressed body is damaged or is not "
                "compressed with LZ4, ZSTD or NONE",
            )
        if size < HEADER_BYTES or size > FRAME_BYTES_MAX or raw_size > FRAME_BYTES_MAX:
            raise EngineError.named(
                "TOO_LARGE_SIZE_COMPRESSED",
                f"Too large size_compressed_without_checksum: {size}. Most likely corrupted data.",
            )
        if len(body) - at - CHECKSUM_BYTES < size:
            raise truncated(len(body) - at - CHECKSUM_BYTES, size)
        framed = bytes(body[at + CHECKSUM_BYTES : at + CHECKSUM_BYTES + size])
        expected = bytes(body[at : at + CHECKSUM_BYTES])
        actual = checksum(framed)
        if actual != expected:
            raise EngineError.named(
                "CHECKSUM_DOESNT_MATCH",
                f"Checksum doesn't match: corrupted data. Reference: {expected.hex()}. "
                f"Actual: {actual.hex()}. Size of compressed block: {size}",
            )
        out.append(decompress_frame(method, framed[HEADER_BYTES:], raw_size))
        at += CHECKSUM_BYTES + size
    return b"".join(out)


def decompress_frame(method, data, raw_size):
    try:
        if method == METHOD_NONE:
            raw = data
        elif method == METHOD_LZ4:
            raw = lz4.block.decompress(data, uncompressed_size=raw_size)
        else:
            raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=raw_size)
    except (lz4.block.LZ4BlockError, zstandard.ZstdError, ValueError, MemoryError) as error:
        raise EngineError.named("CANNOT_DECOMPRESS", f"Cannot decompress: {error}") from None
    if len(raw) != raw_size:
        raise EngineError.named(
            "CANNOT_DECOMPRESS", f"Cannot decompress: {len(raw)} bytes instead of {raw_size}"
        )
    return raw


def truncated(read, expected):
    return EngineError.named(
        "CANNOT_READ_ALL_DATA",
        f"Cannot read all data. Bytes read: {read}. Bytes expected: {expected}.",
    )


def encode(raw, method=METHOD_LZ4):
    """`raw` as frames of at most a MiB each."""
    out = []
    for at in range(0, len(raw), FRAME_RAW_BYTES):
        part = raw[at : at + FRAME_RAW_BYTES]
        if method == METHOD_LZ4:
            data = lz4.block.compress(part, store_size=False)
        elif method == METHOD_ZSTD:
            data = zstandard.ZstdCompressor(level=1).compress(part)
        else:
            data = part
        framed = struct.pack("<BII", method, len(data) + HEADER_BYTES, len(part)) + data
        out += [checksum(framed), framed]
    return b"".join(out)


def decode_content(encoding, body):
    """A request body whose Content-Encoding is `encoding`; `body` must be complete."""
    try:
        if encoding in ("", "identity"):
            return body
        if encoding in ("gzip", "x-gzip"):
            return gzip.decompress(body)
        if encoding == "deflate":
            return zlib.decompress(body)
        if encoding == "zstd":
            return inflate_zstd(body)
        if encoding == "lz4":
            return lz4.frame.decompress(body)
        if encoding == "xz":
            return lzma.decompress(body)
        if encoding == "bz2":
            return bz2.decompress(body)
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        raise EngineError.named("CANNOT_DECOMPRESS", f"{encoding}: {error}") from None
    except (zlib.error, zstandard.ZstdError, lzma.LZMAError) as error:
        raise EngineError.named("CANNOT_DECOMPRESS", f"{encoding}: {error}") from None
    raise EngineError.named("NOT_IMPLEMENTED", f"Unknown compression method: {encoding}")


def inflate_zstd(body):
    out = []
    while body:
        inflator = zstandard.ZstdDecompressor().decompressobj()
        out.append(inflator.decompress(body))
        if not inflator.eof:
            raise EOFError("the stream ends in the middle of a frame")
        body = inflator.unused_data
    return b"".join(out)


def encode_content(encoding, raw):
    if encoding == "gzip":
        return gzip.compress(raw, compresslevel=3)
    if encoding == "deflate":
        return zlib.compress(raw, 3)
    if encoding == "zstd":
        return zstandard.ZstdCompressor(level=1).compress(raw)
    if encoding == "lz4":
        return lz4.frame.compress(raw)
    return raw


def choose_encoding(accepted):
    """The first encoding of an Accept-Encoding header that can be given, else None."""
    names = [part.split(";")[0].strip().lower() for part in accepted.split(",")]
    return next((name for name in names if name in ("gzip", "deflate", "zstd", "lz4")), None)
