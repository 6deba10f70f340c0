# SPDX-License-Identifier: GPL-2.0-only
"""ipywidgets in a page, without a kernel: each message of a comm goes to the page as JSON, and comes back so."""

import json
import logging
import os
import sys
from types import ModuleType

import comm
from comm.base_comm import BaseComm
from pyodide.ffi import to_js

sink = None
"""The page's function that takes messages: sink(kind, comm's id, content as JSON, buffers)."""

_parent: dict[str, str] = {}


def _stand_in(name, **names):
    """Put an empty module in the place of one that ipywidgets imports and that is of no use here."""
    sys.modules[name] = module = ModuleType(name)
    vars(module).update(names)


def _nothing(*_, **__):
    return None


_stand_in("IPython", get_ipython=_nothing, __path__=[])
_stand_in("IPython.display", display=_nothing, clear_output=_nothing)
_stand_in("IPython.core", __path__=[])
_stand_in("IPython.core.interactiveshell", InteractiveShell=type("InteractiveShell", (), {}))

os.environ["JUPYTER_WIDGETS_ECHO"] = "0"  # there is one front end: it need not hear what it said itself
logging.basicConfig()  # a callback that fails is only logged, which nobody would see


class Comm(BaseComm):
    """One widget's line to its model in the page."""

    def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **keys):
        """Send a message to the page."""
        content = {"comm_id": self.comm_id, "data": data or {}, **keys}
        message = {"content": content, "metadata": metadata or {}, "parent_header": _parent}
        sink(msg_type, self.comm_id, json.dumps(message), to_js([bytes(each) for each in buffers or ()]))


comm.create_comm = Comm


def receive(comm_id, msg_id, data, buffers=()):
    """Hand a message of the page to the widget that it is for; one for a widget that is closed is dropped."""
    heard = comm.get_comm_manager().get_comm(comm_id)
    if heard is None:
        return
    _parent["msg_id"] = msg_id
    try:
        content = {"comm_id": comm_id, "data": json.loads(data)}
        heard.handle_msg({"content": content, "buffers": [each.to_py() for each in buffers]})
    finally:
        _parent.clear()
