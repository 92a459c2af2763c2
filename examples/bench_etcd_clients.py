"""Measures two ways to talk to etcd from asyncio: its JSON gateway over httpx, and gRPC through aetcd.

    pip install 'holdfast[embedded]' aetcd
    python examples/bench_etcd_clients.py

Starts an etcd of its own, and each client in a fresh process, one after the other. Decision 001 quotes the output.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

CALLS = 1000
WATCHED = 300
TTL_S = 30
KEY = "bench"


class Figures(msgspec.Struct):
    """One client's figures. Rates are of one call after the other."""

    import_ms: float
    resident_mib: float
    threads: int
    puts_per_s: float
    keep_alives_per_s: float
    watch_p50_ms: float
    watch_p99_ms: float
    processor_ms_per_put: float


async def measure(client: Any, import_ms: float) -> Figures:
    """Drive a client that has put(), keep_alive() and watch()."""
    processor = time.process_time()
    puts_per_s = await rate(lambda: client.put(b"x" * 100))
    processor_ms = (time.process_time() - processor) / CALLS * 1000
    keep_alives_per_s = await rate(client.keep_alive)
    latencies_ms = await watch_latencies_ms(client)
    return Figures(
        import_ms=import_ms,
        resident_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        threads=len(os.listdir("/proc/self/task")),
        puts_per_s=puts_per_s,
        keep_alives_per_s=keep_alives_per_s,
        watch_p50_ms=statistics.median(latencies_ms),
        watch_p99_ms=statistics.quantiles(latencies_ms, n=100)[98],
        processor_ms_per_put=processor_ms,
    )


async def rate(call: Any) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        await call()
    return CALLS / (time.perf_counter() - start)


async def watch_latencies_ms(client: Any) -> list[float]:
    """From before a put to the arrival of its event, in milliseconds."""
    latencies_ms: list[float] = []
    arrived = asyncio.Event()

    async def watch() -> None:
        async for value in client.watch():
            latencies_ms.append((time.perf_counter() - float(value)) * 1000)
            arrived.set()

    task = asyncio.create_task(watch())
    await asyncio.sleep(0.5)
    for _ in range(WATCHED):
        arrived.clear()
        await client.put(str(time.perf_counter()).encode())
        await arrived.wait()
    task.cancel()
    await asyncio.wait([task])
    return latencies_ms


async def gateway(url: str) -> Figures:
    start = time.perf_counter()
    from holdfast.store.etcd import EtcdLeases
    from holdfast.store.settings import EtcdSettings

    import_ms = (time.perf_counter() - start) * 1000

    class Client:
        def __init__(self, leases: EtcdLeases, lease: int) -> None:
            self.leases, self.lease = leases, lease

        async def put(self, value: bytes) -> None:
            await self.leases.put(KEY, value, self.lease)

        async def keep_alive(self) -> None:
            await self.leases.keep_alive(self.lease)

        async def watch(self) -> Any:
            after = (await self.leases.list(KEY)).revision
            async for batch in self.leases.watch(KEY, after=after):
                for change in batch:
                    if change.value is not None:
                        yield change.value

    leases = await EtcdLeases.open(EtcdSettings(endpoints=(url,)))
    try:
        return await measure(Client(leases, (await leases.grant(TTL_S)).id), import_ms)
    finally:
        await leases.close()


async def grpc(url: str) -> Figures:
    start = time.perf_counter()
    import aetcd  # type: ignore[import-not-found, import-untyped, unused-ignore]

    import_ms = (time.perf_counter() - start) * 1000

    class Client:
        def __init__(self, etcd: Any, lease: Any) -> None:
            self.etcd, self.lease = etcd, lease

        async def put(self, value: bytes) -> None:
            await self.etcd.put(KEY.encode(), value, self.lease)

        async def keep_alive(self) -> None:
            await self.lease.refresh()

        async def watch(self) -> Any:
            async for event in await self.etcd.watch(KEY.encode()):
                yield event.kv.value

    host, port = url.removeprefix("http://").split(":")
    async with aetcd.Client(host, int(port)) as etcd:
        return await measure(Client(etcd, await etcd.lease(TTL_S)), import_ms)


def report(name: str, figures: Figures) -> None:
    print(
        f"{name:<8} import {figures.import_ms:5.0f} ms   resident {figures.resident_mib:5.1f} MiB   "
        f"threads {figures.threads}   puts {figures.puts_per_s:5.0f}/s "
        f"({figures.processor_ms_per_put:.2f} ms of processor each)   keep-alives {figures.keep_alives_per_s:5.0f}/s   "
        f"watch p50 {figures.watch_p50_ms:.2f} ms, p99 {figures.watch_p99_ms:.2f} ms"
    )


async def main() -> None:
    from holdfast.store.embedded import etcd_server

    with tempfile.TemporaryDirectory() as folder:
        async with etcd_server(Path(folder)) as server:
            for name in (*CLIENTS, *CLIENTS):
                command = [sys.executable, __file__, "--client", name, "--url", server.url]
                process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
                output, _ = await process.communicate()
                if process.returncode != 0:
                    raise SystemExit(f"{name} failed")
                report(name, msgspec.json.decode(output, type=Figures))


CLIENTS = {"gateway": gateway, "grpc": grpc}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--client", choices=CLIENTS)
    parser.add_argument("--url")
    arguments = parser.parse_args()
    if arguments.client:
        figures = asyncio.run(CLIENTS[arguments.client](arguments.url))
        sys.stdout.buffer.write(msgspec.json.encode(figures))
    else:
        asyncio.run(main())
