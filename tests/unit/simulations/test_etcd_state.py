"""What the members of a simulated etcd agree upon: keys with their revisions, transactions, compaction, leases."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.simulations.etcd.state import COMPACTED, FUTURE, LEASE_EXISTS, NO_KEY, NO_LEASE, NO_SPACE, Refused, State
from holdfast.store.etcd_gateway import encoded, prefix_range

ALL = {"key": encoded("\0"), "range_end": encoded("\0")}


def state() -> State:
    return State(lambda *_told: None)


def put(key: str, value: str = "", lease: int = 0) -> dict[str, str]:
    return {"key": encoded(key), "value": encoded(value), "lease": str(lease)}


def create(key: str, lease: int = 0) -> dict[str, Any]:
    return {
        "compare": [{"key": encoded(key), "target": "CREATE", "result": "EQUAL", "create_revision": "0"}],
        "success": [{"request_put": put(key, "new", lease)}],
        "failure": [{"request_range": {"key": encoded(key)}}],
    }


def revisions(found: dict[str, Any]) -> list[tuple[int, ...]]:
    names = "create_revision", "mod_revision", "version"
    return [tuple(int(item[name]) for name in names) for item in found.get("kvs", ())]


def test_revisions_count_every_change() -> None:
    keys = state()
    for key in ("b", "a", "b"):
        keys.apply("kv/put", put(key))
    assert keys.revision == 4
    assert revisions(keys.range(ALL, 4, 0)) == [(3, 3, 1), (2, 4, 2)]
    assert keys.apply("kv/deleterange", ALL) == {"deleted": "2"}
    assert keys.revision == 5
    assert keys.apply("kv/deleterange", ALL) == {}
    assert keys.revision == 5


def test_a_range_ends_before_its_end_and_a_key_alone_is_one() -> None:
    keys = state()
    for key in ("a", "ab", "b"):
        keys.apply("kv/put", put(key))
    assert keys.range({**prefix_range("a"), "count_only": True}, 4, 0) == {"count": "2"}
    assert keys.range({"key": encoded("a"), "count_only": True}, 4, 0) == {"count": "1"}
    assert keys.range({"key": encoded("ab"), "range_end": encoded("\0"), "count_only": True}, 4, 0) == {"count": "2"}
    assert keys.range({"key": encoded("z")}, 4, 0) == {}
    with pytest.raises(Refused) as refused:
        keys.range({"key": ""}, 4, 0)
    assert refused.value.args == NO_KEY


def test_an_older_revision_shows_what_was_then() -> None:
    keys = state()
    shown = []
    for step in (("a", "1"), ("b", "1"), ("a", "2")):
        keys.apply("kv/put", put(*step))
        shown.append(keys.range(ALL, keys.revision, 0))
    keys.apply("kv/deleterange", {"key": encoded("a")})
    keys.apply("kv/put", put("a", "3"))
    for revision, found in enumerate(shown, start=2):
        assert keys.range({**ALL, "revision": str(revision)}, keys.revision, 0) == found
        assert keys.range(ALL, revision, 0) == found
    assert revisions(keys.range({"key": encoded("a")}, keys.revision, 0)) == [(6, 6, 1)]


def test_what_is_compacted_or_to_come_can_not_be_read() -> None:
    keys = state()
    for number in range(4):
        keys.apply("kv/put", put("a", f"{number}"))
    keys.apply("kv/compaction", {"revision": "4"})
    assert keys.compacted == 4
    for revision, told in ((3, COMPACTED), (6, FUTURE)):
        with pytest.raises(Refused) as refused:
            keys.range({"key": encoded("a"), "revision": str(revision)}, 5, 4)
        assert refused.value.args == told
    assert revisions(keys.range({"key": encoded("a"), "revision": "4"}, 5, 4)) == [(2, 4, 3)]
    for revision, told in ((4, COMPACTED), (9, FUTURE)):
        with pytest.raises(Refused) as refused:
            keys.apply("kv/compaction", {"revision": str(revision)})
        assert refused.value.args == told


def test_a_transaction_puts_only_where_nothing_is() -> None:
    keys = state()
    answer = keys.apply("kv/txn", create("a"))
    assert answer == {"succeeded": True, "responses": [{"response_put": {"header": {"revision": "2"}}}]}
    answer = keys.apply("kv/txn", create("a"))
    assert "succeeded" not in answer
    (response,) = answer["responses"]
    assert response["response_range"]["header"] == {"revision": "2"}
    assert response["response_range"]["kvs"][0]["value"] == encoded("new")
    assert keys.revision == 2


def test_a_put_needs_its_lease_and_a_transaction_only_where_it_would_put() -> None:
    keys = state()
    for path, payload in (("kv/put", put("a", "", 7)), ("kv/txn", create("a", 7))):
        with pytest.raises(Refused) as refused:
            keys.apply(path, payload)
        assert refused.value.args == NO_LEASE
    assert keys.revision == 1
    keys.apply("kv/put", put("a"))
    assert "succeeded" not in keys.apply("kv/txn", create("a", 7))


def test_a_lease_takes_its_keys_along_in_one_revision() -> None:
    keys = state()
    assert keys.apply("lease/grant", {"ID": "7", "TTL": "1"}) == {"ID": "7", "TTL": "2"}
    with pytest.raises(Refused) as refused:
        keys.apply("lease/grant", {"ID": "7", "TTL": "60"})
    assert refused.value.args == LEASE_EXISTS
    for key in ("b", "a", "kept"):
        keys.apply("kv/put", put(key, "", 7))
    keys.apply("kv/put", put("kept"))
    keys.apply("lease/revoke", {"ID": "7"})
    assert [(change.key, change.revision) for change in keys.history[-2:]] == [(b"a", 6), (b"b", 6)]
    assert list(keys.items) == [b"kept"]
    with pytest.raises(Refused) as refused:
        keys.apply("lease/revoke", {"ID": "7"})
    assert refused.value.args == NO_LEASE


def test_a_lease_without_keys_ends_without_a_revision() -> None:
    keys = state()
    keys.apply("lease/grant", {"ID": "7", "TTL": "5"})
    keys.apply("lease/expire", {"ID": "7"})
    assert keys.revision == 1


def test_without_space_only_what_makes_room_is_taken() -> None:
    keys = state()
    keys.apply("lease/grant", {"ID": "7", "TTL": "5"})
    keys.apply("kv/put", put("a", "", 7))
    keys.full = 1
    for path, payload in (
        ("kv/put", put("a")),
        ("kv/txn", create("b")),
        ("lease/grant", {"ID": "8", "TTL": "5"}),
    ):
        with pytest.raises(Refused) as refused:
            keys.apply(path, payload)
        assert refused.value.args == NO_SPACE
    keys.apply("kv/deleterange", {"key": encoded("a")})
    keys.apply("lease/revoke", {"ID": "7"})
    assert not keys.items
