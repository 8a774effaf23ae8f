"""By which request an account was registered, so that the same one, sent again, has the same answer."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("account", sa.Column("registration", sa.LargeBinary(32)))


def downgrade() -> None:
    op.drop_column("account", "registration")
