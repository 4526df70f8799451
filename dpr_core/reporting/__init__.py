"""Statistics, tables and pages."""
