from pathlib import Path

import pyarrow as pa
import pytest

from ragtuned_pipeline.orchestration.io import TableStore, fingerprint, with_fingerprint
from ragtuned_pipeline.tables import Failure, check_schema, content_hash, failures_table, table


@pytest.fixture
def store(tmp_path: Path) -> TableStore:
    return TableStore(str(tmp_path / "tables"))


DATA = pa.table({"a": ["x", None, "z"], "n": [[1], [], None]})


def test_a_table_comes_back_as_it_was(store: TableStore) -> None:
    store.write("t", "corpus", with_fingerprint(DATA, "key"))
    assert store.read("t", "corpus").equals(DATA)
    assert store.read("t", "corpus").schema.metadata is None
    first = store.path("t", "corpus").read_bytes()
    store.write("t", "corpus", with_fingerprint(store.read("t", "corpus"), "key"))
    assert store.path("t", "corpus").read_bytes() == first


def test_any_fsspec_address_serves(tmp_path: Path) -> None:
    store = TableStore("memory://ragtuned-test/tables")
    store.write("t", "corpus", DATA)
    assert store.read("t", "corpus").equals(DATA)


def test_a_failed_write_leaves_the_old_table(store: TableStore, monkeypatch) -> None:
    store.write("t", "corpus", DATA)

    def broken(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.ParquetWriter", broken)
    with pytest.raises(OSError, match="No space"):
        store.write("t", "corpus", DATA.slice(0, 1))
    monkeypatch.undo()
    assert store.read("t", "corpus").equals(DATA)
    assert [p.name for p in (Path(str(store.base)) / "t").iterdir()] == ["corpus.parquet"]


def test_a_kept_result_needs_every_table_and_the_same_fingerprint(store: TableStore) -> None:
    store.write("a", "c", with_fingerprint(DATA, "key"))
    assert store.cached(["a"], "c", "key") == {"a": DATA}
    assert store.cached(["a", "b"], "c", "key") is None
    assert store.cached(["a"], "c", "other") is None
    store.write("b", "c", with_fingerprint(DATA, "older"))
    assert store.cached(["a", "b"], "c", "key") is None


def test_a_fingerprint_depends_on_each_part_and_not_on_the_order_of_inputs() -> None:
    one = fingerprint("1", "{}", {"a": "x", "b": "y"})
    assert one == fingerprint("1", "{}", {"b": "y", "a": "x"})
    others = [
        fingerprint("2", "{}", {"a": "x", "b": "y"}),
        fingerprint("1", "{1}", {"a": "x", "b": "y"}),
        fingerprint("1", "{}", {"a": "y", "b": "x"}),
    ]
    assert len({one, *others}) == 4


def test_equal_values_have_equal_hashes_however_they_are_held(store: TableStore) -> None:
    chunked = pa.concat_tables([DATA.slice(0, 1), DATA.slice(1)])
    store.write("t", "c", DATA)
    assert content_hash(DATA) == content_hash(chunked) == content_hash(store.read("t", "c"))
    assert content_hash(DATA) != content_hash(DATA.slice(1))


def test_the_order_in_which_failures_were_found_does_not_show() -> None:
    found = [Failure("s", "b", "r"), Failure("s", "a", "r")]
    assert failures_table(found).equals(failures_table(found[::-1]))


def test_a_row_with_a_wrong_column_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lacks \['at'\].*unknown \['when'\]"):
        table(
            "failures",
            [{"stage": "s", "item_id": "i", "reason": "r", "attempts": 1, "when": ""}],
        )
    with pytest.raises(ValueError, match="column attempts is string, expected int64"):
        check_schema(
            "failures",
            failures_table([]).set_column(3, "attempts", pa.array([], pa.string())),
        )
