"""The leases on etcd, over its JSON gateway (why: docs/decisions/001-etcd-client.md).

A call whose outcome is unknown is sent again, so every write is made such that a second one does no harm: a lease
is granted under an id that we draw, a key is created only where none is, a key is deleted only while it is the one
meant. What the second try then finds tells what became of the first.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from holdfast.core.errors import KeyTaken, LeaseGone
from holdfast.core.ports import KeyChange, KeyValue, Lease, LeaseInfo, LeasesStatus, Listing
from holdfast.store.etcd_gateway import FAILED_PRECONDITION, NOT_FOUND, Answer, EtcdGateway, GatewayError, encoded
from holdfast.store.etcd_watch import Watcher, key_value, read_listing, succeeded
from holdfast.store.settings import EtcdSettings

LEASE_ID_BITS = 62
INSPECTIONS_MAX = 8


class EtcdLeases:
    """Implements the `Leases` port on etcd. `EtcdLeases.open` connects; `close` when done."""

    def __init__(self, gateway: EtcdGateway) -> None:
        self._gateway = gateway
        self._prefix = gateway.settings.prefix

    @classmethod
    async def open(cls, settings: EtcdSettings) -> EtcdLeases:
        """Connect and check the server.

        Raises `LeasesUnavailable`, `IncompatibleServer` (too old), `InvalidConfig` (credentials or certificates).
        """
        leases = cls(EtcdGateway(settings))
        try:
            await leases.status()
        except BaseException:
            await leases.close()
            raise
        return leases

    @property
    def connected(self) -> bool:
        """Whether the last call was answered."""
        return self._gateway.connected

    @property
    def down_since(self) -> float | None:
        """Time of the running loop at which the first call began that failed on every endpoint; None once answered."""
        return self._gateway.down_since

    async def grant(self, ttl_s: float) -> Lease:
        while True:
            lease_id = self._gateway.chance.getrandbits(LEASE_ID_BITS) + 1
            try:
                answer = await self._gateway.call("lease/grant", {"ID": str(lease_id), "TTL": str(math.ceil(ttl_s))})
            except GatewayError as error:
                if error.code != FAILED_PRECONDITION:
                    raise
                if error.again and (granted := await self.inspect(lease_id)) is not None:
                    return Lease(lease_id, granted.ttl_s)
            else:
                return Lease(lease_id, float(answer.body["TTL"]))

    async def keep_alive(self, lease_id: int) -> float:
        answer = await self._gateway.call("lease/keepalive", {"ID": str(lease_id)})
        remaining_s = float(answer.body.get("TTL", 0))
        if remaining_s <= 0:
            raise _gone(lease_id)
        return remaining_s

    async def revoke(self, lease_id: int) -> None:
        try:
            await self._gateway.call("lease/revoke", {"ID": str(lease_id)})
        except GatewayError as error:
            if error.code != NOT_FOUND:
                raise

    async def put(self, key: str, value: bytes, lease_id: int) -> int:
        return (await self._write(lease_id, "kv/put", self._put_request(key, value, lease_id))).revision

    async def create(self, key: str, value: bytes, lease_id: int) -> int:
        """See `Leases.create`. A try that timed out may still land once its server thaws, while the lease lives."""
        answer = await self._write(
            lease_id,
            "kv/txn",
            {
                "compare": [self._created_at(key, 0)],
                "success": [{"request_put": self._put_request(key, value, lease_id)}],
                "failure": [{"request_range": {"key": self._wire(key)}}],
            },
        )
        if succeeded(answer):
            return answer.revision
        holder = key_value(answer.body["responses"][0]["response_range"]["kvs"][0])
        if answer.again and holder.value == value and holder.lease == lease_id:
            return holder.create_revision
        raise KeyTaken(key, holder.value)

    async def delete(self, key: str, *, create_revision: int) -> bool:
        """See `Leases.delete`. When an earlier try's outcome is unknown and the key is gone, it counts as deleted."""
        answer = await self._gateway.call(
            "kv/txn",
            {
                "compare": [self._created_at(key, create_revision)],
                "success": [{"request_delete_range": {"key": self._wire(key)}}],
            },
        )
        return succeeded(answer) or answer.again

    async def list(self, prefix: str) -> Listing:
        listing = await read_listing(self._gateway, self._prefix + prefix)
        return Listing(listing.revision, tuple(self._local(item) for item in listing.items))

    async def watch(self, prefix: str, *, after: int) -> AsyncGenerator[Sequence[KeyChange], None]:
        async with aclosing(Watcher(self._gateway, self._prefix + prefix, after).changes()) as batches:
            async for batch in batches:
                yield [KeyChange(change.revision, self._strip(change.key), change.value) for change in batch]

    async def inspect(self, lease_id: int) -> LeaseInfo | None:
        info = await self._inspect(lease_id)
        return None if info is None else self._local_info(info)

    async def inspect_all(self) -> Sequence[LeaseInfo]:
        """The leases that hold keys below our prefix, and those that hold none (they may be about to)."""
        answer = await self._gateway.call("lease/leases", {})
        ids = [int(lease["ID"]) for lease in answer.body.get("leases", ())]
        limit = asyncio.Semaphore(INSPECTIONS_MAX)

        async def inspect(lease_id: int) -> LeaseInfo | None:
            async with limit:
                return await self._inspect(lease_id)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(inspect(lease_id)) for lease_id in sorted(ids)]
        found = [info for task in tasks if (info := task.result()) is not None]
        return [
            self._local_info(info)
            for info in found
            if not info.keys or any(key.startswith(self._prefix) for key in info.keys)
        ]

    async def status(self) -> LeasesStatus:
        answer = await self._gateway.call("kv/range", {"key": self._wire(""), "count_only": True})
        return LeasesStatus(answer.endpoint, self._gateway.version(answer.endpoint), answer.revision)

    async def close(self) -> None:
        await self._gateway.close()

    async def _write(self, lease_id: int, path: str, payload: dict[str, Any]) -> Answer:
        """Raises `LeaseGone` besides what `EtcdGateway.call` raises."""
        try:
            return await self._gateway.call(path, payload)
        except GatewayError as error:
            if error.code == NOT_FOUND:
                raise _gone(lease_id) from error
            raise

    async def _inspect(self, lease_id: int) -> LeaseInfo | None:
        answer = await self._gateway.call("lease/timetolive", {"ID": str(lease_id), "keys": True})
        remaining_s = float(answer.body.get("TTL", 0))
        if remaining_s < 0:
            return None
        keys = tuple(key_value({"key": key}).key for key in answer.body.get("keys", ()))
        return LeaseInfo(lease_id, float(answer.body.get("grantedTTL", 0)), remaining_s, keys)

    def _put_request(self, key: str, value: bytes, lease_id: int) -> dict[str, str]:
        return {"key": self._wire(key), "value": encoded(value), "lease": str(lease_id)}

    def _created_at(self, key: str, revision: int) -> dict[str, str]:
        return {"key": self._wire(key), "target": "CREATE", "result": "EQUAL", "create_revision": str(revision)}

    def _wire(self, key: str) -> str:
        return encoded(self._prefix + key)

    def _strip(self, key: str) -> str:
        return key.removeprefix(self._prefix)

    def _local(self, item: KeyValue) -> KeyValue:
        return msgspec.structs.replace(item, key=self._strip(item.key))

    def _local_info(self, info: LeaseInfo) -> LeaseInfo:
        keys = sorted(self._strip(key) for key in info.keys if key.startswith(self._prefix))
        return LeaseInfo(info.id, info.ttl_s, min(info.remaining_s, info.ttl_s), tuple(keys))


def _gone(lease_id: int) -> LeaseGone:
    return LeaseGone(f"lease {lease_id:x} has expired or was revoked")
