"""``microkit migrate lint``: what an older running version would not survive is told, and what to do instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from microkit.db.linting import Finding, lint
from microkit.db.scripts import Scripts
from microkit.errors import ConfigurationError

HEAD = "import sqlalchemy as sa\nfrom alembic import op\n"
TABLES = """
op.create_table("shelf", sa.Column("id", sa.BigInteger, primary_key=True), sa.Column("name", sa.String(50)),
                sa.Column("rank", sa.Integer), sa.Column("mood", sa.Enum("fine", "bad", name="mood")),
                sa.Column("set", sa.Text, server_default="a"), sa.Column("sure", sa.Text, nullable=False))
op.create_table("book", sa.Column("id", sa.BigInteger, primary_key=True), sa.Column("shelf_id", sa.BigInteger))
op.create_index("one_name", "shelf", ["name"], unique=True)
"""
BREAKING = {
    "op.drop_column('shelf', 'name')": "squawk:ban-drop-column",
    "op.drop_table('book')": "squawk:ban-drop-table",
    "op.alter_column('shelf', 'name', new_column_name='title')": "squawk:renaming-column",
    "op.rename_table('shelf', 'rack')": "squawk:renaming-table",
    "op.execute(\"ALTER TYPE mood RENAME VALUE 'bad' TO 'sad'\")": "squawk:renaming-object",
    "op.add_column('shelf', sa.Column('room', sa.Text, nullable=False))": "squawk:adding-required-field",
    "op.alter_column('shelf', 'rank', existing_type=sa.Integer, nullable=False)": "set-not-null",
    "op.alter_column('shelf', 'set', existing_type=sa.Text, server_default=None)": "squawk:ban-drop-default",
    "op.alter_column('shelf', 'sure', existing_type=sa.Text, nullable=True)": "squawk:ban-drop-not-null",
    "op.alter_column('shelf', 'name', existing_type=sa.String(50), type_=sa.String(20))": "type-changed",
    "op.alter_column('shelf', 'rank', existing_type=sa.Integer, type_=sa.SmallInteger)": "type-changed",
    "op.create_unique_constraint('one_rank', 'shelf', ['rank'])": "new-unique",
    "op.create_check_constraint('positive', 'shelf', 'rank > 0', postgresql_not_valid=True)": "new-check",
    "op.create_foreign_key('on', 'book', 'shelf', ['shelf_id'], ['id'], postgresql_not_valid=True)": "new-foreign-key",
    "op.add_column('shelf', sa.Column('a', sa.Integer))\nop.add_column('shelf', sa.Column('b', sa.Integer))\n"
    "op.create_check_constraint('c', 'shelf', 'num_nonnulls(a, b) = 1', postgresql_not_valid=True)": "new-check",
    "op.add_column('shelf', sa.Column('a', sa.Integer))\n"
    "op.create_check_constraint('c', 'shelf', 'a IS NOT NULL AND a > 0', postgresql_not_valid=True)": "new-check",
    "op.add_column('shelf', sa.Column('a', sa.Integer))\n"
    "op.create_check_constraint('c', 'shelf', 'coalesce(a, 0) > 0', postgresql_not_valid=True)": "new-check",
    "op.add_column('shelf', sa.Column('a', sa.Integer))\n"
    "op.create_check_constraint('c', 'shelf', 'a IS DISTINCT FROM 0', postgresql_not_valid=True)": "new-check",
    "op.create_check_constraint('c', 'shelf', 'false', postgresql_not_valid=True)": "new-check",
    "op.execute('ALTER TABLE shelf ADD COLUMN a int CHECK (a IS NOT NULL)')": "new-check",
    "op.execute('ALTER TABLE shelf ADD COLUMN a int CHECK (a < rank)')": "new-check",
    "op.execute('ALTER TABLE shelf ADD COLUMN a int DEFAULT 1 CHECK (a < rank)')": "new-check",
    "op.execute('ALTER TABLE shelf ALTER COLUMN name TYPE text USING left(name, 10)')": "type-changed",
    "op.execute('ALTER TABLE shelf ALTER COLUMN name TYPE varchar(50) COLLATE \"C\"')": "type-changed",
    "op.execute('CREATE TABLE IF NOT EXISTS book (id bigint)')\nop.execute('TRUNCATE book')": "truncate",
    "op.execute('TRUNCATE book')": "truncate",
    "op.drop_index('one_name', 'shelf')": "unique-dropped",
    "with op.get_context().autocommit_block():\n"
    "    op.create_index('i', 'shelf', ['rank'], unique=True, postgresql_concurrently=True)": "new-unique",
}
LOCKING = {
    "op.create_index('by_rank', 'shelf', ['rank'])": "squawk:require-concurrent-index-creation",
    "op.drop_index('one_name', 'shelf')": "squawk:require-concurrent-index-deletion",
    "op.create_foreign_key('on', 'book', 'shelf', ['shelf_id'], ['id'])": "squawk:adding-foreign-key-constraint",
    "op.create_check_constraint('positive', 'shelf', 'rank > 0')": "squawk:constraint-missing-not-valid",
    "op.create_unique_constraint('one_rank', 'shelf', ['rank'])": "squawk:disallowed-unique-constraint",
    "op.add_column('shelf', sa.Column('at', sa.DateTime, server_default=sa.text('clock_timestamp()')))": (
        "squawk:adding-field-with-default"
    ),
    "op.alter_column('shelf', 'rank', existing_type=sa.Integer, type_=sa.BigInteger)": "type-written-anew",
    "op.alter_column('shelf', 'set', existing_type=sa.Text, nullable=False)": "set-not-null-reads-the-table",
    "op.add_column('shelf', sa.Column('x', sa.Text))\nop.execute(\"UPDATE shelf SET x = ''\")": (
        "rows-in-the-transaction-of-a-change"
    ),
}
HARMLESS = [
    "op.add_column('shelf', sa.Column('room', sa.Text))",
    "op.add_column('shelf', sa.Column('room', sa.Text, nullable=False, server_default='none'))",
    "op.create_table('room', sa.Column('id', sa.BigInteger, primary_key=True), sa.Column('n', sa.Text, unique=True))\n"
    "op.create_index('room_n', 'room', ['n'])",
    "op.alter_column('shelf', 'name', existing_type=sa.String(50), type_=sa.String(80))",
    "op.alter_column('shelf', 'name', existing_type=sa.String(50), type_=sa.Text)",
    "op.execute(\"ALTER TYPE mood ADD VALUE 'sad'\")",
    'op.execute("UPDATE shelf SET rank = 1 WHERE rank IS NULL")',
    "op.add_column('shelf', sa.Column('tag', sa.Text))\nwith op.get_context().autocommit_block():\n"
    "    op.create_index('i', 'shelf', ['tag'], unique=True, postgresql_concurrently=True)",
    "op.add_column('book', sa.Column('on_id', sa.BigInteger))\n"
    "op.create_foreign_key('on', 'book', 'shelf', ['on_id'], ['id'], postgresql_not_valid=True)",
    "op.add_column('shelf', sa.Column('a', sa.Integer))\nop.add_column('shelf', sa.Column('b', sa.Text))\n"
    "op.create_check_constraint('c', 'shelf', \"a > 0 AND (b IN ('x', 'y') OR length(b) < 9)\", "
    "postgresql_not_valid=True)",
    "op.execute('ALTER TABLE shelf ADD COLUMN a int CHECK (a > 0)')",
    "op.execute('ALTER TABLE shelf ADD COLUMN a int DEFAULT 1 CHECK (a > 0 AND a IS NOT NULL)')",
    "with op.batch_alter_table('shelf') as shelf:\n    shelf.add_column(sa.Column('room', sa.Text))",
    # A new table may be filled, changed and indexed at will; rows that stand in the script are soon written.
    "op.create_table('room', sa.Column('id', sa.BigInteger, primary_key=True))\n"
    "op.execute('ALTER TABLE public.room ADD COLUMN n serial')\nop.execute('UPDATE room SET n = 1')\n"
    "op.execute('INSERT INTO room (id) VALUES (1)')\nop.execute('DELETE FROM room')",
    "op.add_column('shelf', sa.Column('x', sa.Text))\nop.execute('INSERT INTO book (id) VALUES (1)')\n"
    "op.execute(\"SELECT setval('shelf_id_seq', 7)\")",
]

# Whatever was there before. In one chain: the later ones change nothing that these are about.
EACH = [
    ("op.execute('DROP TRIGGER t ON shelf')", "breaks", "dropped"),
    ("op.execute('DROP OWNED BY bob')", "breaks", "drop-owned"),
    ("op.execute('REVOKE ALL ON shelf FROM bob')", "breaks", "revoke"),
    ("op.execute('ALTER TABLE shelf ENABLE ROW LEVEL SECURITY')", "breaks", "right-to-rows"),
    ("op.execute('ALTER TABLE shelf OWNER TO bob')", "breaks", "right-to-rows"),
    ("op.execute('CREATE RULE r AS ON INSERT TO shelf DO INSTEAD NOTHING')", "breaks", "rule"),
    ("op.execute('DELETE FROM shelf')", "breaks", "all-rows-deleted"),
    ("op.execute('ALTER TABLE shelf SET SCHEMA other')", "breaks", "squawk:ban-set-schema"),
    ("op.execute('DROP VIEW names')", "breaks", "squawk:ban-drop-view"),
    ("op.execute('DROP FUNCTION f()')", "breaks", "squawk:ban-drop-function"),
    (
        "op.execute('-- squawk-ignore ban-drop-column\\nALTER TABLE book DROP COLUMN x')",
        "breaks",
        "squawk:ban-drop-column",
    ),
    ("op.execute(\"UPDATE shelf SET name = ''\")", "locks", "all-rows-at-once"),
    ("op.execute('ALTER TABLE shelf ADD COLUMN n serial')", "locks", "written-anew"),
    ("op.execute('ALTER TABLE shelf SET UNLOGGED')", "locks", "written-anew"),
    ("op.execute('CLUSTER shelf USING one_name')", "locks", "written-anew"),
    ("with op.get_context().autocommit_block():\n    op.execute('VACUUM FULL shelf')", "locks", "written-anew"),
    ("op.execute('LOCK TABLE public.shelf IN ACCESS EXCLUSIVE MODE')", "locks", "lock-table"),
    ("op.execute('REFRESH MATERIALIZED VIEW m')", "locks", "refresh"),
    ("op.create_index('k', 'shelf', ['rank'], postgresql_concurrently=True)", "locks", "outside-of-transactions"),
    (
        "op.add_column('shelf', sa.Column('y', sa.Text))\nop.execute('UPDATE book SET shelf_id = 1 WHERE id = 1')",
        "locks",
        "rows-in-the-transaction-of-a-change",
    ),
    (
        "op.add_column('shelf', sa.Column('z', sa.Text))\nop.execute('INSERT INTO book (id) SELECT id FROM shelf')",
        "locks",
        "rows-in-the-transaction-of-a-change",
    ),
    (
        "op.add_column('book', sa.Column('w', sa.Text))\n"
        'op.execute("WITH d AS (UPDATE shelf SET rank = 1 WHERE id = 1 RETURNING id) SELECT count(*) FROM d")',
        "locks",
        "rows-in-the-transaction-of-a-change",
    ),
    ("op.execute('DO $$ BEGIN ALTER TABLE shelf DROP COLUMN name; END $$')", "unread", "unread"),
    ("op.execute('SELECT drop_what_is_old()')", "unread", "unread"),
    ("op.execute('CREATE TRIGGER t BEFORE INSERT ON shelf FOR EACH ROW EXECUTE FUNCTION f()')", "unread", "unread"),
]


def chain(folder: Path, *steps: str, says: str = "") -> Scripts:
    """Scripts 0001, 0002, …; ``says`` is in the last."""
    versions = folder / "library" / "versions"
    versions.mkdir(parents=True)
    for number, step in enumerate(steps, 1):
        before = f'"{number - 1:04}"' if number > 1 else "None"
        body = "\n".join(f"    {line}" for line in step.strip().splitlines())
        extra = says if number == len(steps) else ""
        text = f'{HEAD}revision = "{number:04}"\ndown_revision = {before}\n{extra}\ndef upgrade():\n{body}\n'
        (versions / f"{number:04}_step.py").write_text(text, "utf-8")
    return Scripts(folder / "library", "schema_version", "library")


def rules(findings: list[Finding], kind: str) -> set[str]:
    return {finding.judgement.rule for finding in findings if finding.judgement.kind == kind}


@pytest.mark.parametrize(("step", "rule"), BREAKING.items(), ids=list(BREAKING))
def test_what_an_older_version_does_not_survive_is_told(step: str, rule: str, tmp_path: Path) -> None:
    found = lint(chain(tmp_path, TABLES, step))

    assert rule in rules(found, "breaks")
    assert {finding.revision for finding in found} == {"0002"}
    assert all(finding.accepted is None and finding.judgement.instead for finding in found)


@pytest.mark.parametrize(("step", "rule"), LOCKING.items(), ids=list(LOCKING))
def test_what_holds_others_up_is_told(step: str, rule: str, tmp_path: Path) -> None:
    assert rule in rules(lint(chain(tmp_path, TABLES, step)), "locks")


def test_each_statement_is_told_of_that_holds_others_up_or_cannot_be_survived_or_read(tmp_path: Path) -> None:
    found = lint(chain(tmp_path, TABLES, *(step for step, _, _ in EACH)))

    told = {(finding.revision, finding.judgement.kind, finding.judgement.rule) for finding in found}
    missed = [step for number, (step, kind, rule) in enumerate(EACH, 2) if (f"{number:04}", kind, rule) not in told]
    assert missed == []


@pytest.mark.parametrize("step", HARMLESS)
def test_what_an_older_version_does_not_notice_is_not_told(step: str, tmp_path: Path) -> None:
    assert lint(chain(tmp_path, TABLES, step)) == []


def test_a_column_is_made_not_null_in_steps_that_nobody_waits_for(tmp_path: Path) -> None:
    add = "op.execute('ALTER TABLE shelf ADD CONSTRAINT c CHECK (rank IS NOT NULL) NOT VALID')"
    validate = "op.execute('ALTER TABLE shelf VALIDATE CONSTRAINT c')"
    make = "op.alter_column('shelf', 'rank', existing_type=sa.Integer, nullable=False)"

    found = lint(chain(tmp_path, TABLES, add, validate, make))

    assert [(finding.revision, finding.judgement.rule) for finding in found] == [("0002", "new-check")]


def test_a_check_that_was_dropped_again_does_not_keep_null_out(tmp_path: Path) -> None:
    add = "op.execute('ALTER TABLE shelf ADD CONSTRAINT c CHECK (rank IS NOT NULL) NOT VALID')"
    validate = "op.execute('ALTER TABLE shelf VALIDATE CONSTRAINT c')"
    drop = "op.execute('ALTER TABLE shelf DROP CONSTRAINT c')"
    make = "op.alter_column('shelf', 'rank', existing_type=sa.Integer, nullable=False)"

    found = lint(chain(tmp_path, TABLES, add, validate, drop, make))

    assert {(finding.revision, finding.judgement.rule) for finding in found} >= {
        ("0005", "set-not-null"),
        ("0005", "set-not-null-reads-the-table"),
    }


def test_a_contract_step_that_says_so_is_listed_and_accepted(tmp_path: Path) -> None:
    scripts = chain(tmp_path, TABLES, "op.drop_table('book')", says='contract = "no reader since v2"')

    assert [finding.accepted for finding in lint(scripts)] == ["no reader since v2"]


def test_a_sentence_about_locks_does_not_accept_what_breaks(tmp_path: Path) -> None:
    scripts = chain(tmp_path, TABLES, "op.drop_table('book')", says='locks = "it is a small table"')

    assert [finding.accepted for finding in lint(scripts)] == [None]


def test_two_scripts_after_the_same_one_are_refused(tmp_path: Path) -> None:
    scripts = chain(tmp_path, TABLES, "op.drop_table('book')", "op.drop_table('shelf')")
    last = scripts.versions / "0003_step.py"
    last.write_text(last.read_text("utf-8").replace('down_revision = "0002"', 'down_revision = "0001"'), "utf-8")
    with pytest.raises(ConfigurationError, match="library end in 0002 and 0003: let one of them come after the other"):
        lint(scripts)


def test_a_word_is_no_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="contract must be a sentence that says why, not 'yes'"):
        lint(chain(tmp_path, TABLES, "op.drop_table('book')", says='contract = "yes"'))


def test_what_is_made_and_changed_before_a_release_is_nobody_s(tmp_path: Path) -> None:
    scripts = chain(tmp_path, TABLES, "op.create_table('room', sa.Column('id', sa.Integer))", "op.drop_table('room')")

    assert rules(lint(scripts), "breaks") == {"squawk:ban-drop-table"}
    assert lint(scripts, since="0001") == []
    assert rules(lint(scripts, since="0002"), "breaks") == {"squawk:ban-drop-table"}
    assert lint(scripts, since="base") == []
    with pytest.raises(ConfigurationError, match="library have no revision '7'; they have: 0001, 0002, 0003"):
        lint(scripts, since="7")


def test_a_script_that_reads_rows_cannot_be_judged_and_is_refused_unless_a_person_did(tmp_path: Path) -> None:
    step = "for row in op.get_bind().execute(sa.text('SELECT id FROM shelf')):\n    op.drop_table('book')"
    found = lint(chain(tmp_path / "one", TABLES, step))

    assert [(finding.judgement.kind, finding.accepted) for finding in found] == [("unread", None)]
    said = lint(chain(tmp_path / "two", TABLES, step, says='checked = "read with Ada on Monday"'))
    assert [finding.accepted for finding in said] == ["read with Ada on Monday"]
