"""Where session data is kept: in memory or in a SQLite file."""
