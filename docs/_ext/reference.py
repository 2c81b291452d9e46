"""Directives that write reference pages from the code: ``commands`` from the parser, ``settings`` from Config.

What the code does not say about a command or a setting cannot be in the page, and what it says cannot be missing.
"""

import argparse
from collections.abc import Iterator

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from queuedtask.cli.parser import build_parser
from queuedtask.config import Config, Setting


def literal(text: str) -> nodes.literal:
    return nodes.literal(text, text)


def definition(terms: list[str], text: str) -> nodes.definition_list_item:
    term = nodes.term()
    for number, name in enumerate(terms):
        term += [nodes.Text(", ")] if number else []
        term += literal(name)
    return nodes.definition_list_item("", term, nodes.definition("", nodes.paragraph(text, text)))


class Commands(Directive):
    """A section for each command of the command line."""

    def run(self) -> list[nodes.Node]:
        parser = build_parser()
        parser.prog = "queuedtask"
        return [*self._arguments(parser), *self._sections(parser)]

    def _sections(self, parser: argparse.ArgumentParser) -> Iterator[nodes.Node]:
        for action in parser._actions:
            if not isinstance(action, argparse._SubParsersAction):
                continue
            help_of = {choice.dest: choice.help for choice in action._choices_actions}
            shown: set[int] = set()
            for name, command in action.choices.items():
                hidden = help_of.get(name) == argparse.SUPPRESS
                if id(command) in shown or hidden:
                    continue
                shown.add(id(command))
                aliases = [other for other, parser_ in action.choices.items() if parser_ is command and other != name]
                yield self._section(command, help_of.get(name) or "", aliases)

    def _section(self, command: argparse.ArgumentParser, summary: str, aliases: list[str]) -> nodes.section:
        # The program's own name stands in every title and says nothing.
        title = command.prog.split(" ", 1)[1]
        section = nodes.section(ids=[nodes.make_id(f"command-{title}")])
        section += nodes.title(title, title)
        text = command.description or f"{summary[:1].upper()}{summary[1:]}"
        for paragraph in filter(None, text.split("\n\n")):
            section += nodes.paragraph(paragraph, paragraph)
        if aliases:
            section += nodes.paragraph("", "", nodes.Text("Also called "), literal(", ".join(aliases)), nodes.Text("."))
        usage = command.format_usage().removeprefix("usage: ").rstrip()
        section += nodes.literal_block(usage, usage, language="text")
        section += self._arguments(command)
        for paragraph in filter(None, (command.epilog or "").split("\n\n")):
            section += nodes.paragraph(paragraph, paragraph)
        section += self._sections(command)
        return section

    def _arguments(self, parser: argparse.ArgumentParser) -> list[nodes.Node]:
        formatter = parser._get_formatter()
        items = nodes.definition_list()
        for action in parser._actions:
            is_shown = action.help != argparse.SUPPRESS
            if isinstance(action, argparse._HelpAction | argparse._SubParsersAction) or not is_shown:
                continue
            metavar = formatter._format_args(action, (action.metavar or action.dest.upper()))  # type: ignore[arg-type]
            terms = [f"{option} {metavar}".rstrip() for option in action.option_strings] or [metavar]
            items += definition(terms, formatter._expand_help(action) if action.help else "")
        return [items] if len(items) else []


class Settings(Directive):
    """A table-like list of every field of Config."""

    def run(self) -> list[nodes.Node]:
        items = nodes.definition_list()
        for setting in Config.settings():
            items += self._item(setting)
        return [items]

    def _item(self, setting: Setting) -> nodes.definition_list_item:
        item = definition(list(setting.environment), setting.help)
        body = item[-1]
        assert isinstance(body, nodes.definition)
        more = f" Default: {setting.default_text}. Must be {setting.kind.allowed}."
        body += nodes.paragraph("", "", nodes.Text("In Python "), literal(setting.name), nodes.Text(f".{more}"))
        return item


def setup(app: Sphinx) -> dict[str, object]:
    app.add_directive("commands", Commands)
    app.add_directive("settings", Settings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
