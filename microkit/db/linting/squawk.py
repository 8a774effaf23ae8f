"""squawk, the linter of PostgreSQL migrations: it knows which statement holds whom up, and what clients notice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from microkit.db.linting.finding import Judgement
from microkit.errors import ConfigurationError, MissingExtra

_NOT_ASKED: Final = (
    "prefer-bigint-over-int",  # what begins with "prefer" is a matter of style
    "prefer-bigint-over-smallint",
    "prefer-identity",
    "prefer-text-field",
    "prefer-timestamptz",
    "prefer-robust-stmts",
    "ban-char-field",
    "require-enum-value-ordering",
    "require-lock-timeout",  # the one who runs the scripts sets it
    "require-statement-timeout",
    "changing-column-type",  # these two depend on what was there before
    "adding-not-nullable-field",
    "ban-uncommitted-transaction",
    "transaction-nesting",
)

_LATER: Final = 'in a release after the last version that uses it, and say contract = "…" in the script'

_BREAKS: Final = {
    "ban-drop-column": (
        "a version that selects the column, or inserts into it, fails", f"stop using it now; drop it {_LATER}"
    ),
    "ban-drop-table": ("a version that uses the table fails", f"stop using it now; drop it {_LATER}"),
    "renaming-column": (
        "a version that knows the old name fails",
        f"add the new column, write both, fill it, read the new one; drop the old one {_LATER}",
    ),
    "renaming-table": (
        "a version that knows the old name fails",
        f"leave it (the model's class may have another), or make a new table, write both; drop the old one {_LATER}",
    ),
    "renaming-object": (
        "a version that knows the old name fails", f"add the new one beside it; remove the old one {_LATER}"
    ),
    "adding-required-field": (
        "a version that does not know the column can insert no row any more (and where there are rows, this fails)",
        "add it nullable now, or with a server_default; fill it; make it NOT NULL in the next release",
    ),
    "ban-drop-default": (
        "a version that leaves the column out can insert no row any more, or inserts NULL",
        f"write the column in every version first; drop the default {_LATER}",
    ),
    "ban-drop-not-null": (
        "a version that has never met a NULL there meets one",
        "first release a version that can read it; then let it be NULL, and say contract = \"…\"",
    ),
    "ban-drop-type": ("a version that names the type fails", f"drop it {_LATER}"),
    "ban-drop-database": ("everything is gone", "do not"),
    "ban-truncate-cascade": ("tables that nobody named lose their rows", "delete what nobody needs, in batches"),
    "ban-set-schema": ("a version that looks for it in its schema fails", f"leave it; or move it {_LATER}"),
    "ban-alter-identity": ("a version that leaves the column out, or fills it, may fail", f"change it {_LATER}"),
    "ban-alter-domain-with-add-constraint": (
        "a version that writes what does not fulfil it fails, and who uses the type waits until all rows are read",
        f"first release a version that never does; add it {_LATER}",
    ),
}  # fmt: skip

_CONCURRENTLY: Final = (
    "in a script of its own: with op.get_context().autocommit_block(): … postgresql_concurrently=True; or say "
    'locks = "…" where the table is small'
)
_LOCKS: Final = {
    "require-concurrent-index-creation": ("nobody can write to the table while the index is built", _CONCURRENTLY),
    "require-concurrent-index-deletion": (
        "everybody waits for the table until the index can be dropped", _CONCURRENTLY
    ),
    "ban-concurrent-index-creation-in-transaction": (
        "PostgreSQL does not do it inside a transaction", "with op.get_context().autocommit_block(): …"
    ),
    "constraint-missing-not-valid": (
        "nobody can write to the table while all its rows are checked",
        "add it with postgresql_not_valid=True; op.execute(\"ALTER TABLE … VALIDATE CONSTRAINT …\") in the next script",
    ),
    "adding-foreign-key-constraint": (
        "nobody can write to either table while all rows are checked",
        "add it with postgresql_not_valid=True; op.execute(\"ALTER TABLE … VALIDATE CONSTRAINT …\") in the next script",
    ),
    "disallowed-unique-constraint": (
        "nobody can read or write the table while the index is built",
        "build a unique index CONCURRENTLY, then ADD CONSTRAINT … UNIQUE USING INDEX",
    ),
    "ban-drop-constraint": (  # a unique one is another matter, and told by what was there before
        "everybody waits for the table, and rows may come that a version did not expect",
        'say locks = "…", and why no version minds',
    ),
    "adding-field-with-default": (
        "every row is written anew, since the default is another for each, and nobody can read or write the table",
        "add it nullable and without a default, fill it in batches, and set the default after",
    ),
}  # fmt: skip


def squawked(scripts: Sequence[Sequence[str]]) -> list[list[tuple[int, Judgement]]]:
    """For each script, given as its statements: the number of a statement, and what squawk says of it.

    A ``.squawk.toml`` in the folder that it runs in, or above, is respected.

    Raises:
        MissingExtra: squawk is not installed.
        ConfigurationError: it could not do its work.
    """
    with TemporaryDirectory() as folder:
        starts: list[list[int]] = []
        for number, statements in enumerate(scripts):
            lines = [0]
            for statement in statements:
                lines.append(lines[-1] + statement.count("\n") + 1)
            starts.append(lines)
            # What is accepted is said in the script, where the database is told of it, and not in a comment.
            text = "".join(f"{each}\n" for each in statements).replace("squawk-ignore", "squawk ignore")
            Path(folder, f"{number}.sql").write_text(text, "utf-8")
        files = [str(Path(folder, f"{number}.sql")) for number in range(len(scripts))]
        found: list[list[tuple[int, Judgement]]] = [[] for _ in scripts]
        for each in _run(files) if files else []:
            number, line = int(Path(str(each["file"])).stem), int(str(each["line"]))
            remark = (sum(1 for start in starts[number][1:] if start <= line), _judgement(each))
            if remark not in found[number]:
                found[number].append(remark)
    return found


def _run(files: Sequence[str]) -> list[dict[str, object]]:
    program = shutil.which("squawk", path=sysconfig.get_path("scripts")) or shutil.which("squawk")
    if program is None:
        raise MissingExtra("microkit migrate lint", "lint")
    options = ["--reporter", "json", "--assume-in-transaction"]
    ended = subprocess.run([program, *options, *files], capture_output=True, text=True, check=False)  # noqa: S603  no shell
    try:
        found = json.loads(ended.stdout)
    except ValueError:
        raise ConfigurationError(f"squawk could not read the migrations: {ended.stderr.strip()[:300]}") from None
    return [each for each in found if each["rule_name"] not in _NOT_ASKED]


def _judgement(each: dict[str, object]) -> Judgement:
    rule, name = str(each["rule_name"]), f"squawk:{each['rule_name']}"
    if rule in _BREAKS:
        return Judgement("breaks", name, *_BREAKS[rule])
    if rule in _LOCKS:
        return Judgement("locks", name, *_LOCKS[rule])
    if rule.startswith("ban-drop-"):
        return Judgement("breaks", name, "a version that uses it fails", f"stop using it now; drop it {_LATER}")
    return Judgement("locks", name, str(each["message"]), str(each.get("help") or "see squawkhq.com/docs"))
