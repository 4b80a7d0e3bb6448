"""The interactive SQL prompt, and the same for statements that come through a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import duckdb
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output

from raysense.errors import RaysenseError, UsageError
from raysense.query.connection import ResultDatabase
from raysense.query.formats import write_result

INTERACTIVE_ROWS = 40
_COMMANDS = [".tables", ".macros", ".schema", ".help", ".quit"]
_HELP = """\
End a statement with ; and it runs. It may take several lines.
  .tables         the tables and views
  .macros         the macros, with what they say
  .schema TABLE   the columns of a table, with documentation and units
  .help           this text
  .quit           leave (also Ctrl-D)
"""


def run_prompt(
    database: ResultDatabase,
    stream: BinaryIO,
    history: Path | None = None,
    input: Input | None = None,
    output: Output | None = None,
) -> None:
    """Ask for statements on the terminal until the user leaves; results are printed as tables.

    Views are refreshed before every statement, so that they follow a scan that is running. An error is one line on
    standard error, and the prompt goes on.

    Args:
        database: What is queried.
        stream: Where results go, such as ``sys.stdout.buffer``.
        history: File that keeps the statements between sessions; None keeps them in memory.
        input: Terminal input, standard input where None.
        output: Terminal output, standard output where None.
    """
    if history is not None:
        history.parent.mkdir(parents=True, exist_ok=True)
    session: PromptSession[str] = PromptSession(
        message="raysense> ",
        prompt_continuation="      ... ",
        history=InMemoryHistory() if history is None else FileHistory(str(history)),
        completer=WordCompleter(_words(database), ignore_case=True),
        complete_while_typing=False,
        multiline=True,
        key_bindings=_enter_runs_complete_statements(),
        input=input,
        output=output,
    )
    while True:
        try:
            text = session.prompt()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        try:
            if not run_line(database, text, stream, "table", INTERACTIVE_ROWS):
                return
        except RaysenseError as error:
            print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)


def run_script(database: ResultDatabase, lines: Iterable[str], stream: BinaryIO, format: str = "table") -> None:
    """Run the statements and dot commands that ``lines`` hold, such as ``sys.stdin``, and write the result of each.

    Raises:
        UsageError: a statement fails; those before it have been run.
    """
    text = ""
    for line in lines:
        text += line
        if is_complete(text):
            if not run_line(database, text, stream, format):
                return
            text = ""
    run_line(database, text, stream, format)


def run_line(
    database: ResultDatabase, text: str, stream: BinaryIO, format: str = "table", max_rows: int | None = None
) -> bool:
    """Run a dot command or statements, and write what they return.

    Returns:
        False where the text asks to leave.

    Raises:
        RaysenseError: the statement fails, or there is no such command or table.
    """
    text = text.strip()
    if text.startswith("."):
        command, _, argument = text.rstrip(";").partition(" ")
        if command in (".quit", ".exit"):
            return False
        stream.write(_command(database, command, argument.strip()).encode())
        stream.flush()
    elif text:
        database.refresh()
        for statement in database.statements(text):
            write_result(database.query(statement), format, stream, max_rows)
    return True


def is_complete(text: str) -> bool:
    """Whether text can be run: a dot command, nothing, or statements that end in ``;`` outside quotes."""
    text = text.strip()
    if not text or text.startswith("."):
        return True
    if not text.endswith(";"):
        return False
    try:
        duckdb.extract_statements(text)
    except duckdb.Error as error:
        return "unterminated" not in str(error)
    return True


def _enter_runs_complete_statements() -> KeyBindings:
    bindings = KeyBindings()

    def complete() -> bool:
        return is_complete(get_app().current_buffer.text)

    @bindings.add("enter", filter=Condition(complete))
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    return bindings


def _words(database: ResultDatabase) -> list[str]:
    keywords = [
        row["word"] for row in database.query("SELECT upper(keyword_name) AS word FROM duckdb_keywords()").rows()
    ]
    columns = {column.name for table in database.tables().values() for column in table}
    macros = [f"{macro.name}(" for macro in database.macros]
    return [*_COMMANDS, *macros, *database.tables(), *sorted(columns), *keywords]


def _command(database: ResultDatabase, command: str, argument: str) -> str:
    if command == ".help":
        return _HELP
    if command == ".tables":
        return "".join(f"{table}  ({', '.join(c.name for c in cs)})\n" for table, cs in database.tables().items())
    if command == ".macros":
        return "".join(f"{macro.signature}\n    {macro.doc}\n" for macro in database.macros)
    if command == ".schema":
        return _schema(database, argument)
    raise UsageError(f"command {command!r} is unknown; type .help for those there are")


def _schema(database: ResultDatabase, table: str) -> str:
    columns = database.tables().get(table)
    if columns is None:
        raise UsageError(f"table {table!r} does not exist; choose one of {', '.join(database.tables())}")
    name_width = max(len(column.name) for column in columns)
    type_width = max(len(column.type) for column in columns)
    return "".join(f"{c.name:<{name_width}}  {c.type:<{type_width}}  {c.doc} [{c.unit}]\n" for c in columns)
