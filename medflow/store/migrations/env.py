"""Alembic's entry: runs on the connection it is handed, so that a migration is one transaction of `Store.upgrade`."""

from alembic import context

from medflow.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
