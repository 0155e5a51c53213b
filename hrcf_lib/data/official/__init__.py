"""Readers of the official downloads and of one's own folders: each writes the common form (``data.table_format``)."""
