"""What the tests of tests/contrib/django run with ``manage.py test``, in Django's own test databases."""

import io
import sys
import tempfile
from contextlib import closing
from datetime import timedelta
from unittest.mock import patch

from django.contrib.auth.models import Permission, User
from django.core import checks
from django.core.management import CommandError, call_command
from django.core.management.sql import emit_post_migrate_signal
from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase, override_settings
from inside import ended, working

from orders import tasks
from orders.models import Order
from queuedtask import ConfigError, DuplicateTask, NotAllowed, NotCommitted, ParentNotFound, Queue, TaskNotFound
from queuedtask.contrib.django import queue
from queuedtask.contrib.django.models import Task, TaskAttempt, TaskLog, Worker
from queuedtask.contrib.django.queues import _around_an_attempt
from queuedtask.testing import drain, inline, queue_on


def is_there_for_others(ref):
    """Tell whether a task is committed: it is looked for on another connection."""
    with queue.database.apart.transaction() as cursor:
        cursor.execute("SELECT 1 FROM queued_tasks WHERE id = %s::uuid", (ref.id,))
        return cursor.fetchone() is not None


class InATest(TestCase):
    """All of it happens in a transaction that is rolled back."""

    def test_what_was_added_is_seen_and_is_not_there_for_others(self):
        ref = tasks.charge.delay(7)
        self.assertEqual(ref.state, "enqueued")
        self.assertEqual(queue.get(ref.id), ref)
        self.assertEqual([found.id for found in queue.find(name="orders.tasks.charge")], [ref.id])
        self.assertEqual(ref.row().date_created.utcoffset() is not None, True)
        self.assertEqual((ref.logs(), ref.context, ref.result, ref.error), ([], {}, None, None))
        self.assertFalse(is_there_for_others(ref))
        self.assertIsInstance(queue, Queue)

    def test_it_vanishes_with_its_transaction(self):
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            ref = queue.add_task(tasks.charge, Order.objects.create(customer="ann").pk)
            self.assertEqual(ref.state, "enqueued")
            1 / 0  # noqa: B018
        with self.assertRaises(TaskNotFound):
            queue.get(ref.id)
        self.assertFalse(Order.objects.exists())

    def test_a_batch_is_all_or_nothing(self):
        with self.assertRaises(ZeroDivisionError), queue.batch() as batch:
            refs = [batch.add_task(tasks.charge, n) for n in range(1500)]
            1 / 0  # noqa: B018
        self.assertEqual(queue.find(), [])
        with queue.batch() as batch:
            refs = [batch.add_task(tasks.charge, n) for n in range(1500)]
            keyed = [batch.options(unique_key=key).add_task(tasks.charge, 0) for key in "ab"]
        self.assertEqual(len(queue.find(limit=None)), 1502)
        self.assertEqual({ref.state for ref in [*refs[:3], *keyed]}, {"enqueued"})
        self.assertEqual(len(queue.add_range_tasks(tasks.charge, range(1000))), 5)

    def test_options_and_families(self):
        parent = queue.options(priority=3, delay=60, context={"a": 1}, meta={"b": 2}).add_task(tasks.charge, 1)
        child = queue.add_task(tasks.charge, 2, parent=[parent])
        self.assertEqual((parent.state, child.state, child.row().parents), ("waiting", "waiting", [parent.id]))
        self.assertEqual([str(pk) for pk in Task.objects.get(pk=child.id).parents], [parent.id])
        with self.assertRaises(ParentNotFound):
            queue.add_task(tasks.charge, 3, parent="0197a000-0000-7000-8000-000000000000")
        parent.cancel()
        self.assertEqual((parent.state, child.state), ("cancelled", "cancelled"))
        parent.retry()
        self.assertEqual((parent.state, child.state), ("enqueued", "waiting"))
        with self.assertRaises(NotAllowed):
            parent.retry()
        parent.stop()
        self.assertEqual(parent.state, "stopped")

    def test_unique_keys(self):
        once = queue.options(unique_key="report")
        first, second = once.add_task(tasks.charge, 1), once.add_task(tasks.charge, 2)
        self.assertEqual((first, first.created, second.created), (second, True, False))
        with self.assertRaises(DuplicateTask):
            once.options(on_conflict="raise").add_task(tasks.charge, 3)
        once.options(on_conflict="replace").add_task(tasks.charge, 4)
        self.assertEqual(first.row().args, "[4]")
        first.cancel()
        other = once.add_task(tasks.charge, 5)
        with self.assertRaisesRegex(NotAllowed, other.id):
            first.retry()

    def test_the_rest_of_the_queue(self):
        refs = [queue.options(channel="mail").add_task(tasks.charge, n) for n in range(3)]
        self.assertEqual(len(queue.cancel(channel="mail", limit=1)), 1)
        self.assertEqual(len(queue.stop(channel="mail")), 2)
        self.assertEqual(len(queue.retry_failed(state="stopped")), 2)
        queue.pause("mail")
        queue.resume("mail")
        self.assertEqual(queue.clear(), 2)
        self.assertEqual(queue.purge(older_than=timedelta(0)), 0)  # in this transaction no time passes
        self.assertEqual((len(queue.find()), queue.workers(), queue.schedules()), (1, [], []))
        ref = queue.run_schedule("orders.tasks.morning_report")
        self.assertFalse(is_there_for_others(ref))
        self.assertEqual(len(refs), 3)

    def test_waiting_says_at_once_that_it_is_in_vain(self):
        ref = tasks.charge.delay(1)
        with self.assertRaises(NotCommitted):
            ref.wait(timeout=10)

    def test_another_connection_may_be_brought(self):
        with closing(queue.database.connect()) as other:
            other.autocommit = False
            ref = queue.options(connection=other).add_task(tasks.charge, 1)
            with self.assertRaises(TaskNotFound):
                ref.row()
            other.rollback()
        self.assertEqual(queue.options(connection="default").add_task(tasks.charge, 1).state, "enqueued")

    def test_tasks_can_be_run_in_the_tests_transaction(self):
        order = Order.objects.create(customer="ann")
        ref = tasks.charge.delay(order.pk)
        drain(queue)
        order.refresh_from_db()
        self.assertEqual((ref.state, ref.result, order.is_charged), ("done", 1, True))
        self.assertFalse(is_there_for_others(ref))

    def test_what_goes_round_an_attempt_leaves_the_tests_connection_alone(self):
        tasks.charge.delay(1)
        with _around_an_attempt(None):
            self.assertEqual(Task.objects.count(), 1)
        self.assertEqual(Task.objects.count(), 1)

    def test_the_models_are_for_reading(self):
        ref = queue.options(meta={"a": [1]}).add_task(tasks.fail, 1)
        task = Task.objects.get(pk=ref.id, meta__a=[1])
        self.assertEqual((task.args, task.meta, str(task)), ([1], {"a": [1]}, f"orders.tasks.fail {ref.id}"))
        for change in (
            task.save,
            task.delete,
            Task.objects.all().delete,
            lambda: Task.objects.update(state="done"),
            lambda: Task.objects.create(name="x"),
            lambda: Task.objects.bulk_create([task]),
            lambda: Task.objects.get_or_create(name="x"),
        ):
            with self.assertRaises(NotAllowed):
                change()
        self.assertEqual(ref.state, "enqueued")

    def test_a_poisoned_row_can_be_read(self):
        deep = "[" * 6000 + "]" * 6000
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO queued_tasks (function, args) VALUES ('a:b', %s::jsonb)", (deep,))
        # No deeper: PostgreSQL would refuse it. Python 3.13 can decode that, those before it cannot.
        self.assertIs(type(Task.objects.get().args), list if sys.version_info >= (3, 13) else str)

    def test_times_are_aware_whatever_django_makes_of_them(self):
        before = queue.options(delay=60).add_task(tasks.charge, 1).row()
        with override_settings(USE_TZ=False):
            after = queue.get(before.id).row()
            self.assertIsNone(Task.objects.get().date_created.tzinfo)
        self.assertIsNotNone(after.date_created.utcoffset())
        self.assertEqual(before.date_scheduled, after.date_scheduled)


class Coroutines(TestCase):
    """What they ask of the ORM belongs to the test's transaction."""

    def setUp(self):
        Order.objects.create(customer="ann")

    def test_drained(self):
        queue.add_task(tasks.count_and_order)
        (ran,) = drain(queue)
        self.assertEqual((ran.result, Order.objects.count()), (1, 2))

    def test_inline(self):
        with inline(queue) as ran:
            queue.add_task(tasks.count_and_order)
        self.assertEqual((ran[0].result, Order.objects.count()), (1, 2))

    def test_an_error_of_theirs(self):
        with self.assertRaisesMessage(ValueError, "no money"), inline(queue):
            queue.add_task(tasks.fail_in_a_coroutine)
        self.assertEqual(Order.objects.count(), 1)

    def test_what_is_undone_has_no_consequences(self):
        queue.options(max_retries=0).add_task(tasks.order_and_fail)
        with self.captureOnCommitCallbacks(execute=True) as called:
            (ran,) = drain(queue, raise_errors=False)
        self.assertEqual((ran.state, Order.objects.count(), called), ("failed", 1, []))


class InTheMidstOfATest(TransactionTestCase):
    """Without a transaction the test's connection is still the test's."""

    def test_its_connection_stays_open(self):
        Order.objects.bulk_create([Order(customer=str(number)) for number in range(10)])
        with inline(queue) as ran:
            for order in Order.objects.iterator(chunk_size=2):
                queue.add_task(tasks.charge, order.pk)
            queue.add_task(tasks.backend_of_a_coroutine)
        self.assertEqual(Order.objects.filter(is_charged=True).count(), 10)
        self.assertEqual(ran[-1].result, tasks.backend())
        queue.add_task(tasks.backend_of_a_coroutine)
        self.assertEqual(drain(queue)[0].result, tasks.backend())


class WithSomeApplications(TransactionTestCase):
    """Django sends no signal after such tests, nor where ``serialized_rollback`` is set."""

    available_apps = ("django.contrib.contenttypes", "django.contrib.auth", "queuedtask.contrib.django", "orders")

    def add_one(self):
        self.assertEqual(queue.find(), [])
        tasks.charge.delay(1)

    test_one = test_another = add_one


class WithCommits(TransactionTestCase):
    """Transactions are real, and the tables emptied after each test."""

    def test_autocommit_and_atomic(self):
        self.assertEqual((queue.find(), queue.schedules()), ([], []))  # nothing is left of the test before
        ref = tasks.charge.delay(1)
        self.assertTrue(is_there_for_others(ref))
        with transaction.atomic():
            ref = tasks.charge.delay(1)
            self.assertFalse(is_there_for_others(ref))
            self.assertEqual(ref.state, "enqueued")
        self.assertTrue(is_there_for_others(ref))
        self.assertEqual((queue.clear(), queue.purge(older_than=timedelta(0))), (2, 0))

    def test_it_is_not_moved_by_itself(self):
        with self.assertRaisesMessage(ConfigError, "test runner"), queue_on(queue, "postgresql://elsewhere"):
            pass

    def test_tasks_are_not_loaded_from_a_dump(self):
        order = Order.objects.create(customer="ann")
        tasks.charge.delay(order.pk)
        with tempfile.NamedTemporaryFile(suffix=".json") as dump:
            call_command("dumpdata", exclude=["contenttypes", "auth.permission"], output=dump.name)
            call_command("flush", interactive=False)
            with self.assertRaisesMessage(CommandError, "loaddata --exclude queuedtask"):
                call_command("loaddata", dump.name, verbosity=0)
            call_command("loaddata", dump.name, exclude=["queuedtask"], verbosity=0)
        self.assertEqual((Order.objects.get(), queue.find()), (order, []))

    def test_only_flush_empties_the_tables(self):
        ref = tasks.charge.delay(1)
        # As a migration does that needs the permissions of the one before.
        emit_post_migrate_signal(0, False, "default")
        self.assertEqual(ref.state, "enqueued")
        with patch("builtins.input", return_value="no"):
            call_command("flush", stdout=io.StringIO())
        self.assertEqual(ref.state, "enqueued")
        call_command("flush", interactive=False)
        self.assertEqual(queue.find(), [])

    def test_a_worker_finds_the_tests_database(self):
        self.assertEqual((queue.find(), queue.schedules()), ([], []))
        order = Order.objects.create(customer="ann")
        with working(queue):
            ref = tasks.charge.delay(order.pk)
            self.assertEqual(ref.wait(timeout=20), 1)
            failed = queue.options(max_retries=0).add_task(tasks.fail, secret="x")
            ended(failed, "failed")
        order.refresh_from_db()
        self.assertTrue(order.is_charged)
        self.assertEqual(failed.error, "ValueError: no money")
        self.assertEqual([line.message for line in ref.logs()], [f"charging {order.pk}"])
        self.assertEqual([row.outcome for row in TaskAttempt.objects.all()], ["raised"])
        self.assertEqual(TaskLog.objects.filter(task_id=ref.id).count(), 1)
        self.assertGreater(Worker.objects.count(), 0)

    def test_a_task_may_finish_on_djangos_connection(self):
        with working(queue):
            ref = queue.add_task("orders.finishing:charge_at_once", Order.objects.create(customer="ann").pk)
            self.assertEqual(ref.wait(timeout=20), "charged")
        self.assertTrue(Order.objects.get().is_charged)

    def test_keyed_batches_and_the_measures(self):
        with queue.batch() as batch:
            refs = [batch.options(unique_key=key).add_task(tasks.charge, 0) for key in "ab"]
            batch.add_task(tasks.charge, 1)
        with self.assertRaises(ZeroDivisionError), queue.batch() as batch:
            batch.options(unique_key="c").add_task(tasks.charge, 0)
            1 / 0  # noqa: B018
        self.assertEqual([ref.created for ref in refs], [True, True])
        self.assertEqual(queue.health()["reason"], "no_active_workers")
        with transaction.atomic():
            self.assertEqual(queue.metrics().pending_tasks, 3)
            with connection.cursor() as cursor:
                cursor.execute("SHOW enable_seqscan")
                self.assertEqual(cursor.fetchone(), ("on",))

    def test_a_broken_connection_heals(self):
        pid = tasks.backend()
        with queue.database.apart.transaction() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", (pid,))
        from queuedtask import DatabaseUnavailable

        with self.assertRaises(DatabaseUnavailable):
            queue.find()
        self.assertEqual(queue.find(), [])


class InTheAdmin(TestCase):
    @classmethod
    def setUpTestData(cls):
        cls.boss = User.objects.create_superuser("boss")
        cls.looker = User.objects.create_user("looker", is_staff=True)
        cls.looker.user_permissions.add(Permission.objects.get(codename="view_task"))

    def setUp(self):
        self.client.force_login(self.boss)
        self.ref = queue.options(channel="mail").add_task(tasks.fail, secret="geheim")
        self.other = tasks.charge.delay(42)

    def page(self, query=""):
        response = self.client.get(f"/admin/queuedtask/task/{query}")
        self.assertEqual(response.status_code, 200, response.headers)
        text = response.content.decode()
        return [ref for ref in (self.ref, self.other) if ref.id in text]

    def test_the_list_is_filtered_and_searched(self):
        self.assertEqual(self.page(), [self.ref, self.other])
        self.assertEqual(self.page("?state=done"), [])
        self.assertEqual(self.page("?state=enqueued"), [self.ref, self.other])
        self.assertEqual(self.page("?channel=mail"), [self.ref])
        self.assertEqual((self.page("?channel=%00"), self.page("?name=%00")), ([], []))
        self.assertEqual(self.page("?name=orders.tasks.charge"), [self.other])
        self.assertEqual(self.page(f"?q={self.other.id}"), [self.other])
        self.assertEqual(self.page("?q=orders.tasks.f"), [self.ref])
        self.assertEqual(self.page("?q=nothing"), [])

    def test_the_list_takes_few_queries_and_none_that_reads_everything(self):
        for number in range(60):
            tasks.charge.delay(number)
        with self.assertNumQueries(6) as queries:  # session, user, two filters' samples, count, page
            self.page()
        for query in queries:
            if "queued_tasks" in query["sql"]:
                self.assertIn("LIMIT", query["sql"])
                self.assertNotIn("DISTINCT", query["sql"])
                self.assertNotIn("traceback", query["sql"])

    def test_large_tables_are_not_counted_nor_searched_to_their_end(self):
        with patch("queuedtask.contrib.django.admin.COUNTED", 2):
            self.assertContains(self.client.get("/admin/queuedtask/task/"), "these are the newest 2")
            self.assertContains(self.client.get("/admin/queuedtask/task/?state=enqueued"), "more than 2 tasks")
        for number in range(2):
            tasks.charge.delay(number)
        with patch("queuedtask.contrib.django.admin.SEARCHED", 3):
            self.assertEqual(self.page("?name=orders.tasks.fail"), [])
            response = self.client.get("/admin/queuedtask/task/?name=orders.tasks.charge")
            self.assertContains(response, "of the newest 3 only")
            self.assertContains(response, self.other.id)
            self.assertEqual(self.page(f"?q={self.ref.id}"), [self.ref])
            self.assertEqual(self.page("?state=enqueued&name=orders.tasks.fail"), [self.ref])

    def test_the_details(self):
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO queued_task_attempts (queued_task_id, attempt, outcome, error_type, error_traceback) "
                "VALUES (%s, 1, 'failed', 'ValueError', '<b>Traceback</b>')",
                (self.ref.id,),
            )
            cursor.execute(
                "INSERT INTO queued_task_logs (queued_task_id, message) VALUES (%s, 'half way')", (self.ref.id,)
            )
        queue.config.redact = ("secret",)
        text = self.client.get(f"/admin/queuedtask/task/{self.ref.id}/change/").content.decode()
        queue.config.redact = ()
        for part in ("&lt;b&gt;Traceback", "half way", "orders.tasks:fail", "***"):
            self.assertIn(part, text)
        for part in ("geheim", "<b>Traceback", 'name="_save"'):
            self.assertNotIn(part, text)
        child = queue.add_task(tasks.charge, 1, parent=self.ref)
        self.assertContains(self.client.get(f"/admin/queuedtask/task/{child.id}/change/"), self.ref.id)
        self.assertEqual(self.client.get("/admin/queuedtask/task/add/").status_code, 403)
        self.assertEqual(self.client.post(f"/admin/queuedtask/task/{self.ref.id}/delete/").status_code, 403)

    def act(self, action, *refs):
        data = {"action": action, "_selected_action": [ref.id for ref in refs]}
        return self.client.post("/admin/queuedtask/task/", data, follow=True)

    def test_actions(self):
        response = self.act("cancel", self.ref, self.other)
        self.assertContains(response, "2 tasks were cancelled")
        self.assertEqual((self.ref.state, self.other.state), ("cancelled", "cancelled"))
        self.assertContains(self.act("retry", self.ref), "1 task was sent round again")
        response = self.act("retry", self.ref, self.other)
        self.assertContains(response, "1 task was sent round again")
        self.assertContains(response, "1 could not be")
        self.assertEqual((self.ref.state, self.other.state), ("enqueued", "enqueued"))

    def test_who_may_only_look_cannot_act(self):
        self.client.force_login(self.looker)
        self.assertEqual(self.page(), [self.ref, self.other])
        self.act("cancel", self.ref)
        self.assertEqual(self.ref.state, "enqueued")

    def test_the_workers(self):
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO queued_task_workers (server_name, is_running) VALUES ('northern', true)")
        self.assertContains(self.client.get("/admin/queuedtask/worker/?is_running__exact=1"), "northern")
        worker = Worker.objects.get()
        self.assertContains(self.client.get(f"/admin/queuedtask/worker/{worker.pk}/change/"), "northern")


class Checks(TestCase):
    def ids(self, **settings):
        with override_settings(**settings):
            found = checks.run_checks(databases=["default"])
        return {message.id: message.msg for message in found if message.id.startswith("queuedtask.")}

    def test_what_is_right_is_silent(self):
        self.assertEqual(self.ids(QUEUEDTASK={"MAX_RETRIES": 5, "LISTEN_URL": "postgresql://db/x"}), {})

    def test_settings(self):
        for given, said in (
            ({"MAX_RETRYS": 1}, "did you mean 'max_retries'"),
            ({"MAX_RETRIES": "x"}, "must be a whole number"),
            ({"DATABASE_URL": "postgresql://x"}, "the database is Django's"),
            ({"EMBEDDED_DIR": "/x"}, "the database is Django's"),
            ({"APP": "x"}, "the application is this project"),
            ({"max_retries": 1}, "upper case"),
            ({"DATABASE": 1}, "must be an alias"),
            ({"AUTODISCOVER": 1}, "a module's name or None"),
            ([], "must be a dict"),
        ):
            with self.subTest(given=given):
                self.assertIn(said, self.ids(QUEUEDTASK=given)["queuedtask.E001"])

    def test_the_alias(self):
        self.assertIn("there are: default", self.ids(QUEUEDTASK={"DATABASE": "north"})["queuedtask.E002"])

    def test_the_schema(self):
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM queued_task_migrations WHERE version > 3")
        self.assertIn("has version 3", self.ids()["queuedtask.W001"])

    def test_the_command_can_be_called(self):
        ref = tasks.charge.delay(1)
        call_command("queuedtask", "cancel", ref.id, stdout=io.StringIO())
        self.assertEqual(ref.state, "cancelled")
        with self.assertRaisesRegex(CommandError, "exit code 1"):
            call_command("queuedtask", "cancel", ref.id)
        with self.assertRaisesRegex(CommandError, "needs a process of its own"):
            call_command("queuedtask", "worker")
