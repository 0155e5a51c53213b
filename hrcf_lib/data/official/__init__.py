"""Readers of the official downloads, and of a folder of one's own: each writes the common form (``data.table_format``)."""
