"""Blinding keys: which participant's session gets which condition, so that whoever runs the session does not know it.

A key is a table (participant, session, code). Without a secret a code is a random number and the SHA-256 of that number, the condition, the
participant and the session: it shows nothing by itself, and tells nothing of other rows, but whoever tries the few conditions finds the
one that fits. That protects from reading it by accident, not from wanting to know. With a secret, conditions are encrypted (AES-256 in
Galois/counter mode, NIST SP 800-38D): without the file with the secret nobody reads them or changes a row unnoticed; whoever can read
that file, and so the account that runs the sessions, can.
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

CONDITIONS = ("brain", "sham", "yoked", "random")  # that an operator can be blind to
NONCE_BYTES, SEALED_NONCE_BYTES = 16, 12
WIDTH = 16  # bytes to which conditions are filled up, so that all codes have one length


def scramble(condition: str, participant: str, session: str, secret: bytes = b"") -> str:
    """Write a condition as a code.

    Parameters
    ----------
    condition, participant, session : str
    secret : bytes
        32 bytes; without them anybody can find out the condition by trying all.

    Returns
    -------
    str
        Hexadecimal; of one length for all conditions, and another one each time.
    """
    if secret:
        nonce = secrets.token_bytes(SEALED_NONCE_BYTES)
        sealed: bytes = cipher_of(secret).encrypt(nonce, condition.encode().ljust(WIDTH), _row(participant, session))
        return "s" + (nonce + sealed).hex()
    nonce = secrets.token_bytes(NONCE_BYTES)
    return (nonce + _digest(nonce, condition, participant, session)).hex()


def condition_of(code: str, participant: str, session: str, secret: bytes = b"") -> str:
    """Give the condition of a code.

    Raises
    ------
    ValueError
        The code is damaged, of another row, or was written with a secret that is not this one.
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
    """Whether a code without a secret stands for a condition; also one of version 0.1, which anybody could read."""
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
    """What a sealed code is bound to."""
    return f"{participant}\t{session}".encode()


def make_secret(path: Path) -> bytes:
    """Read a file with a secret, or make one that only its owner can read.

    Raises
    ------
    ConfigError
        It can neither be read nor made.
    """
    cipher_of(b"\0" * SECRET_BYTES)  # see that there is one before anything is written
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
        It cannot be read, or lists a session twice.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [(row["participant"], row["session"], row["code"]) for row in csv.DictReader(file, delimiter="\t")]
    except (OSError, KeyError, ValueError, csv.Error) as problem:
        raise ConfigError(f"[evolution] blinding_key: {path}: expected a key of `python -m rtevo.evolve blind`: {problem}") from None
    twice = [who for who, n in Counter((participant, session) for participant, session, _ in rows).items() if n > 1]
    if twice:
        raise ConfigError(
            f"[evolution] blinding_key: {path}: expected one line a session, found {len(twice)} listed more than once, the first of them "
            f"participant {twice[0][0]!r}, session {twice[0][1]!r}"
        )
    return {(participant, session): code or "" for participant, session, code in rows}
