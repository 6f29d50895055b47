"""The SQL store and the object store. SQLAlchemy stays inside; repositories take a connection and return records."""

from medflow.store.objects import FolderObjects, ObjectStore
from medflow.store.session import Connection, Store

__all__ = ["Connection", "FolderObjects", "ObjectStore", "Store"]
