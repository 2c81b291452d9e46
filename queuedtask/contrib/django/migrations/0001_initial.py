from queuedtask.contrib.django.schema import migration_of

Migration = migration_of(__name__)
