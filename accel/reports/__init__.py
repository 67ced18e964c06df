"""What was found, to read: rows as tables, and pages."""
