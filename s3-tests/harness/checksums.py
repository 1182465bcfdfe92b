"""The checksums of S3 in their base64 form. The table-driven ones are for small bodies."""

import base64
import hashlib
import zlib


def _table(polynomial):
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (polynomial if value & 1 else 0)
        table.append(value)
    return table


_CRC32C = _table(0x82F63B78)
_CRC64NVME = _table(0x9A6C9329AC4BC9B5)


def _crc(data, table, ones):
    crc = ones
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ ones


def digest(algorithm, data):
    match algorithm:
        case "CRC32":
            return zlib.crc32(data).to_bytes(4, "big")
        case "CRC32C":
            return _crc(data, _CRC32C, 0xFFFFFFFF).to_bytes(4, "big")
        case "CRC64NVME":
            return _crc(data, _CRC64NVME, 0xFFFFFFFFFFFFFFFF).to_bytes(8, "big")
        case "SHA1":
            return hashlib.sha1(data).digest()
        case "SHA256":
            return hashlib.sha256(data).digest()
    raise ValueError(algorithm)


def checksum(algorithm, data):
    return base64.b64encode(digest(algorithm, data)).decode()


def composite(algorithm, parts):
    """The checksum of the parts' checksums, with their number."""
    joined = b"".join(digest(algorithm, part) for part in parts)
    return f"{checksum(algorithm, joined)}-{len(parts)}"


def md5(data):
    return base64.b64encode(hashlib.md5(data).digest()).decode()


ALGORITHMS = ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"]


def header(algorithm):
    return f"x-amz-checksum-{algorithm.lower()}"


assert checksum("CRC32C", b"123456789") == "4waSgw=="
assert checksum("CRC64NVME", b"123456789") == "rosUhgp5mIg="
