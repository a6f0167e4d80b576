"""Blinding keys: the condition of each participant's session, hidden from the operator.

A key is a table (participant, session, code). Without a secret, a code is a random number and the SHA-256 of this number, the condition,
the participant and the session. It reveals nothing by itself, nor about other rows; but trying the few conditions finds the right one.
This protects against accidental reading, not against intent. With a secret, conditions are encrypted (AES-256 in Galois/counter mode, NIST
SP 800-38D): only accounts that can read the file with the secret, such as the one that runs the sessions, can read them, or change a row
unnoticed.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import secrets
from collections import Counter
from pathlib import Path

from rtevo.errors import ConfigError
from rtevo.record import SECRET_BYTES, cipher_of, load_secret

__all__ = ["CONDITIONS", "condition_of", "load_secret", "make_secret", "read_key", "scramble"]

CONDITIONS = ("brain", "sham", "yoked", "random")  # conditions to which an operator can be blind
NONCE_BYTES, SEALED_NONCE_BYTES = 16, 12
WIDTH = 16  # bytes to which conditions are padded, so that all codes have one length


def scramble(condition: str, participant: str, session: str, secret: bytes = b"") -> str:
    """Write a condition as a code.

    Parameters
    ----------
    condition, participant, session : str
    secret : bytes
        32 bytes; without a secret anybody can find the condition by trying all.

    Returns
    -------
    str
        Hexadecimal; of one length for all conditions, and different each time.
    """
    if secret:
        nonce = secrets.token_bytes(SEALED_NONCE_BYTES)
        sealed: bytes = cipher_of(secret).encrypt(nonce, condition.encode().ljust(WIDTH), _row(participant, session))
        return "s" + (nonce + sealed).hex()
    nonce = secrets.token_bytes(NONCE_BYTES)
    return (nonce + _digest(nonce, condition, participant, session)).hex()


def condition_of(code: str, participant: str, session: str, secret: bytes = b"") -> str:
    """Return the condition of a code.

    Raises
    ------
    ValueError
        The code is damaged, of another row, or was written with another secret.
    """
    if code.startswith("s"):
        if not secret:
            raise ValueError("was written with a secret: name its file as [evolution] blinding_secret")
        from cryptography.exceptions import InvalidTag

        data = bytes.fromhex(code[1:])
        try:
            plain: bytes = cipher_of(secret).decrypt(data[:SEALED_NONCE_BYTES], data[SEALED_NONCE_BYTES:], _row(participant, session))
        except (InvalidTag, ValueError):
            raise ValueError("is damaged, or was written with another secret") from None
        return plain.decode().strip()
    for condition in CONDITIONS:
        if _fits(code, condition, participant, session):
            return condition
    raise ValueError("is damaged")


def _fits(code: str, condition: str, participant: str, session: str) -> bool:
    """Return whether a code without a secret stands for a condition; also a code of version 0.1, which is readable."""
    if code == base64.b32encode(f"{condition}:{participant}:{session}".encode()[::-1]).decode().rstrip("="):
        return True
    try:
        data = bytes.fromhex(code)
    except ValueError:
        return False
    return secrets.compare_digest(data[NONCE_BYTES:], _digest(data[:NONCE_BYTES], condition, participant, session))


def _digest(nonce: bytes, *row: str) -> bytes:
    return hashlib.sha256(nonce + "\t".join(row).encode()).digest()


def _row(participant: str, session: str) -> bytes:
    """Return the data to which a sealed code is bound."""
    return f"{participant}\t{session}".encode()


def make_secret(path: Path) -> bytes:
    """Read a file with a secret, or make one that only the owner can read.

    Raises
    ------
    ConfigError
        The file can be neither read nor made.
    """
    cipher_of(b"\0" * SECRET_BYTES)  # check that encryption works before anything is written
    if path.exists():
        return load_secret(path)
    secret = secrets.token_bytes(SECRET_BYTES)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(secret.hex() + "\n")
    except OSError as problem:
        raise ConfigError(f"--secret {path}: cannot be made: {problem.strerror}") from None
    return secret


def read_key(path: Path) -> dict[tuple[str, str], str]:
    """Read a key: the code of each participant and session.

    Raises
    ------
    ConfigError
        The key cannot be read, or lists a session twice.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [(row["participant"], row["session"], row["code"]) for row in csv.DictReader(file, delimiter="\t")]
    except (OSError, KeyError, ValueError, csv.Error) as problem:
        raise ConfigError(f"[evolution] blinding_key: {path}: expected a key of `python -m rtevo.evolve blind`: {problem}") from None
    twice = [who for who, n in Counter((participant, session) for participant, session, _ in rows).items() if n > 1]
    if twice:
        raise ConfigError(
            f"[evolution] blinding_key: {path}: expected one line for each session, found {len(twice)} listed more than once, first "
            f"participant {twice[0][0]!r}, session {twice[0][1]!r}"
        )
    return {(participant, session): code or "" for participant, session, code in rows}
