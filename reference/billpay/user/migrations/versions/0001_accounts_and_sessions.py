"""Accounts, roles, sessions, refresh tokens, attempts and the development key."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "account",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("email", sa.String(254), nullable=False),
        sa.Column("email_key", sa.String(300), nullable=False, unique=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("password_hash", sa.String(200), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("account_age", "account", ["created_at", "id"])
    op.create_table(
        "account_role",
        sa.Column("account_id", sa.Uuid(), sa.ForeignKey("account.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("role", sa.String(31), primary_key=True),
    )
    op.create_index("ix_account_role_role", "account_role", ["role"])
    op.create_table(
        "session",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("account_id", sa.Uuid(), sa.ForeignKey("account.id", ondelete="CASCADE"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("ended_by", sa.String(20)),
    )
    op.create_index("ix_session_account_id", "session", ["account_id"])
    op.create_index("ix_session_expires_at", "session", ["expires_at"])
    op.create_table(
        "refresh_token",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column("session_id", sa.Uuid(), sa.ForeignKey("session.id", ondelete="CASCADE"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True)),
    )
    op.create_index("ix_refresh_token_session_id", "refresh_token", ["session_id"])
    op.create_table(
        "attempt",
        sa.Column("scope", sa.String(400), primary_key=True),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_attempt_started_at", "attempt", ["started_at"])
    op.create_table(
        "signing_key",
        sa.Column("slot", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("private_jwk", sa.Text(), nullable=False),
    )


def downgrade() -> None:
    for table in ("signing_key", "attempt", "refresh_token", "session", "account_role", "account"):
        op.drop_table(table)
