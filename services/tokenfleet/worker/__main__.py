"""Runs a worker: binds, waits for orders, and on SIGTERM hands over what it cannot finish."""

from __future__ import annotations

import asyncio

from tokenfleet.runtime.grpc_host import GrpcHost
from tokenfleet.runtime.lifecycle import Lifecycle, run, share_one_heap, shrink_heap
from tokenfleet.runtime.links import LinkServer
from tokenfleet.runtime.metrics import serve_metrics
from tokenfleet.runtime.settings import load_settings
from tokenfleet.runtime.telemetry import get_logger
from tokenfleet.v1 import worker_pb2_grpc
from tokenfleet.worker.engines.registry import import_engines
from tokenfleet.worker.host import WorkerHost
from tokenfleet.worker.service import WorkerService
from tokenfleet.worker.settings import WorkerSettings

log = get_logger(__name__)
# Time for the last messages to leave once everything has ended.
_FAREWELL_S = 0.5


async def serve(settings: WorkerSettings, lifecycle: Lifecycle) -> None:
    await asyncio.to_thread(import_engines, settings.engines)
    host = WorkerHost(settings)
    links = LinkServer(settings.advertise_host)
    grpc_host = GrpcHost(
        "tokenfleet.v1.Worker",
        lambda server: worker_pb2_grpc.add_WorkerServicer_to_server(WorkerService(host, links), server),
        listen=settings.listen,
        reflection=settings.reflection,
    )
    port = await grpc_host.start()
    registration = settings.registration(port)
    if settings.frames:
        await links.start_frames(settings.listen, settings.frames_port)
    metrics_port = serve_metrics(settings.metrics_listen, ready=lambda: grpc_host.ready)
    log.info(
        "worker listens",
        worker=host.worker_id,
        port=port,
        metrics_port=metrics_port,
        engines=settings.engines,
        threads=settings.engine_threads,
    )
    shrink_heap()
    readiness = asyncio.create_task(_publish_readiness(host, grpc_host))
    if registration is not None:
        registration.start()
    await lifecycle.stopping.wait()
    if registration is not None:
        await registration.leave()
    async for running in host.drain(lifecycle.grace_s):
        log.info("draining", running=running)
    readiness.cancel()
    if registration is not None:
        await registration.stop()
    await host.close()
    await links.stop()
    await grpc_host.stop(_FAREWELL_S)


async def _publish_readiness(host: WorkerHost, grpc_host: GrpcHost) -> None:
    while True:
        host.readiness_changed.clear()
        await grpc_host.set_ready(host.ready)
        await host.readiness_changed.wait()


def main() -> None:
    share_one_heap()
    settings = load_settings(WorkerSettings)
    run("worker", settings, lambda lifecycle: serve(settings, lifecycle))


if __name__ == "__main__":
    main()
