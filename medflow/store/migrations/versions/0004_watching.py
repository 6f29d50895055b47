"""Watching: which process a run belongs to, and where things stand answered from indices alone"""

import sqlalchemy as sa
from alembic import op

revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('run', schema=None) as batch_op:
        batch_op.add_column(sa.Column('owner', sa.String(), nullable=True))
        batch_op.create_index('ix_run_source', ['source', 'id'], unique=False)
        batch_op.create_index('ix_run_command', ['command', 'id'], unique=False)

    with op.batch_alter_table('job', schema=None) as batch_op:
        batch_op.drop_index('ix_job_state')
        batch_op.create_index('ix_job_standing', ['state', 'superseded', 'model_id', 'created_us'], unique=False)

    with op.batch_alter_table('delivery', schema=None) as batch_op:
        batch_op.drop_index('ix_delivery_target')
        batch_op.create_index('ix_delivery_standing', ['target', 'state', 'delivered_us'], unique=False)

    with op.batch_alter_table('reject', schema=None) as batch_op:
        batch_op.drop_index('ix_reject_state')
        batch_op.create_index('ix_reject_standing', ['state', 'code'], unique=False)


def downgrade() -> None:
    with op.batch_alter_table('reject', schema=None) as batch_op:
        batch_op.drop_index('ix_reject_standing')
        batch_op.create_index('ix_reject_state', ['state'], unique=False)

    with op.batch_alter_table('delivery', schema=None) as batch_op:
        batch_op.drop_index('ix_delivery_standing')
        batch_op.create_index('ix_delivery_target', ['target', 'state'], unique=False)

    with op.batch_alter_table('job', schema=None) as batch_op:
        batch_op.drop_index('ix_job_standing')
        batch_op.create_index('ix_job_state', ['state'], unique=False)

    with op.batch_alter_table('run', schema=None) as batch_op:
        batch_op.drop_index('ix_run_command')
        batch_op.drop_index('ix_run_source')
        batch_op.drop_column('owner')
