"""Forks the virtual machine that this program runs in, as SnowFlock does. What each call means: docs/guest-api.md.

    import martlet_guest

    squares = martlet_guest.map(lambda x: x * x, range(100), n=8)

or, call by call:

    ticket = martlet_guest.request_ticket(8)
    id = martlet_guest.clone(ticket)
    if id == 0:
        for exited in martlet_guest.join(ticket):
            print(exited.id, exited.status, exited.data)
    else:
        martlet_guest.exit(0, b"%d was here" % id)

Python 3.7 or later, standard library only.
"""

import base64
import binascii
import json
import os
import pickle
import socket
import sys
import time
import traceback
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, NoReturn, Optional, Tuple, Union

__all__ = [
    "Checkpoint", "DATA_BYTES", "Exited", "Failed", "Family", "MartletError", "Ticket", "checkpoint", "clone",
    "create_clones", "exit", "exits", "failed_clones", "family", "join", "kill", "map", "request_ticket", "vmid",
]

DATA_BYTES = 32 << 10
"""Most bytes that a child can hand to its parent when it exits."""

_LINE_BYTES = 60 << 10
_PROCESSES_MOST = 4096
# How often a call that was interrupted is repeated: for a minute, in which a daemon is long started anew.
_TRIES_MOST = 32
_PAUSE_FIRST_S = 0.05
_PAUSE_LONGEST_S = 2.0

_id: Optional[int] = None  # of this process, once it is known to be one of a clone: a clone cannot fork again
_failed: List["Failed"] = []


class MartletError(Exception):
    """A call was not done, or it is not known whether it was.

    `kind` is "denied", "not_found", "invalid", "state", "busy", "interrupted" or "failed" as the host says, "absent"
    when no agent listens, "lost" when the connection ended before the answer, "protocol" when that makes no sense.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__("%s: %s" % (kind, message))
        self.kind = kind
        self.message = message


class Ticket(NamedTuple):
    """Room for clones."""

    name: str
    granted: int
    """For how many processes: at least 1, at most what was asked for."""


class Checkpoint(NamedTuple):
    """What `checkpoint` returned."""

    id: int
    """0 in the VM that was saved; the number of this process in a clone of what was saved."""
    name: str
    """To be given to `create_clones`; empty in a clone."""


class Exited(NamedTuple):
    """A process of a clone ended."""

    id: int
    status: Optional[int]
    """What it gave to `exit`; None when its clone ended otherwise."""
    data: bytes
    problem: Optional[str]
    """Why its clone ended otherwise."""


class Failed(NamedTuple):
    """A process whose clone did not start."""

    id: int
    problem: str


class Family(NamedTuple):
    """Who a VM is."""

    id: int
    """0 in a VM that is nobody's clone by such a call; else the number of its first process."""
    family: str
    """What parent and clones have in common: the parent's id at its host."""
    size: int
    """How many processes the family has, without the parent's; 0 when there is none."""
    name: str
    """The VM's name at its host."""


def request_ticket(n: int, hierarchical: bool = False, timeout: Optional[int] = None) -> Ticket:
    """Asks for room for `n` processes in clones of this VM; fewer may be granted.

    `hierarchical`: as many processes in each clone as it has processors. `timeout`: clones end after so many seconds.
    """
    answer = _call({"call": "ticket", "count": n, "hierarchical": hierarchical, "timeout_s": timeout})
    ticket = Ticket(_get(answer, "ticket", "ticket", str), _number(answer, "ticket", "granted"))
    if not 1 <= ticket.granted <= n:
        raise _unexpected(answer)
    return ticket


def clone(ticket: Union[Ticket, str], wait: bool = True) -> int:
    """Forks the VM, then, in the clones of a hierarchical ticket, this process. Returns in all of them.

    0 in the parent, which waits, if `wait`, until its clones run; the process's number in a clone. Which clones did not
    start, `failed_clones` says. As for os.fork, a new process has this thread only.
    """
    _flush()
    return _start(_cloned(_call({"call": "clone", "ticket": _name(ticket), "wait": wait})))


def failed_clones() -> List[Failed]:
    """The processes whose clone did not start in this process's last `clone` or `create_clones`."""
    return list(_failed)


def checkpoint() -> Checkpoint:
    """Saves the VM's state. Returns in this VM, and, when `create_clones` starts them, in clones of the state."""
    _flush()
    answer = _call({"call": "checkpoint"})
    if answer.get("answer") == "checkpoint":
        return Checkpoint(0, _get(answer, "checkpoint", "checkpoint", str))
    first, processes = _cloned(answer)
    if first == 0:
        raise _unexpected(answer)
    return Checkpoint(_start((first, processes)), "")


def create_clones(c: Union[Checkpoint, str], ticket: Union[Ticket, str], wait: bool = True) -> None:
    """Starts clones of a checkpoint; they go on where it was taken."""
    checkpoint_name = c.name if isinstance(c, Checkpoint) else c
    asked = {"call": "create_clones", "checkpoint": checkpoint_name, "ticket": _name(ticket), "wait": wait}
    answer = _call(asked)
    if _cloned(answer)[0] != 0:
        raise _unexpected(answer)


def exit(status: int = 0, data: bytes = b"") -> NoReturn:
    """Ends this process of a clone, and hands `data`, at most DATA_BYTES, to the parent."""
    _check_length(data)
    id = vmid()
    if id == 0:
        raise MartletError("invalid", "only a clone can exit; this VM is nobody's clone by such a call")
    _flush()
    _end_process(id, status, data)
    os._exit(status & 0xFF)


def exits(ticket: Union[Ticket, str]) -> Iterator[Exited]:
    """Waits for the end of each of a ticket's processes, as they end; in the end the ticket is discarded."""
    seen = 0
    while True:
        answer = _persist({"call": "next_exit", "ticket": _name(ticket), "seen": seen})
        if answer.get("answer") == "over":
            break
        yield _exited(answer)
        seen += 1
    try:
        kill(ticket)
    except MartletError:
        pass  # what was asked for is known; a ticket that stays is the host's to clear away


def join(ticket: Union[Ticket, str]) -> List[Exited]:
    """Waits for the end of all of a ticket's processes, and discards the ticket. In the order in which they ended."""
    return list(exits(ticket))


def kill(ticket: Union[Ticket, str]) -> int:
    """Ends all clones of a ticket, and the ticket. Returns how many were ended."""
    return _number(_persist({"call": "kill", "ticket": _name(ticket)}), "killed", "clones")


def vmid() -> int:
    """This process's number: 0 in a VM that is nobody's clone by such a call."""
    return family().id if _id is None else _id


def family() -> Family:
    """Who this VM is."""
    answer = _persist({"call": "me"})
    return Family(
        _number(answer, "me", "id"),
        _get(answer, "me", "family", str),
        _number(answer, "me", "size"),
        _get(answer, "me", "name", str),
    )


def map(
    function: Callable[[Any], Any],
    inputs: Iterable[Any],
    n: int,
    hierarchical: bool = False,
    timeout: Optional[int] = None,
) -> List[Any]:
    """What `function` makes of each input, in order, worked out by up to `n` processes in clones of this VM.

    The function and the inputs are there already, however large; what it returns comes back pickled, and all results of
    one process must have room in DATA_BYTES: let it write what is large where this VM can read it. Raises MartletError
    ("failed") when the function raises anywhere, with its traceback.
    """
    todo = list(inputs)
    if not todo:
        return []
    ticket = request_ticket(min(n, len(todo)), hierarchical, timeout)
    n = ticket.granted
    results: List[Any] = [None] * len(todo)
    missing = set(range(1, n + 1))
    id = 0
    try:
        id = clone(ticket)
        if id != 0:
            exit(*_work(function, todo[id - 1 :: n]))
        for exited in exits(ticket):
            if exited.status != 0:
                words = exited.problem or exited.data.decode(errors="replace") or "no reason given"
                raise MartletError("failed", "process %d: %s" % (exited.id, words))
            if exited.id not in missing:
                raise MartletError("protocol", "process %d ended twice or is not of this ticket" % exited.id)
            missing.remove(exited.id)
            try:
                results[exited.id - 1 :: n] = pickle.loads(exited.data)
            except Exception as error:
                raise MartletError("failed", "process %d: its results are not understood: %r" % (exited.id, error))
        if missing:
            words = "; ".join(failed.problem for failed in _failed) or "no reason given"
            raise MartletError("failed", "processes %s did not start: %s" % (sorted(missing), words))
    except BaseException:
        if id == 0:
            try:
                kill(ticket)
            except MartletError:
                pass  # the first failure is the one to tell of
        raise
    return results


def _work(function: Callable[[Any], Any], inputs: List[Any]) -> Tuple[int, bytes]:
    """In a clone: the status and the data to exit with. Nothing that is raised may lead out of `map` here."""
    try:
        data = pickle.dumps([function(item) for item in inputs])
    except BaseException:
        words = traceback.format_exc().encode(errors="replace")
        return 1, words[-DATA_BYTES:]
    if len(data) > DATA_BYTES:
        words = "its results have %d bytes when pickled, and %d can be handed over; " % (len(data), DATA_BYTES)
        return 1, (words + "return less, use more processes, or write them where the parent can read them").encode()
    return 0, data


def _start(processes: Tuple[int, int]) -> int:
    """Starts the other processes of a clone. Returns in each of them with its number."""
    global _id
    first, count = processes
    if first == 0:
        return 0
    _id = first
    for id in range(first + 1, first + count):
        try:
            if os.fork() == 0:
                _id = id
                return id
        except OSError as error:
            try:
                _end_process(id, 1, ("cannot fork: %s" % error).encode())
            except MartletError:
                pass  # its parent waits for it; if that cannot be told, the clone's end tells it
    return first


def _end_process(id: int, status: int, data: bytes) -> None:
    _check_length(data)
    encoded = base64.b64encode(data).decode()
    answer = _persist({"call": "exit", "id": id, "status": status, "data": encoded})
    if answer.get("answer") != "done":
        raise _unexpected(answer)


def _check_length(data: bytes) -> None:
    if len(data) > DATA_BYTES:
        words = "%d bytes of data are more than the %d that a clone can hand over; " % (len(data), DATA_BYTES)
        raise MartletError("invalid", words + "write them where its parent can read them")


def _flush() -> None:
    """What is written but not yet out would come out once from each clone."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass  # there is none, or it is closed


def _name(ticket: Union[Ticket, str]) -> str:
    return ticket.name if isinstance(ticket, Ticket) else ticket


def _persist(asked: Dict[str, Any]) -> Dict[str, Any]:
    """Calls, and calls again when the host's side was lost: for calls that may be repeated."""
    pause_s = _PAUSE_FIRST_S
    for tries in range(_TRIES_MOST):
        try:
            return _call(asked)
        except MartletError as error:
            # An agent that was there and is not is being started anew.
            if error.kind not in ("interrupted", "lost") and not (error.kind == "absent" and tries > 0):
                raise
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, _PAUSE_LONGEST_S)
    return _call(asked)


def _call(asked: Dict[str, Any]) -> Dict[str, Any]:
    """One call, one connection: nothing gets out of step, and processes and threads share none."""
    line = json.dumps(asked).encode() + b"\n"
    if len(line) > _LINE_BYTES:
        raise MartletError("invalid", "the call has %d bytes, more than %d" % (len(line), _LINE_BYTES))
    name = os.environ.get("MARTLET_GUEST_SOCKET", "@martlet.guest")  # @NAME in the abstract namespace, or a path
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        try:
            stream.connect("\0" + name[1:] if name.startswith("@") else name)
        except OSError as error:
            words = "no agent of Martlet listens at %s (%s); is this a guest of Martlet?" % (name, error)
            raise MartletError("absent", words) from None
        try:
            stream.sendall(line)
            answer = _read_line(stream)
        except OSError as error:
            raise MartletError("lost", "the connection to the agent was lost: %s" % error) from None
    try:
        reply = json.loads(answer.decode())
    except (ValueError, RecursionError) as error:
        raise MartletError("protocol", "the agent's answer is not understood: %s" % error) from None
    if not isinstance(reply, dict) or len(reply) != 1:
        raise _unexpected(reply)
    if isinstance(reply.get("error"), dict):
        kind, message = reply["error"].get("kind"), reply["error"].get("message")
        if isinstance(kind, str) and isinstance(message, str):
            raise MartletError(kind if kind in _KINDS else "failed", message)
    if not isinstance(reply.get("ok"), dict):
        raise _unexpected(reply)
    return reply["ok"]


_KINDS = ("denied", "not_found", "invalid", "state", "busy", "interrupted", "failed")


def _read_line(stream: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        if len(line) >= _LINE_BYTES:
            raise MartletError("protocol", "the agent's answer has more than %d bytes" % _LINE_BYTES)
        more = stream.recv(_LINE_BYTES - len(line))
        if not more:
            raise MartletError("lost", "the connection to the agent was lost: it ended before the answer")
        line += more
    if b"\n" in line[:-1]:
        raise MartletError("protocol", "the agent's answer has more than a line")
    return line


def _unexpected(answer: Any) -> MartletError:
    return MartletError("protocol", "the agent's answer makes no sense here: %s" % repr(answer)[:200])


def _get(answer: Dict[str, Any], kind: str, member: str, of: type) -> Any:
    value = answer.get(member)
    if answer.get("answer") != kind or type(value) is not of:
        raise _unexpected(answer)
    return value


def _number(answer: Dict[str, Any], kind: str, member: str) -> int:
    value: int = _get(answer, kind, member, int)
    if not 0 <= value < 1 << 32:
        raise _unexpected(answer)
    return value


def _cloned(answer: Dict[str, Any]) -> Tuple[int, int]:
    """The first process's number, and how many there are to be."""
    first, processes = _number(answer, "cloned", "id"), _number(answer, "cloned", "processes")
    if first != 0 and not 1 <= processes <= _PROCESSES_MOST:
        raise _unexpected(answer)
    listed = answer.get("failed", [])
    if not isinstance(listed, list):
        raise _unexpected(answer)
    failed = [Failed(one.get("id"), one.get("problem")) for one in listed if isinstance(one, dict)]
    if len(failed) != len(listed) or not all(type(one.id) is int and isinstance(one.problem, str) for one in failed):
        raise _unexpected(answer)
    _failed[:] = failed
    return first, processes


def _exited(answer: Dict[str, Any]) -> Exited:
    status, problem = answer.get("status"), answer.get("problem")
    if not (status is None or type(status) is int) or not (problem is None or isinstance(problem, str)):
        raise _unexpected(answer)
    try:
        data = base64.b64decode(_get(answer, "exited", "data", str), validate=True)
    except (binascii.Error, ValueError):
        raise _unexpected(answer) from None
    if len(data) > DATA_BYTES:
        raise _unexpected(answer)
    return Exited(_number(answer, "exited", "id"), status, data, problem)
