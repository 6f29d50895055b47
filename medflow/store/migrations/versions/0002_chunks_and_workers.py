"""Chunks and workers: who scores what, and how long it took; runs know their source"""

import sqlalchemy as sa
from alembic import op

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('worker',
    sa.Column('name', sa.String(), nullable=False),
    sa.Column('owner', sa.String(), nullable=False),
    sa.Column('device', sa.String(), nullable=False),
    sa.Column('models', sa.JSON(), nullable=False),
    sa.Column('loaded', sa.JSON(), nullable=False),
    sa.Column('started_us', sa.BigInteger(), nullable=False),
    sa.Column('seen_us', sa.BigInteger(), nullable=False),
    sa.Column('state', sa.String(), nullable=False),
    sa.PrimaryKeyConstraint('name', name=op.f('pk_worker'))
    )
    op.create_table('chunk',
    sa.Column('id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
    sa.Column('run_id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), nullable=True),
    sa.Column('model_id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), nullable=False),
    sa.Column('state', sa.String(), nullable=False),
    sa.Column('owner', sa.String(), nullable=True),
    sa.Column('worker', sa.String(), nullable=True),
    sa.Column('lease_until_us', sa.BigInteger(), nullable=True),
    sa.Column('asked_us', sa.BigInteger(), nullable=False),
    sa.Column('started_us', sa.BigInteger(), nullable=True),
    sa.Column('finished_us', sa.BigInteger(), nullable=True),
    sa.Column('leased', sa.BigInteger(), nullable=False),
    sa.Column('done', sa.BigInteger(), nullable=False),
    sa.Column('failed', sa.BigInteger(), nullable=False),
    sa.Column('dead', sa.BigInteger(), nullable=False),
    sa.Column('reasons', sa.JSON(), nullable=False),
    sa.Column('seconds', sa.JSON(), nullable=False),
    sa.Column('error', sa.String(), nullable=True),
    sa.ForeignKeyConstraint(['model_id'], ['model.id'], name=op.f('fk_chunk_model_id_model')),
    sa.ForeignKeyConstraint(['run_id'], ['run.id'], name=op.f('fk_chunk_run_id_run')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_chunk'))
    )
    with op.batch_alter_table('chunk', schema=None) as batch_op:
        batch_op.create_index('ix_chunk_finished', ['finished_us'], unique=False)
        batch_op.create_index('ix_chunk_queue', ['model_id', 'state', 'id'], unique=False)
        batch_op.create_index(batch_op.f('ix_chunk_run_id'), ['run_id'], unique=False)

    with op.batch_alter_table('run', schema=None) as batch_op:
        batch_op.add_column(sa.Column('source', sa.String(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('run', schema=None) as batch_op:
        batch_op.drop_column('source')

    op.drop_table('chunk')
    op.drop_table('worker')
