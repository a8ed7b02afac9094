"""A service as a real process: its log, its address, its end."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from tokenfleet.runtime.grpc_host import open_channel


class ServiceProcess:
    """`python -m tokenfleet.<module>`, logging JSON to us."""

    def __init__(self, module: str, process: asyncio.subprocess.Process) -> None:
        self.role = module.replace("_", "-")
        self.process = process
        self.log: list[dict[str, Any]] = []
        self.address = ""
        self.metrics = ""
        self._logged = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def logged(self, event: str, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """Waits until the log has so many records of the event that have these fields."""

        def found() -> list[dict[str, Any]]:
            wanted = {"event": event, **fields}
            return [record for record in self.log if wanted.items() <= record.items()]

        async with asyncio.timeout(30), self._logged:
            await self._logged.wait_for(lambda: len(found()) >= count or self._reading.done())
        assert len(found()) >= count, f"ended without {event!r}: {self.log}"
        return found()

    async def ready(self, service: str) -> None:
        """Waits for the service's own health, which means ready."""
        async with open_channel(self.address, self.role) as channel, asyncio.timeout(30):
            health: Any = health_pb2_grpc.HealthStub(channel)  # its stubs lack Watch
            call = health.Watch(health_pb2.HealthCheckRequest(service=service))
            async for answer in call:
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    call.cancel()
                    return

    async def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.returncode is None:
            self.process.terminate()
        return await self.ended()

    async def kill(self) -> None:
        self.process.kill()
        await self.ended()

    async def ended(self) -> int:
        async with asyncio.timeout(30):
            code = await self.process.wait()
            await self._reading
        return code

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            text = line.decode()
            async with self._logged:
                self.log.append(json.loads(text) if text.startswith("{") else {"event": text.rstrip()})
                self._logged.notify_all()


async def launch(module: str, *flags: str, env: Mapping[str, str] | None = None) -> ServiceProcess:
    """Starts the service; does not wait for anything."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"tokenfleet.{module}", "--log-format", "json", *flags),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    return ServiceProcess(module, process)


@asynccontextmanager
async def running(
    module: str,
    *flags: str,
    listen: str = "127.0.0.1:0",
    code: int = 0,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[ServiceProcess]:
    """The service, serving and not necessarily ready; it has to stop with `code`."""
    service = await launch(module, "--listen", listen, *flags, env=env)
    try:
        (serving, *_) = await service.logged("serving")
        service.address = f"127.0.0.1:{serving['grpc']}"
        service.metrics = f"http://127.0.0.1:{serving['metrics']}/metrics"
        yield service
    finally:
        if service.process.returncode is None:
            stopped = await service.stop()
            assert stopped == code, service.log
