"""Processes and threads: joins the database with the running of attempts."""
