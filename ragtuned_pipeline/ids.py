"""Content-hash ids: the same content gets the same id on every machine and in every run."""

from __future__ import annotations

import hashlib


def content_id(prefix: str, *parts: str) -> str:
    """Return ``<prefix>-<20 hex digits>``, a hash of `parts` in order.

    Parts are length-prefixed before hashing, so that ("ab", "c") and ("a", "bc") differ.
    80 bits: with a million ids the chance of any collision is below 1e-12.
    """
    digest = hashlib.blake2b(digest_size=10)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return f"{prefix}-{digest.hexdigest()}"


def seeded_int(seed: int, *parts: str) -> int:
    """Return a 64-bit number that depends on `seed` and `parts` only.

    Used instead of a shared random generator wherever one item's draw must not depend on how many
    items came before it, so that adding a document leaves the others' draws alone.
    """
    digest = hashlib.blake2b(digest_size=8, key=seed.to_bytes(16, "little", signed=True))
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return int.from_bytes(digest.digest(), "little")
