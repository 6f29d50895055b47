"""Variant files may be withdrawn"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("variant_file", sa.Column("withdrawn_us", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("variant_file", schema=None) as batch_op:
        batch_op.drop_column("withdrawn_us")
