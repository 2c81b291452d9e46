from pathlib import Path

from queuedtask.contrib.django import embedded_database

BASE_DIR = Path(__file__).parent.parent
OUTBOX = BASE_DIR / "outbox"

# 1. PostgreSQL; in production a server of yours.
DATABASES = {"default": embedded_database("django_shop")}

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "queuedtask.contrib.django",  # 2. the queue, its tables, its commands, its admin
    "orders",
]

# Optional: the settings of queuedtask, in upper case.
QUEUEDTASK = {"TASK_TIMEOUT": 60}

SECRET_KEY = "for this example only"
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "shop.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
USE_TZ = True
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
