"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "{{ cookiecutter.resource }}",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("added_by", sa.String(255), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("stars", sa.Integer, nullable=False),
        sa.Column("ratings", sa.Integer, nullable=False),
    )
    op.create_index("{{ cookiecutter.resource }}_by_age", "{{ cookiecutter.resource }}", ["added_at", "id"])


def downgrade() -> None:
    op.drop_table("{{ cookiecutter.resource }}")
