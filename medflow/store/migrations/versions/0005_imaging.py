"""Imaging: what models ask of a series, studies that change, and the DICOM objects that jobs make"""

import sqlalchemy as sa
from alembic import op

revision = '0005'
down_revision = '0004'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('study', sa.Column('revision', sa.BigInteger(), server_default='0', nullable=False))
    op.add_column('series', sa.Column('protocol_name', sa.String(), nullable=True))
    op.add_column('series', sa.Column('image_type', sa.String(), nullable=True))
    op.add_column('series', sa.Column('contrast', sa.Boolean(), nullable=True))
    op.add_column('series', sa.Column('slice_thickness_mm', sa.Float(), nullable=True))
    op.add_column('chunk', sa.Column('explain', sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column('chunk', sa.Column('notes', sa.JSON(), server_default='{}', nullable=False))
    op.create_table('result_object',
    sa.Column('id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
    sa.Column('job_id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), nullable=False),
    sa.Column('kind', sa.String(), nullable=False),
    sa.Column('sop_class_uid', sa.String(), nullable=False),
    sa.Column('sop_instance_uid', sa.String(), nullable=False),
    sa.Column('series_uid', sa.String(), nullable=False),
    sa.Column('study_uid', sa.String(), nullable=False),
    sa.Column('sha256', sa.String(), nullable=False),
    sa.Column('size', sa.BigInteger(), nullable=False),
    sa.Column('outputs', sa.JSON(), nullable=False),
    sa.Column('created_us', sa.BigInteger(), nullable=False),
    sa.ForeignKeyConstraint(['job_id'], ['job.id'], name=op.f('fk_result_object_job_id_job'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_result_object')),
    sa.UniqueConstraint('sop_instance_uid', name=op.f('uq_result_object_sop_instance_uid'))
    )
    op.create_index(op.f('ix_result_object_job_id'), 'result_object', ['job_id'], unique=False)


def downgrade() -> None:
    op.drop_table('result_object')
    op.drop_column('chunk', 'notes')
    op.drop_column('chunk', 'explain')
    for name in ('slice_thickness_mm', 'contrast', 'image_type', 'protocol_name'):
        op.drop_column('series', name)
    op.drop_column('study', 'revision')
