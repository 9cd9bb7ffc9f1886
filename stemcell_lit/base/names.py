"""From any text that a user gives, such as a class, a method or a generator, to a part of a path."""

from __future__ import annotations

import hashlib
import re
import unicodedata

# bytes, so that a suffix and what stands before it still fit into the 255 of a file system
LONGEST = 80
_PLAIN = re.compile(r"[a-z0-9_](?:[a-z0-9_.+-]*[a-z0-9_+-])?")
_MARKED = re.compile(
    r"-[0-9a-f]{12}$"
)  # what no plain text may end with, or it could equal another's name
_RESERVED = {"con", "prn", "aux", "nul"} | {f"{d}{i}" for d in ("com", "lpt") for i in range(10)}


def safe_name(text: str) -> str:
    """A name for a file or folder that stands for `text`, whatever it is, and for no other text.

    A text of lower-case letters, digits and `_ . + -` is its own name. Any other is made readable and marked with
    twelve hex digits of its SHA-256, so that `Dense`, `dense ` and `dense` are three names, also where the file
    system does not tell capitals apart.

    Returns:
        At most 80 bytes in UTF-8; no separators, no leading dot or dash, no trailing dot, no name that Windows
        keeps for itself.
    """
    text = str(text)
    if (
        _PLAIN.fullmatch(text)
        and len(text) <= LONGEST
        and not _MARKED.search(text)
        and text.split(".")[0] not in _RESERVED
    ):
        return text
    mark = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    known = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode("utf-8"))
    words = "".join(c if c.isalnum() or c in "_+" else "-" for c in known)
    words = re.sub("-{2,}", "-", words)
    short = words.encode("utf-8")[: LONGEST - 13].decode("utf-8", "ignore").strip("-")
    return f"{short or 'name'}-{mark}"
