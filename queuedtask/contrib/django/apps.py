"""The application ``queuedtask``, as Django knows it."""

from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.core.management import CommandError
from django.db.models.signals import post_migrate, pre_save
from django.utils.module_loading import autodiscover_modules


class QueuedTaskConfig(AppConfig):
    """Named in INSTALLED_APPS as ``queuedtask.contrib.django``."""

    name = "queuedtask.contrib.django"
    label = "queuedtask"
    verbose_name = "Background tasks"

    def ready(self) -> None:
        """Register the checks, and import the projects' tasks: a worker has to know their schedules."""
        from queuedtask.contrib.django import conf, task_api
        from queuedtask.contrib.django.checks import check_schema, check_settings
        from queuedtask.errors import ConfigError

        checks.register(check_settings)
        checks.register(check_schema, checks.Tags.database)
        post_migrate.connect(_after_migrate, sender=self)
        for model in self.get_models():
            pre_save.connect(_refuse_a_dump, sender=model)
        task_api.load_backends()
        try:
            module = conf.given().autodiscover
        except ConfigError:
            return  # a check says it
        if module is not None:
            autodiscover_modules(module)


def _after_migrate(sender: AppConfig, using: str, **given: Any) -> None:
    """Make our tables where there are no migrations: ``MIGRATION_MODULES``, pytest's ``--nomigrations``.

    Django makes none then, because it does not manage them. Only migrate has a plan; others send the signal, too.
    """
    from queuedtask.contrib.django import schema

    if "plan" in given and not schema.has_migrations(using):
        schema.upgrade(using)


def _refuse_a_dump(raw: bool, **given: Any) -> None:
    """Say so clearly: only loaddata comes past the models' own refusal to be saved.

    A dump has no edges between parents and children, so what waits for a parent would wait for ever.
    """
    if raw:
        raise CommandError("tasks cannot be loaded from a dump: loaddata --exclude queuedtask, and dumpdata likewise")
