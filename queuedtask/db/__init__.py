"""The only floor that knows SQL: tables, migrations, statements and connections."""
