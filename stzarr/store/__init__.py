"""The store: layout, writer, reader, validation."""
