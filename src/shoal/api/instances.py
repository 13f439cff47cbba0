"""Instances: look at, end, put to sleep, wake, and read their logs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
from fastapi import APIRouter, Query, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel

from shoal.api.context import Context
from shoal.api.models import SleepRequest
from shoal.errors import NotFoundError
from shoal.fleet.logs import Follower, chunks, tail
from shoal.fleet.snapshot import InstanceView
from shoal.fleet.state import Instance, InstanceState

router = APIRouter(prefix="/api/v1", tags=["instances"])
MAX_TAIL = 20_000
FOLLOW = 0.25
HEARTBEAT = 15.0


class Instances(BaseModel):
    """Instances, oldest first."""

    instances: list[InstanceView]


def _find(controller: Context, instance: str) -> Instance:
    found = controller.manager.fleet.instances.get(instance)
    if found is None:
        raise NotFoundError(f"there is no instance {instance}; `shoal ps --all` lists them", param="instance")
    return found


@router.get("/instances")
async def list_instances(controller: Context, all: bool = False) -> Instances:
    """The instances that run or have failed; with `all` those that were stopped too."""
    fleet = controller.manager.fleet
    chosen = [i for i in fleet.instances.values() if all or i.state is not InstanceState.STOPPED]
    chosen.sort(key=lambda i: (i.created_at, i.id))
    return Instances(instances=[fleet.instance_view(i) for i in chosen])


@router.get("/instances/{instance}")
async def get_instance(controller: Context, instance: str) -> InstanceView:
    """One instance."""
    return controller.manager.fleet.instance_view(_find(controller, instance))


@router.delete("/instances/{instance}", status_code=202)
async def stop_instance(controller: Context, instance: str, response: Response, force: bool = False) -> InstanceView:
    """End one instance, after its running requests unless forced; 200 if it has ended already."""
    ended, changed = await controller.do(lambda: controller.manager.stop_instance(instance, force=force))
    if not changed:
        response.status_code = 200
    return controller.manager.fleet.instance_view(ended)


@router.post("/instances/{instance}/sleep", status_code=202)
async def sleep_instance(
    controller: Context, instance: str, response: Response, request: SleepRequest | None = None
) -> InstanceView:
    """Put one instance to sleep, after its running requests unless forced; 200 if it sleeps or will."""
    how = request or SleepRequest(level=1)
    found, changed = await controller.do(
        lambda: controller.manager.sleep_instance(instance, how.level, force=how.force)
    )
    if not changed:
        response.status_code = 200
    return controller.manager.fleet.instance_view(found)


@router.post("/instances/{instance}/wake", status_code=202)
async def wake_instance(controller: Context, instance: str, response: Response) -> InstanceView:
    """Wake one instance; 200 if it serves or is about to."""
    found, changed = await controller.do(lambda: controller.manager.wake_instance(instance))
    if not changed:
        response.status_code = 200
    return controller.manager.fleet.instance_view(found)


@router.get("/instances/{instance}/logs", response_class=PlainTextResponse)
async def read_log(
    controller: Context, instance: str, tail_lines: int = Query(200, alias="tail", ge=1), download: bool = False
) -> Response:
    """The end of an instance's log as text, or with `download` the whole of it as a file."""
    path = controller.paths.log(_find(controller, instance).id)
    if download:
        return StreamingResponse(
            chunks(path),
            media_type="text/plain; charset=utf-8",
            headers={"content-disposition": f'attachment; filename="{instance}.log"'},
        )
    lines = await asyncio.to_thread(tail, path, min(tail_lines, MAX_TAIL))
    return PlainTextResponse("".join(f"{line}\n" for line in lines))


@router.get("/instances/{instance}/logs/stream", response_class=StreamingResponse)
async def follow_log(
    controller: Context, instance: str, tail_lines: int = Query(200, alias="tail", ge=0)
) -> StreamingResponse:
    """The log's end and then what comes, as server-sent events `line`; `end` once the instance has ended."""
    _find(controller, instance)
    return StreamingResponse(
        _follow(controller, instance, min(tail_lines, MAX_TAIL)),
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


async def _follow(controller: Context, instance: str, lines: int) -> AsyncIterator[bytes]:
    path = controller.paths.log(instance)
    follower = Follower(path, at_end=True)
    try:
        yield _lines(await asyncio.to_thread(tail, path, lines) if lines else [])
        quiet = 0.0
        while True:
            # First whether it has ended, then what it wrote: nothing that came before the end is missed.
            found = controller.manager.fleet.instances.get(instance)
            ended = found is None or found.state.ended
            if new := follower.read():
                quiet = 0.0
                yield _lines(new)
                continue
            if ended:
                state = found.state.value if found is not None else "forgotten"
                yield b"event: end\ndata: %s\n\n" % msgspec.json.encode({"state": state})
                return
            await asyncio.sleep(FOLLOW)
            quiet += FOLLOW
            if quiet >= HEARTBEAT:
                quiet = 0.0
                yield b": still here\n\n"
    finally:
        follower.close()


def _lines(lines: list[str]) -> bytes:
    return b"".join(b"event: line\ndata: %s\n\n" % msgspec.json.encode({"text": line}) for line in lines)
