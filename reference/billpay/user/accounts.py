"""Accounts and their roles in the database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import Select, select
from sqlalchemy.exc import IntegrityError

from microkit.db import Transaction
from microkit.errors import Conflict, NotFound
from reference.billpay.contracts.user import EmailTaken, RolesAssigned, UserRegistered
from reference.billpay.user import domain
from reference.billpay.user.tables import AccountRow, RoleRow


async def add(
    tx: Transaction,
    email: str,
    name: str,
    password_hash: str,
    roles: Sequence[str],
    now: datetime,
    registration: bytes | None = None,
) -> AccountRow:
    """A new account. ``registration`` is at ``domain.registration``.

    Raises:
        EmailTaken: there is one with this e-mail address.
    """
    account = AccountRow(
        id=uuid4(),
        email=email,
        email_key=domain.email_key(email),
        name=name,
        password_hash=password_hash,
        created_at=now,
        registration=registration,
        held=[RoleRow(role=role) for role in roles],
    )
    tx.add(account)
    try:
        await tx.flush()
    except IntegrityError:
        raise EmailTaken from None
    tx.publish(UserRegistered(user_id=account.id, email=account.email, name=account.name))
    return account


async def find_by_email(tx: Transaction, email: str) -> AccountRow | None:
    return await tx.find(AccountRow, AccountRow.email_key == domain.email_key(email))


async def find_by_registration(tx: Transaction, registration: bytes, email: str, now: datetime) -> AccountRow | None:
    """The account that this very request has made, lately."""
    account = await find_by_email(tx, email)
    lately = account is not None and account.created_at > now - domain.REMEMBERED
    return account if account is not None and lately and account.registration == registration else None


def everyone() -> Select[AccountRow]:
    """All accounts."""
    return select(AccountRow)


async def assign_roles(tx: Transaction, account_id: UUID, roles: Sequence[str], by: str) -> AccountRow:
    """Replaces the roles of an account.

    Raises:
        NotFound: there is no such account.
        Conflict: nobody would be left to assign roles.
    """
    # All who change roles queue up here, so that the last two administrators cannot dismiss each other at once.
    admins = await tx.scalars(
        select(RoleRow.account_id).where(RoleRow.role == domain.ADMIN).order_by(RoleRow.account_id).with_for_update()
    )
    account = await tx.find(AccountRow, AccountRow.id == account_id, for_update=True)
    if account is None:
        raise NotFound("There is no such account")
    wanted = set(roles)
    if domain.ADMIN not in wanted and list(admins) == [account_id]:
        raise Conflict("The last administrator must stay one: make somebody else administrator first")
    kept = [row for row in account.held if row.role in wanted]
    account.held = kept + [RoleRow(role=role) for role in sorted(wanted - {row.role for row in kept})]
    tx.publish(RolesAssigned(user_id=account.id, roles=sorted(wanted), assigned_by=by))
    return account
