"""The sealed records of a run: encrypted with the secret of the study's blinding key, and of equal length for every condition.

AES-256 in Galois/counter mode (NIST SP 800-38D). Accounts that can read the file with the secret, such as that of the sessions, can
open a run; others cannot read it, or change it unnoticed. ``[evolution] sealed`` seals a run; a record ``unsealed`` in its log, which holds
the secret, opens it.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rtevo.errors import ConfigError, DataError
from rtevo.outside import parse_json
from rtevo.record.fitting import record_of
from rtevo.record.kinds import FitnessRecord, Record, Sealed, Start, Unsealed

__all__ = [
    "SECRET_BYTES",
    "cipher_of",
    "is_sealed",
    "load_secret",
    "open_sealed",
    "opened",
    "opener_of",
    "seal",
    "sealed_told",
    "secret_of",
]

SECRET_BYTES, NONCE_BYTES, LENGTH_BYTES = 32, 12, 8
MAGIC = b"rtevo sealed\n"
TOLD_BYTES = 768  # padded length of the fitness after one score: of two images for sham, else of one
DIGITS = 39  # of an integer in the state of evolution


def cipher_of(secret: bytes) -> Any:
    """Return the cipher of a secret.

    Raises
    ------
    ConfigError
        The package for it is missing.
    """
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise ConfigError("a blinding key with a secret needs the package cryptography (pip install 'rtevo[blinding]')") from None
    return AESGCM(secret)


def load_secret(path: Path) -> bytes:
    """Read the secret of a key.

    Raises
    ------
    ConfigError
        The file cannot be read, or is not a secret.
    """
    try:
        secret = bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as problem:
        raise ConfigError(f"{path}: expected the secret of a blinding key, cannot read it: {problem}") from None
    if len(secret) != SECRET_BYTES:
        raise ConfigError(f"{path}: expected the secret of a blinding key, {SECRET_BYTES} bytes in hexadecimal, found {len(secret)}")
    return secret


def seal(data: bytes, secret: bytes, multiple: int) -> bytes:
    """Encrypt bytes, padded to a multiple of `multiple`.

    Parameters
    ----------
    data : bytes
    secret : bytes
        32 bytes.
    multiple : int
        The length reveals only the number of these units.
    """
    whole = len(data).to_bytes(LENGTH_BYTES, "little") + data
    nonce = secrets.token_bytes(NONCE_BYTES)
    filled = whole.ljust(math.ceil(len(whole) / multiple) * multiple, b"\0")
    encrypted: bytes = cipher_of(secret).encrypt(nonce, filled, None)
    return MAGIC + nonce + encrypted


def is_sealed(data: bytes) -> bool:
    """Return whether bytes are sealed."""
    return data.startswith(MAGIC)


def open_sealed(data: bytes, secret: bytes) -> bytes:
    """Return the content of sealed bytes.

    Raises
    ------
    DataError
        The bytes are damaged, or were sealed with another secret.
    """
    from cryptography.exceptions import InvalidTag

    nonce, encrypted = data[len(MAGIC) : len(MAGIC) + NONCE_BYTES], data[len(MAGIC) + NONCE_BYTES :]
    try:
        whole: bytes = cipher_of(secret).decrypt(nonce, encrypted, None)
    except (InvalidTag, ValueError):
        raise DataError("is sealed, and damaged or sealed with another secret") from None
    return whole[LENGTH_BYTES : LENGTH_BYTES + int.from_bytes(whole[:LENGTH_BYTES], "little")]


# --- the log --------------------------------------------------------------------------------------------------------------------------


def secret_of(settings: Mapping[str, Any]) -> bytes:
    """Return the secret of a sealed session; empty if it is not sealed.

    Parameters
    ----------
    settings : mapping of section to mapping
        The session's settings, from the log.

    Raises
    ------
    ConfigError
        The secret cannot be read.
    """
    return _secret_named(settings) if settings.get("evolution", {}).get("sealed") else b""


def _secret_named(settings: Mapping[str, Any]) -> bytes:
    """Read the secret that settings name."""
    return load_secret(Path(settings.get("evolution", {}).get("blinding_secret", "")))


def opener_of(records: Sequence[Record]) -> bytes:
    """Return the secret that opens a run: from its unsealing, or from its settings, whether or not it is sealed.

    Parameters
    ----------
    records : sequence of Record
        Of a whole log.

    Raises
    ------
    ConfigError
        The secret cannot be read.
    """
    if told := next((record.secret for record in reversed(records) if isinstance(record, Unsealed)), ""):
        return bytes.fromhex(told)
    return _secret_named(next((record.settings or {} for record in records if isinstance(record, Start)), {}))


def sealed_told(told: Sequence[Mapping[str, Any]], secret: bytes) -> dict[str, str]:
    """Return the fields of a record `sealed`: the fitness after one score."""
    return {"data": seal(json.dumps(list(told)).encode(), secret, TOLD_BYTES).hex()}


def opened(records: Sequence[Record]) -> list[Record]:
    """Return records with the sealed ones opened; unchanged without the secret.

    Parameters
    ----------
    records : sequence of Record
        Of a whole log.
    """
    if not any(isinstance(record, Sealed) for record in records):
        return list(records)
    try:
        return list(_opened(records, opener_of(records)))
    except ConfigError:
        return list(records)


def _opened(records: Sequence[Record], secret: bytes) -> Iterator[Record]:
    for record in records:
        if not isinstance(record, Sealed):
            yield record
            continue
        try:
            held = parse_json(open_sealed(bytes.fromhex(record.data), secret), digits=DIGITS)
        except (DataError, ValueError):
            yield record
            continue
        for fields in held:
            found = record_of({"type": FitnessRecord.TYPE, **fields})
            yield replace(found, seq=record.seq, clock_ns=record.clock_ns)
