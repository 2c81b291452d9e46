"""Every setting is typed, checked wherever it comes from, and knows where it came from."""

import copy
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from queuedtask.config import Config
from queuedtask.errors import ConfigError

URL = "postgresql://shop:s3cret@db.example:5432/shop"
LONG = "postgresql+psycopg2://shop:s3cret@db.example:5432/shop"


def resolve(given=None, *, environ=None, **arguments):
    return Config.resolve(given, arguments=arguments, environ=environ or {})


# Defaults and the table of settings


def test_every_setting_has_the_documented_default():
    defaults = {setting.name: setting.default for setting in Config.settings()}
    assert defaults.pop("max_workers") == len(os.sched_getaffinity(0))
    assert defaults == {
        "worker_idle_timeout": 60,
        "polling_interval": 2,
        "fallback_polling_interval": 30,
        "task_timeout": 300,
        "max_retries": 3,
        "use_postgresql_notify": True,
        "notify_channel": "queue_new_task",
        "database_url": None,
        "listen_url": None,
        "pool_size": 5,
        "embedded_dir": None,
        "app": None,
        "heartbeat_interval": 5,
        "lease": 30,
        "max_lost": 3,
        "timeout_grace": 5,
        "max_stuck_slots": None,
        "shutdown_timeout": 30,
        "max_payload": 1048576,
        "retention_days": 30,
        "channels": "",
        "secret_key": (),
        "allowed_functions": (),
        "function_aliases": {},
        "redact": (),
        "log_level": logging.INFO,
        "log_format": "text",
        "health_max_stuck": 10,
    }


def test_each_default_is_allowed_and_of_its_own_type():
    for setting in Config.settings():
        if setting.default is not None:
            checked = setting.kind.check(setting.default)
            assert (checked, type(checked)) == (setting.default, type(setting.default)), setting.name


def test_each_setting_is_described_in_one_sentence_with_a_default_in_words():
    for setting in Config.settings():
        assert setting.help.endswith("."), setting.name
        assert setting.help[0].isupper(), setting.name
        assert all((setting.default_text, setting.kind.name, setting.kind.allowed)), setting.name
    texts = {setting.name: setting.default_text for setting in Config.settings()}
    assert texts["task_timeout"] == "300"
    assert texts["use_postgresql_notify"] == "true"
    assert texts["app"] == texts["redact"] == texts["function_aliases"] == "none"
    assert texts["max_stuck_slots"] == "the number of slots"


def test_each_setting_has_its_variable_and_the_database_a_second_one():
    variables = {setting.name: setting.environment for setting in Config.settings()}
    assert variables.pop("database_url") == ("QUEUE_DATABASE_URL", "DATABASE_URL")
    assert variables == {name: (f"QUEUE_{name.upper()}",) for name in variables}


def test_secret_settings_are_marked():
    settings = Config.settings()
    assert {s.name for s in settings if s.secret} == {"database_url", "listen_url", "secret_key"}


def test_importing_the_module_reads_no_environment():
    script = "import queuedtask.config as c; print(c.Config().max_retries, c.Config.resolve().max_retries)"
    environ = {**os.environ, "QUEUE_MAX_RETRIES": "7"}
    run = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["3", "7"]


# Precedence


@pytest.mark.parametrize(
    ("layers", "value", "source"),
    [
        ("", 3, "default"),
        ("config", 10, "config"),
        ("config environment", 11, "environment"),
        ("config environment argument", 12, "argument"),
        ("config environment argument flag", 13, "flag"),
        ("config environment argument flag assignment", 14, "assignment"),
        ("config argument", 12, "argument"),
        ("config flag", 13, "flag"),
        ("environment assignment", 14, "assignment"),
    ],
)
def test_the_layer_of_the_highest_rank_wins(layers, value, source):
    config = Config.resolve(
        Config(max_retries=10) if "config" in layers else None,
        environ={"QUEUE_MAX_RETRIES": "11"} if "environment" in layers else {},
        arguments={"max_retries": 12} if "argument" in layers else {},
    )
    if "flag" in layers:
        config.set_flags(max_retries=13)
    if "assignment" in layers:
        config.max_retries = 14
    assert (config.max_retries, config.sources["max_retries"]) == (value, source)


def test_a_flag_that_comes_after_an_assignment_does_not_replace_it():
    config = resolve()
    config.max_retries = 14
    config.set_flags(max_retries=13, max_workers=2)
    assert (config.max_retries, config.max_workers) == (14, 2)
    assert (config.sources["max_retries"], config.sources["max_workers"]) == ("assignment", "flag")


def test_a_later_flag_and_a_later_assignment_replace_the_earlier_ones():
    config = resolve()
    config.set_flags(max_retries=1, max_workers=1)
    config.set_flags(max_retries=2)
    config.max_workers = 3
    config.max_workers = 4
    assert (config.max_retries, config.max_workers) == (2, 4)


def test_a_value_that_equals_the_default_still_has_its_source():
    assert Config(task_timeout=300).sources["task_timeout"] == "config"
    assert resolve(Config(task_timeout=300)).sources["task_timeout"] == "config"
    assert resolve(environ={"QUEUE_TASK_TIMEOUT": "300"}).sources["task_timeout"] == "environment"


def test_arguments_and_flags_of_none_are_not_given():
    config = resolve(environ={"QUEUE_APP": "shop"}, app=None)
    config.set_flags(app=None)
    assert (config.app, config.sources["app"]) == ("shop", "environment")


def test_resolving_leaves_the_given_config_alone_and_does_not_follow_it():
    given = Config(max_retries=1)
    given.max_workers = 9
    config = resolve(given, max_retries=2)
    given.max_workers = 10
    assert (given.max_retries, config.max_retries, config.max_workers) == (1, 2, 9)
    assert config.sources["max_workers"] == "config"


def test_the_package_s_variable_goes_before_the_common_one():
    environ = {"DATABASE_URL": "postgres://common/a", "QUEUE_DATABASE_URL": "postgres://own/b"}
    assert resolve(environ=environ).database_url == "postgresql+psycopg2://own/b"
    environ["QUEUE_DATABASE_URL"] = ""
    assert resolve(environ=environ).database_url == "postgresql+psycopg2://common/a"


def test_a_variable_that_is_overridden_is_not_checked():
    environ = {"DATABASE_URL": "sqlite:///site.db"}
    assert resolve(environ=environ, database_url=URL).database_url == LONG
    assert resolve(environ={**environ, "QUEUE_DATABASE_URL": URL}).database_url == LONG
    with pytest.raises(ConfigError, match=r"^DATABASE_URL='sqlite:///site\.db'"):
        resolve(environ=environ)


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_an_empty_variable_is_not_set(text):
    config = resolve(environ={"QUEUE_MAX_RETRIES": text, "QUEUE_APP": text})
    assert (config.max_retries, config.app) == (3, None)
    assert config.sources["max_retries"] == "default"


# Values


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("max_workers", "8", 8),
        ("max_workers", " 8\n", 8),
        ("max_retries", "0", 0),
        ("task_timeout", "0.5", 0.5),
        ("worker_idle_timeout", "0", 0.0),
        ("retention_days", "0.25", 0.25),
        ("notify_channel", "é" * 31, "é" * 31),
        ("max_stuck_slots", "2", 2),
        ("app", "shop.tasks:jobs.queue", "shop.tasks:jobs.queue"),
        ("embedded_dir", "/srv/pg data", Path("/srv/pg data")),
        ("embedded_dir", "pg", Path.cwd() / "pg"),
        ("embedded_dir", "~/pg", Path.home() / "pg"),
        ("channels", "mail:2,api:4@10/min", "mail:2,api:4@10/min"),
        ("channels", "mail, api@5/sec", "mail, api@5/sec"),
        ("channels", "mail:0", "mail:0"),
        ("secret_key", "new, old,", ("new", "old")),
        ("allowed_functions", "shop.*,mail.tasks:send", ("shop.*", "mail.tasks:send")),
        ("redact", "password,*_token", ("password", "*_token")),
        ("function_aliases", "a.b:f=c:K.f, d:g=e:g", {"a.b:f": "c:K.f", "d:g": "e:g"}),
        ("log_level", "debug", logging.DEBUG),
        ("log_level", "15", 15),
        ("log_format", "json", "json"),
        ("health_max_stuck", "0", 0),
    ],
)
def test_text_becomes_a_typed_value_from_the_environment_and_from_flags(field, text, value):
    from_environment = resolve(environ={f"QUEUE_{field.upper()}": text})
    from_flag = resolve()
    from_flag.set_flags(**{field: text.strip()})
    for config in (from_environment, from_flag):
        assert (getattr(config, field), type(getattr(config, field))) == (value, type(value))


@pytest.mark.parametrize("word", ["true", "True", "1", "YES", "on"])
def test_a_boolean_has_several_words_for_true(word):
    assert resolve(environ={"QUEUE_USE_POSTGRESQL_NOTIFY": word}).use_postgresql_notify is True


@pytest.mark.parametrize("word", ["false", "FALSE", "0", "no", "Off"])
def test_a_boolean_has_several_words_for_false(word):
    assert resolve(environ={"QUEUE_USE_POSTGRESQL_NOTIFY": word}).use_postgresql_notify is False


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("postgres://h/d", "postgresql+psycopg2://h/d"),
        ("postgresql://u:p@h:5433/d?sslmode=require", "postgresql+psycopg2://u:p@h:5433/d?sslmode=require"),
        ("PostgreSQL://h/d", "postgresql+psycopg2://h/d"),
        ("postgresql+psycopg://h/d", "postgresql+psycopg2://h/d"),
        ("postgres+asyncpg://h/d", "postgresql+psycopg2://h/d"),
        ("postgresql://u:p#a/b?@[::1]:5/d", "postgresql+psycopg2://u:p#a/b?@[::1]:5/d"),
        ("postgresql://u@/d?host=/run/a:b", "postgresql+psycopg2://u@/d?host=/run/a:b"),
        ("postgresql+psycopg2://h/d", "postgresql+psycopg2://h/d"),
        ("postgresql://", "postgresql+psycopg2://"),
    ],
)
def test_a_url_names_our_driver_whatever_it_named(given, kept):
    assert Config(database_url=given, listen_url=given).database_url == kept
    assert resolve(environ={"QUEUE_LISTEN_URL": given}).listen_url == kept


def test_python_s_own_types_are_taken_as_they_are():
    config = Config(
        task_timeout=5,
        embedded_dir=Path("/srv/pg"),
        redact=["password"],
        function_aliases={"a:f": "b:f"},
        log_level=logging.ERROR,
        max_stuck_slots=None,
    )
    assert type(config.task_timeout) is float
    assert (config.redact, config.function_aliases) == (("password",), {"a:f": "b:f"})


def test_a_mapping_is_copied_and_no_two_configs_share_one():
    aliases = {"a:f": "b:f"}
    config = Config(function_aliases=aliases)
    aliases.clear()
    assert config.function_aliases == {"a:f": "b:f"}
    assert Config().function_aliases is not Config().function_aliases


# Refusals


BAD_VALUES = [
    ("max_workers", [0, -1, 2**31, True, 1.5, "8", None]),
    ("task_timeout", [0, -1, float("nan"), float("inf"), True, "5", None, 10**9]),
    ("worker_idle_timeout", [-0.1]),
    ("polling_interval", [0]),
    ("fallback_polling_interval", [0]),
    ("max_retries", [-1, 3.0]),
    ("use_postgresql_notify", [1, 0, "true", None]),
    ("notify_channel", ["", "x" * 64, "é" * 32, "a\0b", "\udc80", None, b"queue"]),
    (
        "database_url",
        ["", "localhost/shop", "sqlite:///x.db", "mysql+pymysql://h/d", 5, "host=h dbname=d", "postgresql://h:bad/d"],
    ),
    ("listen_url", ["redis://h", "postgresql://[::1/d"]),
    ("pool_size", [0]),
    ("embedded_dir", ["", 5, "a\0b"]),
    ("app", ["", "shop.", "shop:", "shop/tasks.py", "a:b:c", "1shop", 5]),
    ("heartbeat_interval", [0, 30, 31]),
    ("lease", [0, 4, 5]),
    ("max_lost", [0]),
    ("timeout_grace", [-1]),
    ("max_stuck_slots", [0, "2"]),
    ("shutdown_timeout", [-1]),
    ("max_payload", [0, 2**28]),
    ("retention_days", [0, -1, 10**6]),
    (
        "channels",
        [
            "*:2",
            "mail:2,mail:3",
            "mail:01",
            "mail@0/min",
            "mail:x",
            "mail@10",
            "mail@10/week",
            "a b",
            "mail,,api",
            ":2",
            "x" * 65,
            None,
            5,
        ],
    ),
    ("secret_key", [[""], [" x"], 5, [5]]),
    ("allowed_functions", [{"shop.*"}, None]),
    ("function_aliases", ["a:f", "a:f=", "a.f=b:f", {"a:f": 5}, {"a:<lambda>": "b:f"}, [("a:f", "b:f")], 5]),
    ("function_aliases", ["a:f=b:f,a:f=c:f"]),
    ("redact", [["a\nb"]]),
    ("log_level", ["loud", -1, True, 1.5, "-5", None, 1001]),
    ("log_format", ["", "xml", "JSON", None, 5]),
    ("health_max_stuck", [-1, 1.5, None]),
]


@pytest.mark.parametrize(("field", "bad"), [(field, bad) for field, values in BAD_VALUES for bad in values])
def test_a_bad_value_is_refused_when_made_when_assigned_and_as_argument(field, bad):
    config = resolve()
    before = config.as_dict(mask=False)
    with pytest.raises(ConfigError, match="must be"):
        Config(**{field: bad})
    with pytest.raises(ConfigError, match="must be"):
        setattr(config, field, bad)
    if bad is not None:
        with pytest.raises(ConfigError, match="must be"):
            resolve(**{field: bad})
    assert config.as_dict(mask=False) == before


def test_every_setting_is_among_those_that_are_refused():
    assert {field for field, _ in BAD_VALUES} == {setting.name for setting in Config.settings()}


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("max_workers", "abc"),
        ("max_workers", "0"),
        ("max_workers", "1.5"),
        ("task_timeout", "5 min"),
        ("task_timeout", "nan"),
        ("use_postgresql_notify", "maybe"),
        ("notify_channel", "x" * 64),
        ("app", "shop/tasks.py"),
        ("channels", "mail:two"),
        ("function_aliases", "old=new"),
        ("log_level", "loud"),
    ],
)
def test_a_bad_variable_is_refused_by_its_name_with_the_value_and_what_is_allowed(field, text):
    allowed = next(setting.kind.allowed for setting in Config.settings() if setting.name == field)
    with pytest.raises(ConfigError) as refusal:
        resolve(environ={f"QUEUE_{field.upper()}": text})
    assert str(refusal.value).startswith(f"QUEUE_{field.upper()}={text!r}: must be {allowed}")


def test_a_refusal_reads_well():
    with pytest.raises(ConfigError) as refusal:
        Config(max_workers=0)
    assert str(refusal.value) == "max_workers=0: must be a whole number from 1 to 2147483647"
    with pytest.raises(ConfigError) as refusal:
        resolve(environ={"DATABASE_URL": "mysql://h/d"})
    assert str(refusal.value) == (
        "DATABASE_URL='mysql://h/d': must be a PostgreSQL URL, such as "
        "postgresql://user:password@host:5432/name (mysql is no PostgreSQL)"
    )


def test_the_lease_is_compared_with_the_heartbeat_wherever_both_come_from():
    with pytest.raises(ConfigError, match="lease=10: must be more than heartbeat_interval, which is 15"):
        resolve(Config(lease=10), environ={"QUEUE_HEARTBEAT_INTERVAL": "15"})
    config = resolve(Config(lease=3, heartbeat_interval=1))
    config.set_flags(lease=100, heartbeat_interval=50)
    assert (config.lease, config.heartbeat_interval) == (100, 50)


def test_flags_are_taken_over_all_or_none():
    config = resolve()
    with pytest.raises(ConfigError, match="max_retries=-1"):
        config.set_flags(max_workers=99, max_retries=-1)
    assert config.max_workers != 99
    assert config.sources["max_workers"] == "default"


@pytest.mark.parametrize(
    "use",
    [
        lambda: Config(max_worker=3),
        lambda: Config.resolve(arguments={"max_worker": 3}, environ={}),
        lambda: Config().set_flags(max_worker=3),
        lambda: setattr(Config(), "max_worker", 3),
    ],
)
def test_an_unknown_setting_is_refused_with_the_one_that_may_be_meant(use):
    with pytest.raises(ConfigError, match="no setting 'max_worker', did you mean 'max_workers'"):
        use()


def test_an_unknown_setting_that_resembles_none_is_refused_without_a_guess():
    with pytest.raises(ConfigError, match=r"^there is no setting 'zzz'$"):
        Config().zzz = 1


def test_the_sources_cannot_be_assigned_and_no_setting_deleted():
    config = Config()
    with pytest.raises(ConfigError):
        config.sources = {}
    with pytest.raises(ConfigError, match="lease"):
        del config.lease


def test_unknown_variables_are_listed_with_the_ones_that_may_be_meant():
    environ = {
        "QUEUE_MAX_WORKER": "3",
        "QUEUE_ZZZ": "1",
        "QUEUE_LEASE": "30",
        "QUEUE_DATABASE_URL": URL,
        "DATABASE_URL": URL,
        "PATH": "/bin",
    }
    assert Config.unknown_variables(environ) == [
        ("QUEUE_MAX_WORKER", "QUEUE_MAX_WORKERS"),
        ("QUEUE_ZZZ", None),
    ]
    assert resolve(environ=environ).lease == 30


# Secrets


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (URL, "postgresql+psycopg2://shop:***@db.example:5432/shop"),
        ("postgres://shop@db:5432/shop", "postgresql+psycopg2://shop@db:5432/shop"),
        ("postgres://shop@db/shop?application_name=me@work", "postgresql+psycopg2://shop@db/shop?application_name=me@work"),
        ("postgres://:s3cret@db/shop", "postgresql+psycopg2://:***@db/shop"),
        ("postgres://shop:s3cret@s3cret/s3cret@db/shop", "postgresql+psycopg2://shop:***@db/shop"),
        ("postgres://shop@tenant:s3cret@db/shop", "postgresql+psycopg2://shop@tenant:***@db/shop"),
        ("postgres://db/shop?user=shop&password=s3cret&sslmode=require",
         "postgresql+psycopg2://db/shop?user=shop&password=***&sslmode=require"),
    ],
)  # fmt: skip
def test_a_password_in_a_url_is_masked(url, shown):
    config = Config(database_url=url, listen_url=url)
    assert config.as_dict()["database_url"]["value"] == shown
    assert config.as_dict()["listen_url"]["value"] == shown
    assert "s3cret" not in repr(config)
    assert config.as_dict(mask=False)["database_url"]["value"] == config.database_url


@pytest.mark.parametrize(
    "url",
    [
        "mysql://shop:s3cret@db/shop",
        "shop:s3cret@db/shop",
        "postgresql:shop:s3cret@db/shop",
        "shop:s3cret@db/?next=http://x",
        "host=db password=s3cret",
        b"postgresql://shop:s3cret@db/shop",
    ],
)
def test_a_refused_url_does_not_show_its_password(url):
    with pytest.raises(ConfigError) as refusal:
        Config(database_url=url)
    assert "s3cret" not in str(refusal.value)
    assert "***" in str(refusal.value)


def test_secret_keys_are_shown_neither_when_kept_nor_when_refused():
    config = Config(secret_key=("s3cret", "older"))
    assert config.as_dict()["secret_key"] == {"value": "***", "source": "config"}
    assert config.as_dict(mask=False)["secret_key"]["value"] == ["s3cret", "older"]
    assert repr(config) == "Config(secret_key='***')"
    for bad in ("s3cret\0,x", ["s3cret", ""], ["s3cret\n"]):
        with pytest.raises(ConfigError) as refusal:
            config.secret_key = bad
        assert "s3cret" not in str(refusal.value)


def test_unset_secrets_are_shown_as_unset():
    shown = Config().as_dict()
    assert (shown["database_url"]["value"], shown["secret_key"]["value"]) == (None, [])


def test_the_dictionary_of_a_config_is_json():
    config = Config(embedded_dir="/srv/pg", function_aliases="a:f=b:f", log_level=15)  # type: ignore[arg-type]
    shown = json.loads(json.dumps(config.as_dict()))
    assert list(shown) == [setting.name for setting in Config.settings()]
    assert shown["embedded_dir"] == {"value": "/srv/pg", "source": "config"}
    assert shown["function_aliases"]["value"] == {"a:f": "b:f"}
    assert shown["log_level"]["value"] == 15
    assert Config().as_dict()["log_level"] == {"value": "INFO", "source": "default"}


# As an object


def test_the_representation_shows_what_is_not_default():
    assert repr(Config()) == "Config()"
    assert repr(Config(max_retries=3, app="shop")) == "Config(max_retries=3, app='shop')"


def test_a_config_can_be_copied_compared_and_pickled():
    config = Config(max_retries=1, function_aliases={"a:f": "b:f"})
    for twin in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert (twin, twin.sources) == (config, config.sources)
        twin.max_retries = 2
        assert (config.max_retries, config.sources["max_retries"]) == (1, "config")
        assert twin != config


def test_the_sources_that_a_reader_holds_do_not_change_under_it():
    config = Config()
    before = config.sources
    config.max_retries = 1
    assert (before["max_retries"], config.sources["max_retries"]) == ("default", "assignment")


def test_assignments_from_many_threads_all_arrive():
    config = Config()
    names = [setting.name for setting in Config.settings() if setting.kind.name == "seconds"]
    barrier = threading.Barrier(len(names))

    def assign(name):
        barrier.wait()
        for tenths in range(60, 100):
            setattr(config, name, tenths / 10 + 20 * (name == "lease"))

    threads = [threading.Thread(target=assign, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        assert getattr(config, name) == pytest.approx(29.9 if name == "lease" else 9.9)
        assert config.sources[name] == "assignment"
