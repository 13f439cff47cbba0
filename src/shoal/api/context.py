"""How a route gets at the controller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request

if TYPE_CHECKING:
    from shoal.controller import Controller


async def _controller(request: Request) -> Any:  # what is not async runs in a thread
    return request.app.state.controller


if TYPE_CHECKING:
    Context = Controller
else:  # at run time FastAPI reads the dependency; importing the controller would be a circle
    Context = Annotated[Any, Depends(_controller)]
