"""Records: corrections that change no earlier score, what more is static about a stay, versions trained here"""

import sqlalchemy as sa
from alembic import op

revision = '0006'
down_revision = '0005'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('patient', sa.Column('latest_us', sa.BigInteger(), server_default='0', nullable=False))
    op.execute(
        'UPDATE patient SET latest_us = COALESCE('
        '(SELECT MAX(measurement.available_us) FROM measurement WHERE measurement.patient_id = patient.id), 0)'
    )
    op.add_column('encounter', sa.Column('priority', sa.String(), nullable=True))
    op.add_column('encounter', sa.Column('admit_source', sa.String(), nullable=True))
    op.add_column('measurement', sa.Column('until_us', sa.BigInteger(), nullable=True))
    op.create_table('trained_model',
    sa.Column('id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
    sa.Column('model', sa.String(), nullable=False),
    sa.Column('version', sa.String(), nullable=False),
    sa.Column('base_version', sa.String(), nullable=False),
    sa.Column('base_digest', sa.String(), nullable=False),
    sa.Column('spec', sa.JSON(), nullable=False),
    sa.Column('files', sa.JSON(), nullable=False),
    sa.Column('hyperparameters', sa.JSON(), nullable=False),
    sa.Column('seed', sa.BigInteger(), nullable=False),
    sa.Column('cohort', sa.JSON(), nullable=False),
    sa.Column('metrics', sa.JSON(), nullable=False),
    sa.Column('state', sa.String(), nullable=False),
    sa.Column('run_id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), nullable=True),
    sa.Column('created_us', sa.BigInteger(), nullable=False),
    sa.Column('promoted_us', sa.BigInteger(), nullable=True),
    sa.ForeignKeyConstraint(['run_id'], ['run.id'], name=op.f('fk_trained_model_run_id_run')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_trained_model')),
    sa.UniqueConstraint('model', 'version', name=op.f('uq_trained_model_model_version'))
    )


def downgrade() -> None:
    op.drop_table('trained_model')
    op.drop_column('measurement', 'until_us')
    op.drop_column('encounter', 'admit_source')
    op.drop_column('encounter', 'priority')
    op.drop_column('patient', 'latest_us')
