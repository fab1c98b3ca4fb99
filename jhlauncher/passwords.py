"""Passwords in the Hub's own database: hashed with Argon2id (RFC 9106), in a table beside JupyterHub's.

By the user's number, so that a password stays with its owner whatever they are called.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import VerificationError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_metadata = sa.MetaData()
_passwords = sa.Table(
    "jhlauncher_passwords",
    _metadata,
    sa.Column("user_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("hash", sa.String(255), nullable=False),
    sa.Column("set_at", sa.Float, nullable=False),
)
"""``hash`` is empty where there is no password yet, or it is kept elsewhere, such as a system account's. ``set_at`` is
in seconds since 1970, 0 before it was set with a link."""

_hasher = PasswordHasher()
_NOBODYS = _hasher.hash("nobody's password")


def make_table(db: Session) -> None:
    """Make the table, if there is none."""
    _metadata.create_all(db.connection())
    db.commit()


def hash_of(db: Session, user_id: int | None) -> str:
    """The hash of a user's password; of nobody's, if they have none, so that this can't be told from the time taken."""
    return db.scalar(sa.select(_passwords.c.hash).where(_passwords.c.user_id == user_id)) or _NOBODYS


def hashed(password: str) -> str:
    """The hash of a password. Takes long, as it shall."""
    return _hasher.hash(password)


def matches(hash: str, password: str) -> bool:
    """Whether the hash is of this password, and somebody's. Takes long."""
    try:
        return _hasher.verify(hash, password) and hash != _NOBODYS
    except VerificationError:
        return False


def set_at(db: Session, user_id: int) -> float | None:
    """When the password was last set with a link, in seconds since 1970; None: there is nothing of this user here."""
    return db.scalar(sa.select(_passwords.c.set_at).where(_passwords.c.user_id == user_id))


def keep(db: Session, user_id: int, hash: str, *, issued: float) -> None:
    """Keep a password.

    Args:
        db: the Hub's.
        user_id: whose.
        hash: its hash; "": it is kept elsewhere.
        issued: when the link was made that sets it: none that is older works any more. 0: no link did.

    """
    forget(db, user_id)
    when = max(time.time(), issued) if issued else 0.0
    db.execute(_passwords.insert().values(user_id=user_id, hash=hash, set_at=when))
    db.commit()


def forget(db: Session, user_id: int) -> None:
    """Remove what there is of a user."""
    db.execute(_passwords.delete().where(_passwords.c.user_id == user_id))
    db.commit()
