"""Measurements lie by patient and time, so that a stay's are read in one go"""

import sqlalchemy as sa
from alembic import op

revision = '0007'
down_revision = '0006'
branch_labels = None
depends_on = None

BY_PATIENT = 'patient_id, effective_us, resource_id, ordinal'
BY_RESOURCE = 'resource_id, ordinal'


def upgrade() -> None:
    _order(
        f'CONSTRAINT pk_measurement PRIMARY KEY ({BY_PATIENT}), '
        f'CONSTRAINT uq_measurement_resource_id_ordinal UNIQUE ({BY_RESOURCE})',
        by=BY_PATIENT,
    )
    if op.get_bind().dialect.name == 'postgresql':
        op.drop_index('ix_measurement_patient', 'measurement')


def downgrade() -> None:
    _order(f'CONSTRAINT pk_measurement PRIMARY KEY ({BY_RESOURCE})', by=BY_RESOURCE)
    op.create_index('ix_measurement_patient', 'measurement', ['patient_id', 'effective_us'])


def _order(keys: str, *, by: str) -> None:
    """Give the table other keys; in SQLite, whose rows lie in the order of the first, that is a new table."""
    connection = op.get_bind()
    if connection.dialect.name == 'postgresql':
        op.execute('ALTER TABLE measurement DROP CONSTRAINT IF EXISTS uq_measurement_resource_id_ordinal')
        op.execute('ALTER TABLE measurement DROP CONSTRAINT pk_measurement')
        for constraint in keys.split(', CONSTRAINT '):
            op.execute(f'ALTER TABLE measurement ADD CONSTRAINT {constraint.removeprefix("CONSTRAINT ")}')
        return
    columns = sa.inspect(connection).get_columns('measurement')
    kinds = {True: '', False: ' NOT NULL'}
    lines = [f'{column["name"]} {column["type"]}{kinds[column["nullable"]]}' for column in columns]
    names = ', '.join(column['name'] for column in columns)
    reference = (
        'CONSTRAINT fk_measurement_resource_id_fhir_resource '
        'FOREIGN KEY (resource_id) REFERENCES fhir_resource (id) ON DELETE CASCADE'
    )
    op.execute(f'CREATE TABLE measurement_new ({", ".join(lines)}, {keys}, {reference}) WITHOUT ROWID')
    op.execute(f'INSERT INTO measurement_new ({names}) SELECT {names} FROM measurement ORDER BY {by}')
    op.drop_table('measurement')
    op.rename_table('measurement_new', 'measurement')
