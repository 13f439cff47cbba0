"""Signing in and out, and who may. No answer holds a password or what is kept of one."""

from __future__ import annotations

import re
from typing import Annotated, Any, cast

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from shoal.api.context import Context
from shoal.api.guard import Caller
from shoal.errors import ConflictError
from shoal.fleet.sessions import LONGEST
from shoal.fleet.users import MAX_PASSWORD, MAX_USER_NAME, Role, User, Way

router = APIRouter(prefix="/api/v1", tags=["access"])

_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,@%/-]{0,500}")
Path = Annotated[str, Query(description="Where the page is, for the cookie; behind a path prefix not `/`.")]


class SignInRequest(BaseModel):
    """Name and password of a user."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=MAX_USER_NAME)
    password: str = Field(max_length=MAX_PASSWORD, repr=False)


class SessionView(BaseModel):
    """Who asks. `needed`: one has to sign in; `role`: what they may do, None as long as they have to sign in first."""

    needed: bool
    name: str | None
    role: Role | None


class UserRequest(BaseModel):
    """What is to be changed of a user; a new one needs both."""

    model_config = ConfigDict(extra="forbid")
    role: Role | None = None
    password: str | None = Field(None, max_length=MAX_PASSWORD, repr=False)


class UserView(BaseModel):
    """A user as people see it. Times are Unix seconds; `sessions`: where they are signed in."""

    name: str
    role: Role
    created_at: float
    changed_at: float
    sessions: int


class Users(BaseModel):
    """Users, by name."""

    users: list[UserView]


@router.get("/session")
async def get_session(controller: Context, request: Request, response: Response) -> SessionView:
    """Who is signed in here, what they may do, and whether one has to."""
    response.headers["cache-control"] = "no-store"
    caller = _caller(request)
    needed = controller.sign_in.needed and caller.peer.way is not Way.OWN
    if caller.admitted is not None:
        return SessionView(needed=needed, name=caller.admitted.user.name, role=caller.admitted.user.role)
    return SessionView(needed=needed, name=None, role=None if needed else "admin")


@router.post("/session")
async def sign_in(
    controller: Context, request: Request, response: Response, given: SignInRequest, path: Path = "/"
) -> SessionView:
    """Sign in: the answer sets a cookie, for 12 hours after its last use and for 7 days at most. 401 if name or
    password is wrong, 429 after too many attempts."""
    service, caller = controller.sign_in, _caller(request)
    if not service.users.records and not service.needed:
        raise ConflictError(
            "there are no users, so nobody has to sign in; `shoal users set NAME --role admin` makes one",
            code="no_users",
        )
    user = await service.check(given.name, given.password, caller.peer.address)
    token = await controller.do(lambda: service.start(user))
    if caller.admitted is not None and (former := caller.admitted.session) is not None:
        await controller.do(lambda: service.end(former))
    response.headers["cache-control"] = "no-store"
    response.set_cookie(service.cookie, token, max_age=int(LONGEST), path=_checked(path), **_attributes(caller))
    return SessionView(needed=True, name=user.name, role=user.role)


@router.delete("/session", status_code=204)
async def sign_out(controller: Context, request: Request, response: Response, path: Path = "/") -> None:
    """Sign out; without a session nothing is done."""
    caller = _caller(request)
    if caller.admitted is not None and (session := caller.admitted.session) is not None:
        await controller.do(lambda: controller.sign_in.end(session))
    response.delete_cookie(controller.sign_in.cookie, path=_checked(path), **_attributes(caller))


@router.get("/users")
async def list_users(controller: Context) -> Users:
    """Who may sign in."""
    records = controller.sign_in.users.records
    return Users(users=[_shown(controller, records[name]) for name in sorted(records)])


@router.put("/users/{name:path}")
async def set_user(controller: Context, name: str, given: UserRequest, response: Response) -> UserView:
    """Make a user, or change role or password of one, whose sessions end then."""
    service = controller.sign_in
    kept = None if given.password is None else await service.hash(given.password)
    user, new = await controller.do(lambda: service.set_user(name, given.role, kept))
    response.status_code = 201 if new else 200
    return _shown(controller, user)


@router.delete("/users/{name:path}", status_code=204)
async def remove_user(controller: Context, name: str) -> None:
    """Forget a user; their sessions end. Once there is none, nobody is asked, and only this machine is answered."""
    await controller.do(lambda: controller.sign_in.remove_user(name))


def _caller(request: Request) -> Caller:
    return cast("Caller", request.scope["shoal.caller"])


def _shown(controller: Context, user: User) -> UserView:
    sessions = sum(one.user == user.name for one in controller.sign_in.sessions.records.values())
    return UserView(
        name=user.name, role=user.role, created_at=user.created_at, changed_at=user.changed_at, sessions=sessions
    )


def _attributes(caller: Caller) -> dict[str, Any]:
    return {"httponly": True, "samesite": "strict", "secure": caller.secure}


def _checked(path: str) -> str:
    """A path for the cookie; what is none would end the attribute early, and stands for all of this address."""
    return path if _PATH.fullmatch(path) else "/"
