"""Genomes: what a variant file is of and its index, names of specimens, sequences that came as FHIR resources"""

import sqlalchemy as sa
from alembic import op

revision = '0009'
down_revision = '0008'
branch_labels = None
depends_on = None

Id = sa.BigInteger().with_variant(sa.Integer(), 'sqlite')


def upgrade() -> None:
    op.add_column('variant_file', sa.Column('build', sa.String(), nullable=True))
    op.add_column('variant_file', sa.Column('counts', sa.JSON(), nullable=False, server_default='{}'))
    op.add_column('variant_file', sa.Column('index', sa.String(), nullable=True))
    op.add_column('variant_file', sa.Column('received_us', sa.BigInteger(), nullable=False, server_default='0'))
    op.add_column('sample', sa.Column('specimen', sa.String(), nullable=True))
    op.add_column('sample', sa.Column('specimen_source', sa.String(), nullable=True))
    op.create_table(
        'specimen_name',
        sa.Column('resource_id', Id, nullable=False),
        sa.Column('ordinal', sa.BigInteger(), nullable=False),
        sa.Column('value', sa.String(), nullable=False),
        sa.Column('system', sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ['resource_id'], ['fhir_resource.id'], name=op.f('fk_specimen_name_resource_id_fhir_resource'), ondelete='CASCADE'
        ),
        sa.PrimaryKeyConstraint('resource_id', 'ordinal', name=op.f('pk_specimen_name')),
    )
    op.create_index(op.f('ix_specimen_name_value'), 'specimen_name', ['value'], unique=False)
    with op.batch_alter_table('sequence', schema=None) as batch_op:
        batch_op.add_column(sa.Column('resource_id', Id, nullable=True))
        batch_op.create_foreign_key(
            op.f('fk_sequence_resource_id_fhir_resource'), 'fhir_resource', ['resource_id'], ['id'], ondelete='CASCADE'
        )
        batch_op.create_index(op.f('ix_sequence_resource_id'), ['resource_id'], unique=False)


def downgrade() -> None:
    with op.batch_alter_table('sequence', schema=None) as batch_op:
        batch_op.drop_index(op.f('ix_sequence_resource_id'))
        batch_op.drop_constraint(op.f('fk_sequence_resource_id_fhir_resource'), type_='foreignkey')
        batch_op.drop_column('resource_id')
    op.drop_index(op.f('ix_specimen_name_value'), table_name='specimen_name')
    op.drop_table('specimen_name')
    for table, column in (
        ('sample', 'specimen_source'),
        ('sample', 'specimen'),
        ('variant_file', 'received_us'),
        ('variant_file', 'index'),
        ('variant_file', 'counts'),
        ('variant_file', 'build'),
    ):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_column(column)
