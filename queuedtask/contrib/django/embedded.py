"""The embedded PostgreSQL as a database of Django's, for development."""

from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from queuedtask.config import Config
from queuedtask.db.embedded import EmbeddedServer, default_directory


def embedded_database(name: str = "queuedtask", *, directory: Path | str | None = None) -> dict[str, str]:
    """Return an entry for ``DATABASES``: a database of the embedded PostgreSQL, which is started if it is not running.

    It is the server that ``queuedtask db stop`` stops. Without a directory it is that of ``QUEUE_EMBEDDED_DIR``, or
    the user's. Needs the extra ``embedded``.
    """
    if directory is None:
        # A DATABASE_URL is not looked at: nobody asks for it here.
        directory = Config.resolve(arguments={"database_url": "postgresql://"}).embedded_dir or default_directory()
    url = urlsplit(EmbeddedServer(Path(directory).absolute(), database=name).ensure_running())
    query = parse_qs(url.query)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(url.path[1:]),
        "USER": unquote(url.username or ""),
        "HOST": query["host"][0],
        "PORT": query["port"][0],
    }
