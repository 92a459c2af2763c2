"""What the members of a simulated etcd agree upon: keys with their history, and leases.

It changes by entries only, one after the other, and each entry gives the same wherever it is applied; so one copy
serves all members. A member that is behind reads it as of an older revision. Keys are kept as the JSON gateway shows
them (64-bit numbers as texts, bytes in base64, zeroes left out), since nearly all that is asked is to show them.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable
from typing import Any

Wire = dict[str, Any]
Told = Callable[..., None]
"""Takes kind, lease, key, revision and value: for the history of the run."""

INVALID_ARGUMENT = 3
NOT_FOUND = 5
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
OUT_OF_RANGE = 11
UNAVAILABLE = 14

NO_KEY = (INVALID_ARGUMENT, "etcdserver: key is not provided")
NO_LEASE = (NOT_FOUND, "etcdserver: requested lease not found")
NO_SPACE = (RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
LEASE_EXISTS = (FAILED_PRECONDITION, "etcdserver: lease already exists")
COMPACTED = (OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
FUTURE = (OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")
NOT_SUPPORTED = (INVALID_ARGUMENT, "this simulated etcd does not know such a request")

TTL_MIN_S = 2
"""As etcd with its default election timeout."""

TTL_MAX_S = 9_000_000_000


class Refused(Exception):
    """A request that can't be done; nothing has changed. Its arguments: the code and text of gRPC."""


class Item:
    """One version of a key. Never changed."""

    __slots__ = ("create_revision", "key", "lease", "mod_revision", "version", "wire")

    def __init__(self, key: bytes, wire_key: str, value: str, lease: int, revision: int, before: Item | None) -> None:
        self.key = key
        self.lease = lease
        self.mod_revision = revision
        self.create_revision: int = revision if before is None else before.create_revision
        self.version: int = 1 if before is None else before.version + 1
        self.wire: Wire = {
            "key": wire_key,
            "create_revision": str(self.create_revision),
            "mod_revision": str(revision),
            "version": str(self.version),
        }
        if value:
            self.wire["value"] = value
        if lease:
            self.wire["lease"] = str(lease)


class Change:
    """A key was put or deleted (`after` None)."""

    __slots__ = ("after", "before", "event", "key", "revision")

    def __init__(self, revision: int, key: bytes, before: Item | None, after: Item | None) -> None:
        self.revision = revision
        self.key = key
        self.before = before
        self.after = after
        if after is not None:
            self.event: Wire = {"kv": after.wire}
        else:
            assert before is not None
            self.event = {"type": "DELETE", "kv": {"key": before.wire["key"], "mod_revision": str(revision)}}


class LeaseRecord:
    """A lease as all members know it: its time to live, not how much of that is left. `keys` is in order of putting."""

    __slots__ = ("id", "keys", "ttl_s")

    def __init__(self, lease_id: int, ttl_s: int) -> None:
        self.id = lease_id
        self.ttl_s = ttl_s
        self.keys: dict[bytes, str] = {}


class State:
    """Keys and leases. `told` hears of every change. It refuses what needs room while `full` is not zero."""

    def __init__(self, told: Told) -> None:
        self.revision = 1
        self.compacted = 0
        self.full = 0
        self.refused = 0
        self.items: dict[bytes, Item] = {}
        self.history: list[Change] = []
        self.leases: dict[int, LeaseRecord] = {}
        self.told = told
        self._keys: list[bytes] = []
        self._entries: dict[str, Callable[[Wire], Wire]] = {
            "kv/put": self._put,
            "kv/txn": self._txn,
            "kv/deleterange": self._delete_range,
            "kv/compaction": self._compact,
            "lease/grant": self._grant,
            "lease/revoke": self._revoke,
            "lease/expire": self._expire,
        }

    def apply(self, path: str, payload: Wire) -> Wire:
        """Take in an entry; the answer's body, without its header. Raises `Refused`."""
        return self._entries[path](payload)

    def range(self, payload: Wire, at: int, compacted: int) -> Wire:
        """As `kv/range`, for a member that has seen the changes up to revision `at`. Raises `Refused`."""
        start, end = bounds(payload)
        asked = int(payload.get("revision", 0))
        if asked > at:
            raise Refused(*FUTURE)
        if 0 < asked < compacted:
            raise Refused(*COMPACTED)
        items = self._between(start, end, asked or at)
        if payload.get("count_only"):
            return {"count": str(len(items))} if items else {}
        return {"kvs": [item.wire for item in items], "count": str(len(items))} if items else {}

    def first_after(self, revision: int) -> int:
        """Where in the history the changes above a revision begin."""
        return bisect_right(self.history, revision, key=_revision_of)

    # --- keys -------------------------------------------------------------------------------------------

    def _between(self, start: bytes, end: bytes | None, at: int) -> list[Item]:
        if at == self.revision:
            if end is None:
                item = self.items.get(start)
                return [] if item is None else [item]
            return [self.items[key] for key in self._span(start, end)]
        return self._between_then(start, end, at)

    def _between_then(self, start: bytes, end: bytes | None, at: int) -> list[Item]:
        """Undo what came after a revision."""
        keys = self._span(start, end) if end is not None else [key for key in (start,) if key in self.items]
        found = {key: self.items[key] for key in keys}
        for change in reversed(self.history[self.first_after(at) :]):
            if within(change.key, start, end):
                if change.before is None:
                    found.pop(change.key, None)
                else:
                    found[change.key] = change.before
        return [found[key] for key in sorted(found)]

    def _span(self, start: bytes, end: bytes) -> list[bytes]:
        keys = self._keys
        return keys[bisect_left(keys, start) : len(keys) if end == b"\0" else bisect_left(keys, end)]

    def _put(self, payload: Wire) -> Wire:
        self._check_put(payload)
        self.revision += 1
        self._do_put(payload)
        return {}

    def _check_room(self) -> None:
        if self.full:
            self.refused += 1
            raise Refused(*NO_SPACE)

    def _check_put(self, payload: Wire) -> None:
        self._check_room()
        lease = int(payload.get("lease", 0))
        if lease and lease not in self.leases:
            raise Refused(*NO_LEASE)

    def _do_put(self, payload: Wire) -> Wire:
        key, _ = bounds(payload)
        before = self.items.get(key)
        if before is None:
            insort(self._keys, key)
        elif before.lease:
            self.leases[before.lease].keys.pop(key, None)
        lease, value = int(payload.get("lease", 0)), payload.get("value", "")
        item = Item(key, payload["key"], value, lease, self.revision, before)
        self.items[key] = item
        if lease:
            self.leases[lease].keys[key] = payload["key"]
        self.history.append(Change(self.revision, key, before, item))
        self.told("put" if before is not None else "created", lease, key, self.revision, value)
        return {"response_put": {"header": {"revision": str(self.revision)}}}

    def _delete_range(self, payload: Wire) -> Wire:
        start, end = bounds(payload)
        keys = [item.key for item in self._between(start, end, self.revision)]
        if not keys:
            return {}
        self.revision += 1
        for key in keys:
            self._drop(key)
        return {"deleted": str(len(keys))}

    def _drop(self, key: bytes) -> None:
        before = self.items.pop(key)
        del self._keys[bisect_left(self._keys, key)]
        if before.lease:
            self.leases[before.lease].keys.pop(key, None)
        self.history.append(Change(self.revision, key, before, None))
        self.told("deleted", before.lease, key, self.revision, "")

    def _compact(self, payload: Wire) -> Wire:
        revision = int(payload["revision"])
        if revision > self.revision:
            raise Refused(*FUTURE)
        if revision <= self.compacted:
            raise Refused(*COMPACTED)
        self.compacted = revision
        return {}

    # --- transactions -----------------------------------------------------------------------------------

    def _txn(self, payload: Wire) -> Wire:
        held = all(self._compare(each) for each in payload.get("compare", ()))
        steps = payload.get("success" if held else "failure", ())
        for step in steps:
            if "request_put" in step:
                self._check_put(step["request_put"])
        before = self.revision
        body: Wire = {"succeeded": True} if held else {}
        if responses := [self._step(step, before) for step in steps]:
            body["responses"] = responses
        return body

    def _step(self, step: Wire, before: int) -> Wire:
        if "request_range" in step:
            found = self.range(step["request_range"], self.revision, self.compacted)
            return {"response_range": {"header": {"revision": str(self.revision)}, **found}}
        if "request_put" in step:
            self.revision = before + 1
            return self._do_put(step["request_put"])
        if "request_delete_range" not in step:
            raise Refused(*NOT_SUPPORTED)
        start, end = bounds(step["request_delete_range"])
        keys = [item.key for item in self._between(start, end, self.revision)]
        if keys:
            self.revision = before + 1
        for key in keys:
            self._drop(key)
        deleted = {"deleted": str(len(keys))} if keys else {}
        return {"response_delete_range": {"header": {"revision": str(self.revision)}, **deleted}}

    def _compare(self, compare: Wire) -> bool:
        if (compare.get("target"), compare.get("result")) != ("CREATE", "EQUAL"):
            raise Refused(*NOT_SUPPORTED)
        item = self.items.get(a2b_base64(compare["key"]))
        return (0 if item is None else item.create_revision) == int(compare.get("create_revision", 0))

    # --- leases -----------------------------------------------------------------------------------------

    def _grant(self, payload: Wire) -> Wire:
        self._check_room()
        lease_id = int(payload["ID"])
        if lease_id in self.leases:
            raise Refused(*LEASE_EXISTS)
        ttl_s = max(TTL_MIN_S, int(payload["TTL"]))
        self.leases[lease_id] = LeaseRecord(lease_id, ttl_s)
        self.told("granted", lease_id, b"", self.revision, "")
        return {"ID": str(lease_id), "TTL": str(ttl_s)}

    def _revoke(self, payload: Wire) -> Wire:
        return self._end_lease("revoked", int(payload["ID"]))

    def _expire(self, payload: Wire) -> Wire:
        """As `_revoke`, but it was the members who wanted it."""
        return self._end_lease("expired", int(payload["ID"]))

    def _end_lease(self, kind: str, lease_id: int) -> Wire:
        lease = self.leases.get(lease_id)
        if lease is None:
            raise Refused(*NO_LEASE)
        if lease.keys:
            self.revision += 1
        self.told(kind, lease_id, b"", self.revision, "")
        for key in sorted(lease.keys):
            self._drop(key)
        del self.leases[lease_id]
        return {}


def bounds(payload: Wire) -> tuple[bytes, bytes | None]:
    """The first key and the end (None: this key alone; one zero byte: no end). Raises `Refused`."""
    start = payload.get("key", "")
    if not start:
        raise Refused(*NO_KEY)
    end = payload.get("range_end", "")
    return a2b_base64(start), a2b_base64(end) if end else None


def within(key: bytes, start: bytes, end: bytes | None) -> bool:
    """Whether a key is in a range as `bounds` gives it."""
    if end is None:
        return key == start
    return start <= key and (key < end or end == b"\0")


def encoded(data: bytes) -> str:
    """Bytes as the JSON gateway writes them."""
    return b2a_base64(data, newline=False).decode()


def _revision_of(change: Change) -> int:
    return change.revision
