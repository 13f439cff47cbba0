"""Event streams end with what let them begin."""

from __future__ import annotations

import asyncio
import base64

import pytest

import shoal.sign_in
from shoal.fleet.sessions import IDLE
from tests.api.guarded import BAD, GOOD, Admin, asked, listening


async def test_a_stream_ends_with_its_session(admin: Admin) -> None:
    await admin.user("ann")
    await admin.user("bob", "read-only")
    one, other, third = await admin.signed_in(), await admin.signed_in(), await admin.signed_in(name="bob")
    mine, elsewhere, bobs = await listening(admin, one), await listening(admin, other), await listening(admin, third)
    await one.delete("/api/v1/session")
    assert await mine.ended()
    assert not elsewhere.task.done()
    admin.sign_in.set_user("ann", None, await admin.sign_in.hash(BAD))
    assert await elsewhere.ended()
    assert not bobs.task.done()
    admin.sign_in.remove_user("bob")
    assert await bobs.ended()
    assert admin.sign_in._streams == set()


async def test_a_stream_of_a_program_ends_with_its_user(admin: Admin) -> None:
    await admin.user("ann")
    basic = base64.b64encode(f"ann:{GOOD}".encode()).decode()
    stream = await listening(admin, authorization=f"Basic {basic}")
    admin.sign_in.remove_user("ann")
    assert await stream.ended()


async def test_streams_from_before_the_first_user_end(admin: Admin) -> None:
    anybodys = await listening(admin)
    await admin.user()
    assert await anybodys.ended()


async def test_a_stream_ends_when_its_session_is_too_old(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    await admin.user()
    client = await admin.signed_in()
    stream = await listening(admin, client)
    monkeypatch.setattr(shoal.sign_in, "SWEEP", 0.01)
    admin.now += IDLE
    sweep = asyncio.create_task(admin.sign_in.run())
    assert await stream.ended()
    sweep.cancel()
    assert await asked(client) == (401, "sign_in_required")
    assert admin.store.sessions == {}


async def test_a_listener_that_leaves_is_forgotten_and_a_server_that_ends_may_end_it(admin: Admin) -> None:
    await admin.user()
    stream = await listening(admin, await admin.signed_in())
    assert len(admin.sign_in._streams) == 1
    stream.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stream.task
    assert admin.sign_in._streams == set()
