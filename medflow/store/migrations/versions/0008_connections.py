"""Connections: what a target is, what a server called what it was sent, how far sources were read, what is wrong"""

import sqlalchemy as sa
from alembic import op

revision = '0008'
down_revision = '0007'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('target', sa.Column('kind', sa.String(), nullable=False, server_default='folder'))
    op.execute("UPDATE target SET kind = 'fhir' WHERE name LIKE '%://%'")
    op.add_column('delivery', sa.Column('server_id', sa.String(), nullable=True))
    op.add_column('delivery', sa.Column('etag', sa.String(), nullable=True))
    op.create_table(
        'watermark',
        sa.Column('source', sa.String(), nullable=False),
        sa.Column('kind', sa.String(), nullable=False),
        sa.Column('until_us', sa.BigInteger(), nullable=True),
        sa.Column('state', sa.JSON(), nullable=False),
        sa.Column('updated_us', sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint('source', 'kind', name=op.f('pk_watermark')),
    )
    op.create_table(
        'connection',
        sa.Column('role', sa.String(), nullable=False),
        sa.Column('name', sa.String(), nullable=False),
        sa.Column('ok_us', sa.BigInteger(), nullable=True),
        sa.Column('failing_since_us', sa.BigInteger(), nullable=True),
        sa.Column('failed_us', sa.BigInteger(), nullable=True),
        sa.Column('failures', sa.BigInteger(), nullable=False),
        sa.Column('error', sa.String(), nullable=True),
        sa.PrimaryKeyConstraint('role', 'name', name=op.f('pk_connection')),
    )


def downgrade() -> None:
    op.drop_table('connection')
    op.drop_table('watermark')
    with op.batch_alter_table('delivery', schema=None) as batch_op:
        batch_op.drop_column('etag')
        batch_op.drop_column('server_id')
    with op.batch_alter_table('target', schema=None) as batch_op:
        batch_op.drop_column('kind')
