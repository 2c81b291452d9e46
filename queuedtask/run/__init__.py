"""One attempt: a Task goes in, an Outcome comes out. No database here."""
