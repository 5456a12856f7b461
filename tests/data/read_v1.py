#!/usr/bin/env python3
"""Prints every key of a store that the log holds, written from docs/format.md alone: proof that the page says enough.

    python3 tests/data/read_v1.py tests/data/v1/closed | diff - tests/data/v1/closed.txt

It reads a store that nobody has open, and writes nothing.
"""

import os
import struct
import sys
import zlib

MAGIC = b"\x891once\r\n"
ENDINGS = {1: "completed", 2: "failed", 3: "aborted", 4: "interrupted", 5: "held"}


def file_header(data, kind):
    magic, version, found, _, incompatible, store, crc = struct.unpack_from("<8sHHII16sI", data)
    assert magic == MAGIC and crc == zlib.crc32(data[:36]), "damaged file header"
    assert (version, incompatible) == (1, 0), "another version"
    assert found == kind, "another kind of file"
    return store


def manifest(path):
    data = open(path, "rb").read()
    store = file_header(data, 1)
    clean_end, durable = struct.unpack_from("<QQ", data, 48)
    counts = struct.unpack_from("<III", data, 188)
    end = 208 + 36 * counts[0] + 52 * counts[1] + 16 * counts[2]
    assert struct.unpack_from("<I", data, end) == (zlib.crc32(data[:end]),), "damaged manifest"
    assert not any(data[end + 4 :]), "bytes behind the manifest"
    segments = [struct.unpack_from("<QQQQI", data, 208 + 36 * n) for n in range(counts[0])]
    return store, clean_end, durable, segments


def header(data, at, lsn, salt, store):
    """The record header there, if its checksum holds."""
    place = struct.pack("<QQ", lsn, salt) + store
    if len(data) < at + 24:
        return None
    magic, kind, flags, length, watermark, body_crc, crc = struct.unpack_from("<2sBBIQII", data, at)
    if magic != b"O1" or crc != zlib.crc32(data[at : at + 20] + place):
        return None
    return kind, flags, length, watermark, body_crc, place


def records(directory):
    """Kind, flags, LSN and body of each record; stops at the first place where none stands."""
    store, clean_end, durable, segments = manifest(os.path.join(directory, "MANIFEST"))
    files, stopped_at = [], None
    for base, end, capacity, salt, ordinal in segments:
        path = os.path.join(directory, "log", "%010d.log" % ordinal)
        data = open(path, "rb").read()
        assert file_header(data, 2) == store, "another store's"
        assert struct.unpack_from("<QQQ", data, 40) == (base, capacity, salt)
        assert struct.unpack_from("<I", data, 124) == (zlib.crc32(data[:124]),)
        files.append((base, data[: end - base], salt))
    for base, data, salt in files:
        at = 128
        while stopped_at is None and at < len(data) and base + at != clean_end:
            found = header(data, at, base + at, salt, store)
            if found is None:
                stopped_at = base + at
                break
            kind, flags, length, watermark, body_crc, place = found
            body = data[at + 24 : at + 24 + length]
            padded = at + 24 + (length + 7) // 8 * 8
            whole = len(body) == length and body_crc == zlib.crc32(body + place)
            if not whole or any(data[at + 24 + length : padded]):
                stopped_at = base + at
                break
            yield kind, flags, base + at, body
            durable, at = max(durable, watermark), padded
            if kind == 7:
                break
        if base + at == clean_end:
            return
    assert not clean_end, "the log ends before its clean end"
    for base, data, salt in files:
        for at in range(128, len(data), 8):
            found = header(data, at, base + at, salt, store)
            durable = max(durable, found[3] if found else 0)
    assert stopped_at is None or durable <= stopped_at, "durable records are gone"


def fields(body, flags, lsn):
    mask, key_length, low, high = struct.unpack_from("<IHHI", body)
    assert mask & 0xF0F00000 == 0, "a field of a later version"
    time = low | high << 16
    at, out = 12, {"key kind": mask >> 24, "time": time, "attempt": 1, "expiry": 0, "wall": 0}
    out["token"], out["since"] = lsn, time
    lengths = (0, 0, 0, 0)
    for bit, name, form in [
        (0, "token", "<Q"), (1, "life", "<Q"), (2, "open fate", "<Q"), (3, "attempt", "<I"),
        (4, "since", "<Q"), (5, "expiry", "<Q"), (6, "wall", "<q"), (7, "fingerprint", "<16s"),
        (8, "lengths", "<HHHH"), (9, "format", "<HI"), (10, "memory", "<Q"),
        (12, "lease", "<Q"), (13, "lease length", "<Q"), (14, "reserve", "<Q"), (15, "retry at", "<Q"),
        (16, "length uncompressed", "<I"), (17, "by length", "<H"), (18, "steps length", "<H"),
        (19, "before lapse", "<Q"),
    ]:  # fmt: skip
        if mask >> bit & 1:
            value = struct.unpack_from(form, body, at)
            out[name] = value if len(value) > 1 else value[0]
            at += struct.calcsize(form)
    if flags & 0x10:
        out["token"] += lsn
    more = (out.get("by length", 0), out.get("steps length", 0))
    for name, length in zip(("key", "owner", "reason", "progress", "metadata", "by", "steps"),
                            (key_length, *out.get("lengths", lengths), *more)):  # fmt: skip
        out[name] = body[at : at + length]
        at += length
    out["result"] = body[at:]
    return out


NUMBERS = {2: ("<Q", 8), 3: ("<q", 8), 4: ("<QQ", 16)}


def show_number(tag, key):
    words = struct.unpack_from(NUMBERS[tag][0], key)
    return str(sum(word << 64 * at for at, word in enumerate(words)))


def show_key(kind, key):
    if kind == 7:
        return "%d/%s" % (struct.unpack_from("<Q", key)[0], show_key(key[8], key[9:]))
    if kind == 8:
        return 'namespace "%s" in %d' % (key[8:].decode(), struct.unpack_from("<Q", key)[0])
    if kind in (2, 4, 5):
        return show_number(max(kind - 1, 2), key)
    if kind == 1:
        try:
            return key.decode()
        except UnicodeDecodeError:
            return "0x" + key.hex()
    parts = []
    while key:
        if key[0] in NUMBERS:
            parts.append(show_number(key[0], key[1:]))
            key = key[1 + NUMBERS[key[0]][1] :]
            continue
        length, shift, at = 0, 0, 1
        while True:
            length |= (key[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if key[at - 1] < 0x80:
                break
        parts.append('"%s"' % key[at : at + length].decode())
        key = key[at + length :]
    return "(" + ", ".join(parts) + ")"


def main(directory):
    keys, spaces = {}, {}
    for kind, flags, lsn, body in records(directory):
        if kind not in (1, 2, 3, 4):
            continue
        said = fields(body, flags, lsn)
        if said["key kind"] == 6:
            continue  # a step is a part of its claim's key
        name = show_key(said["key kind"], said["key"])
        # Nobody has the store open, so a claim without an end is an interrupted attempt.
        state = ENDINGS[flags & 15] if kind == 3 else "interrupted"
        line = "%s: %s, attempt %d, token %d, " % (name, state, said["attempt"], said["token"])
        if state in ("completed", "failed"):
            expires = said["expiry"] and said["expiry"] + said["wall"]
            line += "at %d, expires %d, result %s" % (
                said["time"] + said["wall"], expires, said["result"].hex())  # fmt: skip
        else:
            line += 'since %d, owner "%s", hold %s' % (
                said["since"] + said["wall"], said["owner"].decode(),
                "true" if flags & 0x40 else "false")  # fmt: skip
        keys[(said["key kind"], said["key"])] = line
        if kind == 4:
            del keys[(said["key kind"], said["key"])]
        if said["key kind"] == 8:
            spaces[said["key"]] = said["token"] if kind == 3 else None
    # What lies in a namespace that was dropped is gone, however deep.
    left = None
    while left != len(keys):
        left = len(keys)
        ids = {0} | {spaces[name] for kind, name in keys if kind == 8}
        keys = {
            key: line for key, line in keys.items()
            if key[0] < 7 or struct.unpack_from("<Q", key[1])[0] in ids
        }  # fmt: skip
    print("\n".join(sorted(keys.values())))


if __name__ == "__main__":
    main(sys.argv[1])
