"""Data that comes through the ordinary clients of packages: fetched, checked, read, never kept in
the repository."""
