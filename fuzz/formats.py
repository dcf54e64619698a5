"""Mutations that know a format, so that a mutant gets past the first check: PNG, JPEG, TIFF, NIfTI, DICOM, zip."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from random import Random

from mutations import EDGE_FLOATS, EDGE_INTEGERS, mutate_bytes, mutate_within

# --- PNG: chunks with a right checksum


def mutate_png(rng: Random, data: bytes) -> bytes:
    """Edit chunks and put their checksums right; one in five is edited blindly."""
    chunks = _png_chunks(data)
    if len(chunks) < 2 or rng.random() < 0.2:
        return mutate_bytes(rng, data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not chunks:
            break
        k = rng.randrange(len(chunks))
        kind, body = chunks[k]
        what = rng.randrange(7)
        if what == 0:
            chunks[k] = (kind, _png_header(rng, body) if kind == b"IHDR" else mutate_bytes(rng, body))
        elif what == 1:
            chunks.insert(rng.randrange(len(chunks) + 1), (kind, body))
        elif what == 2:
            del chunks[k]
        elif what == 3:
            chunks.insert(1, _png_extra(rng))
        elif what == 4:
            chunks[0] = (chunks[0][0], _png_header(rng, chunks[0][1]))
        elif what == 5 and kind == b"IDAT":
            chunks[k] = (kind, _recompressed(rng, body))
        else:
            chunks[k] = (rng.choice((b"IDAT", b"PLTE", b"tRNS", b"fdAT", b"IEND", b"abcd", rng.randbytes(4))), body)
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(*chunk) for chunk in chunks)


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png_header(rng: Random, body: bytes) -> bytes:
    if len(body) < 13:
        return mutate_bytes(rng, body)
    width, height, *rest = struct.unpack(">IIBBBBB", body[:13])
    sizes = (0, 1, 31, 32, 33, 64, 9_000, 65_535, 100_000, 2**31 - 1, 2**31, 2**32 - 1, width, height)
    rest[rng.randrange(5)] = rng.choice((0, 1, 2, 3, 4, 6, 7, 8, 16, 255))
    return struct.pack(">IIBBBBB", rng.choice(sizes), rng.choice(sizes), *rest)


_BOMBS = tuple(zlib.compress(bytes(size)) for size in (100, 10**6, 4 * 10**6))


def _png_extra(rng: Random) -> tuple[bytes, bytes]:
    bomb = _BOMBS[rng.randrange(3)]
    return rng.choice((
        (b"iCCP", b"p\0\0" + bomb), (b"zTXt", b"k\0\0" + bomb), (b"iTXt", b"k\0\1\0\0\0" + bomb),
        (b"tEXt", b"k\0" + b"v" * 300_000), (b"eXIf", b"II*\0\x08\0\0\0" + rng.randbytes(30)),
        (b"acTL", struct.pack(">II", rng.choice((0, 1, 2, 2**31)), 0)), (b"gAMA", rng.randbytes(4)),
        (b"fcTL", struct.pack(">IIIIIHHBB", 0, 32, 32, 0, 0, 0, 0, 0, 0)), (b"pHYs", rng.randbytes(9)),
        (b"tRNS", rng.randbytes(rng.choice((0, 1, 2, 6, 256)))), (b"PLTE", rng.randbytes(rng.choice((0, 3, 4, 768)))),
        (b"cHRM", rng.randbytes(7)), (b"sRGB", b""),
    ))  # fmt: skip


def _recompressed(rng: Random, body: bytes) -> bytes:
    try:
        plain = zlib.decompress(body)
    except zlib.error:
        return mutate_bytes(rng, body)
    return zlib.compress(mutate_bytes(rng, plain), 1) if rng.random() < 0.9 else _BOMBS[2]


# --- JPEG: marker segments; also inside DICOM


def mutate_jpeg(rng: Random, data: bytes) -> bytes:
    """Edit one of the segments before the scan, or the scan."""
    segments = _jpeg_segments(data)
    if not segments or rng.random() < 0.2:
        return mutate_bytes(rng, data)
    first, last = rng.choice(segments)
    what = rng.randrange(6)
    if what == 0:
        return data[:first] + data[last:]
    if what == 1:
        return data[:last] + data[first:last] + data[last:]
    if what == 2:
        return mutate_within(rng, data, first + 4, last)
    if what == 3:
        marker = bytes((0xFF, rng.choice((*range(0xC0, 0xD0), *range(0xD8, 0xE3), 0xEE, 0xF7, 0xF8, 0xFE))))
        return data[:first] + marker + data[first + 2 :]
    if what == 4:
        return mutate_within(rng, data, segments[-1][1], len(data))
    length = struct.pack(">H", rng.choice((0, 1, 2, 3, 7, 0xFFFF, max(last - first - 3, 0))))
    return data[: first + 2] + length + data[first + 4 :]


def _jpeg_segments(data: bytes) -> list[tuple[int, int]]:
    found, at = [], 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        last = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((at, min(last, len(data))))
        if data[at + 1] == 0xDA:
            break
        at = last
    return found


# --- TIFF: entries of the directory

_TIFF_TAGS = (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 282, 284, 317, 320, 322, 323, 324, 325, 338,
              339, 347, 530, 532, 700, 33550, 34665, 34853)  # fmt: skip


def mutate_tiff(rng: Random, data: bytes) -> bytes:
    """Edit an entry of the first directory: tag, type, count or value; or the link to the next directory."""
    if len(data) < 16 or rng.random() < 0.25:
        return mutate_bytes(rng, data)
    order = "<" if data[:2] == b"II" else ">"
    at = struct.unpack(order + "I", data[4:8])[0]
    if at + 2 > len(data):
        return mutate_bytes(rng, data)
    count = struct.unpack(order + "H", data[at : at + 2])[0]
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        entry = at + 2 + 12 * rng.randrange(max(count, 1))
        if entry + 12 > len(data):
            break
        what = rng.randrange(5)
        if what == 0:
            struct.pack_into(order + "H", changed, entry, rng.choice(_TIFF_TAGS))
        elif what == 1:
            struct.pack_into(
                order + "H", changed, entry + 2, rng.choice((0, 1, 2, 3, 4, 5, 7, 10, 11, 12, 13, 16, 999))
            )
        elif what == 2:
            struct.pack_into(order + "I", changed, entry + 4, rng.choice(EDGE_INTEGERS) & 0xFFFFFFFF)
        elif what == 3:
            value = rng.choice((*EDGE_INTEGERS, at, 8, 16, 32, 5, 6, 7, 32773, 34712, 50000, 8_000)) & 0xFFFFFFFF
            struct.pack_into(order + "I", changed, entry + 8, value)
        elif at + 2 + 12 * count + 4 <= len(data):
            struct.pack_into(order + "I", changed, at + 2 + 12 * count, rng.choice((at, 8, 1, 0xFFFFFFFF)))
    return bytes(changed)


# --- NIfTI: fields of the header

_NIFTI_1 = {
    "sizeof_hdr": (0, "i"), "dim": (40, "8h"), "intent_code": (68, "h"), "datatype": (70, "h"), "bitpix": (72, "h"),
    "pixdim": (76, "8f"), "vox_offset": (108, "f"), "scl_slope": (112, "f"), "scl_inter": (116, "f"),
    "xyzt_units": (123, "B"), "qform_code": (252, "h"), "sform_code": (254, "h"), "quatern": (256, "6f"),
    "srow": (280, "12f"), "magic": (344, "4B"), "extension": (348, "4B"),
}  # fmt: skip
_NIFTI_2 = {
    "datatype": (12, "h"), "bitpix": (14, "h"), "dim": (16, "8q"), "pixdim": (104, "8d"), "vox_offset": (168, "q"),
    "scl_slope": (176, "d"), "scl_inter": (184, "d"), "qform_code": (344, "i"), "sform_code": (348, "i"),
    "quatern": (352, "6d"), "srow": (400, "12d"), "xyzt_units": (500, "i"), "extension": (540, "4B"),
}  # fmt: skip
_NIFTI_TYPES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304)


def mutate_nifti(rng: Random, data: bytes) -> bytes:
    """Edit one to three header fields; a gzip is unpacked for it and packed again."""
    if data[:2] == b"\x1f\x8b":
        if rng.random() < 0.2:
            return mutate_bytes(rng, data)
        packed = gzip.compress(mutate_nifti(rng, gzip.decompress(data)), 1, mtime=0)
        return packed if rng.random() < 0.9 else mutate_bytes(rng, packed + packed, 1)
    if rng.random() < 0.15 or len(data) < 560:
        return mutate_bytes(rng, data)
    fields = _NIFTI_1 if data[344:347] == b"n+1" else _NIFTI_2
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(tuple(fields))
        _edit_field(rng, changed, name, *fields[name])
    return bytes(changed)


def _edit_field(rng: Random, changed: bytearray, name: str, offset: int, form: str) -> None:
    kind, count = form[-1], int(form[:-1] or 1)
    at = offset + struct.calcsize(kind) * rng.randrange(count)
    if kind in "fd":
        value = rng.choice(EDGE_FLOATS)
        struct.pack_into("<" + kind, changed, at, min(max(value, -3e38), 3e38) if kind == "f" else value)
        if kind == "f" and value != value:
            struct.pack_into("<f", changed, at, value)
        return
    choices = _NIFTI_TYPES if name == "datatype" else (*EDGE_INTEGERS, 5, 8, 10, 16, 32, 64)
    size = struct.calcsize(kind)
    changed[at : at + size] = (rng.choice(choices) & ((1 << 8 * size) - 1)).to_bytes(size, "little")


# --- DICOM: elements of an explicit little endian data set

_LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV")
_VRS = (*_LONG_VRS, b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH",
        b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US", b"XX", b"\0\0")  # fmt: skip
_EDGE_VALUES = (
    b"", b" ", b"0 ", b"-1", b"1e400 ", b"NaN ", b"nan ", b"inf ", b"1\\2 ", b"\\\\", b"a" * 64, b"1" * 70, b"\0" * 4,
    b"\xff" * 4, b"\x00\x01", b"\xff\xff", b"\x00\x80", b"ISO 2022 IR 87", b"ISO_IR 192", b"bad charset", b"CT",
    b"DX", b"MONOCHROME1 ", b"PALETTE COLOR ", b"RGB ", b"YBR_FULL_422", b"1.2.840.10008.1.2.4.50", b"1e-320",
    b"1.2.840.10008.1.2.5", b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.2 ", b"1.2.840.10008.1.2.1.99",
    b"\xc3(", b"1\\0\\0\\0\\1\\0", b"1e200\\1e200\\1e200", b"0\\0\\0 ", b"-5\\-5", b"1e-9\\1e-9 ",
)  # fmt: skip
_EXTRA_TAGS = (
    0x00080005, 0x00080016, 0x00080060, 0x00200037, 0x00200032, 0x00280002, 0x00280004, 0x00280006, 0x00280008,
    0x00280010, 0x00280011, 0x00280030, 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280120, 0x00280121,
    0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00281056, 0x00281101, 0x00281201, 0x00283000, 0x00283002,
    0x00283010, 0x20500020, 0x52009229, 0x52009230, 0x7FE00008, 0x7FE00010, 0x7FE00001, 0x00020010, 0xFFFEE000,
    0xFFFEE0DD, 0x00091001, 0x04000561,
)  # fmt: skip
Element = tuple[bytes, bytes, bytes]  # tag, VR, value


def mutate_dicom(rng: Random, data: bytes) -> bytes:
    """Edit elements: tag, VR, length, value, order; the pixel data as the stream that it is; or bytes anywhere."""
    elements = dicom_elements(data)
    if len(elements) < 4 or rng.random() < 0.15:
        return mutate_bytes(rng, data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        k = rng.randrange(len(elements))
        if rng.random() < 0.3:
            k = len(elements) - 1
        elements[k : k + 1] = _edited(rng, *elements[k])
        if not elements:
            break
    if rng.random() < 0.1:
        rng.shuffle(elements)
    return data[:132] + b"".join(_element_bytes(rng, *element) for element in elements)


def dicom_elements(data: bytes) -> list[Element]:
    """Top-level elements of an explicit little endian file, or none for a file of another kind."""
    found: list[Element] = []
    at = 132
    while at + 8 <= len(data):
        tag, vr = data[at : at + 4], data[at + 4 : at + 6]
        if not vr.isalpha() or not vr.isupper():
            return []
        head = 12 if vr in _LONG_VRS else 8
        length = int.from_bytes(data[at + 8 : at + 12] if head == 12 else data[at + 6 : at + 8], "little")
        last = len(data) if length == 0xFFFFFFFF else at + head + length
        found.append((tag, vr, data[at + head : last]))
        at = last
    return found


def _edited(rng: Random, tag: bytes, vr: bytes, value: bytes) -> list[Element]:
    what = rng.randrange(9)
    if tag == b"\xe0\x7f\x10\x00" and rng.random() < 0.8:
        return [(tag, vr, _edited_pixels(rng, value))]
    if what == 0:
        return []
    if what == 1:
        return [(tag, vr, value)] * 2
    if what == 2:
        return [(tag, rng.choice(_VRS), value)]
    if what == 3:
        return [(_tag_bytes(rng.choice(_EXTRA_TAGS)), vr, value)]
    if what == 4:
        return [(tag, vr, value), (_tag_bytes(rng.choice(_EXTRA_TAGS)), rng.choice(_VRS), rng.choice(_EDGE_VALUES))]
    if what == 5:
        return [(tag, vr, value), _sequence(rng)]
    if what == 6:
        return [(tag, vr, mutate_bytes(rng, value))]
    if what == 7 and vr in (b"US", b"SS", b"UL", b"SL", b"OW"):
        return [(tag, vr, (rng.choice(EDGE_INTEGERS) & 0xFFFF).to_bytes(2, "little") * max(len(value) // 2, 1))]
    return [(tag, vr, rng.choice(_EDGE_VALUES))]


def _edited_pixels(rng: Random, value: bytes) -> bytes:
    """Native pixels: bytes. Encapsulated ones: the items, or the stream in the second item."""
    if value[:4] != b"\xfe\xff\x00\xe0" or rng.random() < 0.15:
        return mutate_bytes(rng, value)
    first = 8 + int.from_bytes(value[4:8], "little")
    at = first + 8
    length = int.from_bytes(value[first + 4 : first + 8], "little")
    stream = value[at : at + length]
    stream = mutate_jpeg(rng, stream) if stream[:2] == b"\xff\xd8" and rng.random() < 0.8 else mutate_bytes(rng, stream)
    stated = len(stream) + len(stream) % 2 if rng.random() < 0.9 else rng.choice(EDGE_INTEGERS) & 0xFFFFFFFF
    stream += b"\0" * (len(stream) % 2)
    return value[: first + 4] + stated.to_bytes(4, "little") + stream + value[at + length :]


def _sequence(rng: Random) -> Element:
    """Sequences inside each other, with lengths or with delimiters."""
    tag = _tag_bytes(rng.choice((0x00081115, 0x00283010, 0x00283000, 0x52009229, 0x52009230, 0x00289145, 0x0040A730)))
    depth = rng.choice((1, 2, 20, 300, 2_000))
    body = b"\x28\x00\x10\x00US\x02\x00\x20\x00"
    if rng.random() < 0.6:
        start = tag + b"SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
        end = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
        inner = start * (depth - 1) + body + (end * (depth - 1) if rng.random() < 0.7 else b"")
    else:
        inner = body
        for _ in range(min(depth, 300) - 1):
            item = b"\xfe\xff\x00\xe0" + len(inner).to_bytes(4, "little") + inner
            inner = tag + b"SQ\0\0" + len(item).to_bytes(4, "little") + item
    return tag, b"SQ", b"\xfe\xff\x00\xe0" + len(inner).to_bytes(4, "little") + inner


def _tag_bytes(tag: int) -> bytes:
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF)


def _element_bytes(rng: Random, tag: bytes, vr: bytes, value: bytes) -> bytes:
    length = len(value)
    if tag == b"\xe0\x7f\x10\x00" and value[:4] == b"\xfe\xff\x00\xe0":
        length = 0xFFFFFFFF
    if rng.random() < 0.01:
        length = rng.choice(EDGE_INTEGERS)
    if vr in _LONG_VRS:
        return tag + vr + b"\0\0" + (length & 0xFFFFFFFF).to_bytes(4, "little") + value
    return tag + vr + (length & 0xFFFF).to_bytes(2, "little") + value


# --- zip

_NAMES = (
    "../x", "/etc/x", "C:\\x", "a/../../x", "", ".", "..", "/", "a/", ".hidden", "__MACOSX/._x", "x" * 300, "a\0b.dcm",
    "\u202egnp.exe", "CON", "a\nb", "inner.zip", "\\\\host\\share", "a" * 60_000, "DICOMDIR", "é.dcm",
)  # fmt: skip


def mutate_zip(rng: Random, data: bytes, inner) -> bytes:
    """Edit members and their names, then, half of the time, bytes of the table of contents.

    Args:
        rng: where choices come from.
        data: a zip.
        inner: mutates the bytes of a member.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError, RuntimeError):
        return mutate_bytes(rng, data)
    for _ in range(rng.choice((0, 1, 1, 2))):
        if members:
            k = rng.randrange(len(members))
            name, body = members[k]
            members[k : k + 1] = rng.choice((
                [(name, inner(rng, body))], [(rng.choice(_NAMES), body)], [], [(name, body)] * 2, [(name, b"")],
                [(name, body), (rng.choice(_NAMES), rng.randbytes(40))], [(name, bytes(300_000))],
            ))  # fmt: skip
    packed = io.BytesIO()
    method = rng.choice((0, 0, 0, 8, 8, 8, 8, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, body in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            info.external_attr = rng.choice((0, 0o644 << 16, 0o120777 << 16, 0o40755 << 16, 0xFFFFFFFF))
            archive.writestr(info, body)
    whole = packed.getvalue()
    if rng.random() < 0.5:
        return whole
    table = max(whole.rfind(b"PK\x01\x02"), 0)
    return mutate_within(rng, whole, table if rng.random() < 0.7 else 0, len(whole))
