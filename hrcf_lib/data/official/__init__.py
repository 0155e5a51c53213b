"""Readers of the official downloads, and of your own folder: each writes the common form (``data.table_format``)."""
