"""Where in the user's model an operator was called: the innermost module at work, and the innermost line outside torch.

Both are read off the stack of Python frames, so that a capture needs no hooks in the model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import CodeType, FrameType, TracebackType

import torch
from torch import nn

from secateur import attention, shadows, twins
from secateur.tensors import modules_of

_TORCH = f"{Path(torch.__file__).parent}/"
_TORCH_NN = f"{_TORCH}nn/"
INSIDE = "torch/"  # how a line starts that is torch's own
_CALL = nn.Module._call_impl.__code__  # runs hooks and forward of a module, whose `self` it is


class Places:
    """Finds places of operators in one forward; `own` names our files, which are no part of the model."""

    def __init__(self, model: nn.Module, *own: str) -> None:
        self.names = {id(module): fqn for fqn, module in reversed(modules_of(model))}  # the first name counts
        self.start = own[0]  # the file that calls the model
        self.own = (*own, attention.__file__, shadows.__file__, twins.__file__, __file__)
        self._lines: dict[tuple[int, int], tuple[CodeType, str]] = {}
        self._kinds: dict[str, str] = {}  # by file

    def here(self, fqn: str | None = None) -> tuple[str, str]:
        """(fqn, "file.py:12") of the operator whose dispatch calls this function; the first where it isn't known."""
        frame: FrameType | None = sys._getframe(2)
        line = inside = None
        while frame is not None and (fqn is None or line is None):
            code = frame.f_code
            name = code.co_filename
            kind = self._kinds.get(name) or self._kind(name)
            if kind == "model":
                line = line or frame
            elif code is _CALL:
                if fqn is None:
                    fqn = self.names.get(id(frame.f_locals["self"]))
            elif kind == "start":
                break
            elif kind == "torch.nn":
                inside = inside or frame
            frame = frame.f_back
        found = line or inside
        return fqn or "", self._line(found) if found is not None else "unknown line"

    def _kind(self, name: str) -> str:
        """What a file is to a place: "start" calls the model, "model" may be named, "torch.nn" where none is."""
        if name == self.start:
            kind = "start"
        elif name.startswith((_TORCH, "<")) or name in self.own:
            kind = "torch.nn" if name.startswith(_TORCH_NN) else "other"
        else:
            kind = "model"
        self._kinds[name] = kind
        return kind

    def of_error(self, trace: TracebackType | None) -> tuple[str, str]:
        """(fqn, "file.py:12") of where a forward raised."""
        fqn, location, inside = "", "", ""
        while trace is not None:
            frame, name = trace.tb_frame, trace.tb_frame.f_code.co_filename
            fqn = self.names.get(id(frame.f_locals.get("self")), fqn)
            if name.startswith(_TORCH_NN) and not location:
                inside = _spell(name, trace.tb_lineno)
            elif not name.startswith((_TORCH, "<")) and name not in self.own:
                location = _spell(name, trace.tb_lineno)
            trace = trace.tb_next
        return fqn, location or inside or "unknown line"

    def _line(self, frame: FrameType) -> str:
        """Python finds a line number by reading a table from its start, so each is found once."""
        key = id(frame.f_code), frame.f_lasti
        if key not in self._lines:
            self._lines[key] = frame.f_code, _spell(frame.f_code.co_filename, frame.f_lineno)
        return self._lines[key][1]


def _spell(name: str, line: int) -> str:
    return f"{INSIDE}{name[len(_TORCH) :]}:{line}" if name.startswith(_TORCH) else f"{Path(name).name}:{line}"
