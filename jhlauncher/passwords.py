"""Passwords in the Hub's own database: hashed with Argon2id (RFC 9106), in a table beside JupyterHub's.

By the user's number, so that a password stays with its owner whatever they are called, and by when the user was made,
since a database may give a number again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

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
    sa.Column("created", sa.String(64), primary_key=True),
    sa.Column("account", sa.String(255), nullable=False),
    sa.Column("hash", sa.String(255), nullable=False),
    sa.Column("set_at", sa.Float, nullable=False),
)
"""``account`` is the system account that was made for the user, if any. ``hash`` is empty where there is no password or
it is kept elsewhere. ``set_at`` is in seconds since 1970, 0 before it was set with a link."""


class Owner(NamedTuple):
    """Whose password it is."""

    user_id: int
    created: str
    """When the Hub made the user."""


_hasher = PasswordHasher()
_NOBODYS = _hasher.hash("nobody's password")


def make_table(db: Session) -> None:
    """Make the table, if there is none."""
    _metadata.create_all(db.connection())
    db.commit()


def hash_of(db: Session, owner: Owner | None) -> str:
    """The hash of a user's password; of nobody's, if they have none, so that this can't be told from the time taken."""
    return (owner and db.scalar(sa.select(_passwords.c.hash).where(_is(owner)))) or _NOBODYS


def hashed(password: str) -> str:
    """The hash of a password. Takes long, as it shall."""
    return _hasher.hash(password)


def matches(hash: str, password: str) -> bool:
    """Whether the hash is of this password, and somebody's. Takes long."""
    try:
        return _hasher.verify(hash, password) and hash != _NOBODYS
    except VerificationError:
        return False


def set_at(db: Session, owner: Owner) -> float:
    """When the password was last set with a link, in seconds since 1970; 0: never."""
    return db.scalar(sa.select(_passwords.c.set_at).where(_is(owner))) or 0


def account_of(db: Session, owner: Owner) -> str:
    """The system account that was made for a user; empty: none was."""
    return db.scalar(sa.select(_passwords.c.account).where(_is(owner))) or ""


def keep(db: Session, owner: Owner, hash: str = "", *, issued: float = 0, account: str = "") -> None:
    """Keep a password, or that a system account was made.

    Args:
        db: the Hub's.
        owner: whose.
        hash: its hash; "": there is none, or it is kept elsewhere.
        issued: when the link was made that sets it: none that is older works any more. 0: no link did.
        account: the system account that was made for them.

    """
    forget(db, owner)
    when = max(time.time(), issued) if issued else 0.0
    row = {**owner._asdict(), "account": account, "hash": hash, "set_at": when}
    db.execute(_passwords.insert().values(row))
    db.commit()


def forget(db: Session, owner: Owner) -> None:
    """Remove what there is of a user, and of others who had their number before."""
    db.execute(_passwords.delete().where(_passwords.c.user_id == owner.user_id))
    db.commit()


def _is(owner: Owner) -> sa.ColumnElement[bool]:
    return (_passwords.c.user_id == owner.user_id) & (_passwords.c.created == owner.created)
