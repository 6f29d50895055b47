"""Sequences that came as FHIR resources may be their Specimen's patient's"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sequence", sa.Column("specimen", sa.String(), nullable=True))
    op.create_index(op.f("ix_sequence_specimen"), "sequence", ["specimen"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_sequence_specimen"), table_name="sequence")
    with op.batch_alter_table("sequence", schema=None) as batch_op:
        batch_op.drop_column("specimen")
